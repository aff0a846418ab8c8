# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-mmembed[train]"]
# ///
"""Fine-tune an embedder on your own pairs with SaHa, and push it.

In: a data set of pairs (an image-caption folder or data set is one) and a multimodal LLM. Out: a fine-tuned embedder,
on the Hub if you like.

Copy and run, on one GPU::

    uv run finetune_saha.py --model Qwen/Qwen2-VL-2B-Instruct --data my-name/my-captions \\
        --push my-name/my-embedder

As a job on the Hub::

    hf jobs uv run --flavor a100-large --timeout 12h --secrets HF_TOKEN finetune_saha.py --model ... --data ... \\
        --push ...

Without ``--timeout``, a job is stopped after half an hour. The recipes that ship are made for the data sets that they name;
of your own pairs this makes 3 epochs of some 32 steps or more, in batches of at least 32, unless ``--set`` says otherwise.

On a laptop, with the shipped model and drawn pictures::

    hf-mmembed tiny draw pictures --number 200
    python -m hf_mmembed.scripts.finetune_saha --recipe saha-tiny --data pictures \\
        --set training.max_steps=20
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["main"]

logger = logging.getLogger("finetune_saha")

_STEPS_PER_EPOCH = 32  # at least, where the smallest batch allows it
_SMALLEST_BATCH = 32  # two of the clusters that the recipes mine


def main(args: Sequence[str] | None = None) -> Path:
    """Mine, train, push; returns the directory of the result."""
    parser = argparse.ArgumentParser(description="Fine-tune an embedder on your own pairs with SaHa, and push it.")
    parser.add_argument("--recipe", default="saha-qwen2-vl-2b", help="name of one that ships, or a YAML file")
    parser.add_argument("--model", help="multimodal LLM, embedder or adapter; default: the recipe's")
    parser.add_argument("--data", required=True, help="pairs: a folder, a table, or the id of a data set")
    parser.add_argument("--split", default="train", help="split of a data set; default: train")
    parser.add_argument("--column", action="append", default=[], metavar="OURS=THEIRS", help="query_text=caption, ...")
    parser.add_argument("--output", type=Path, default=Path("finetuned"), help="directory of the run")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another value of the recipe")
    parser.add_argument("--push", metavar="ORG/NAME", help="repository to push the result to")
    parser.add_argument("--private", action="store_true", help="make that repository private")
    options = parser.parse_args(args)
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    from hf_mmembed import tiny
    from hf_mmembed.data.pairs import read_pairs
    from hf_mmembed.training.recipe_files import parse_yaml
    from hf_mmembed.training.recipes import load_recipe, recipe_names, train

    overrides: dict[str, object] = {
        "data.source": options.data,
        "data.split": options.split,
        "output": str(options.output),
    }
    if options.column:
        overrides["data.columns"] = _mapping(parser, "--column", options.column)
    if options.push:
        # Merged: an adapter over a base that was converted here would be of no use to others.
        overrides |= {
            "training.push_to_hub": True,
            "training.hub_model_id": options.push,
            "training.save_as": "merged",
        }
        overrides["training.hub_private_repo"] = options.private or None
    overrides |= {key: parse_yaml(value) for key, value in _mapping(parser, "--set", options.set).items()}
    model = options.model or (str(tiny.checkpoint_path()) if options.recipe == "saha-tiny" else None)
    if model:
        overrides["model"] = model
    recipe = load_recipe(options.recipe, overrides)
    pairs = read_pairs(**recipe.data)
    if options.recipe in recipe_names():
        recipe = load_recipe(options.recipe, {**_budget(len(pairs), recipe.training, overrides), **overrides})
    result = train(recipe, pairs=pairs)
    logger.info("the embedder is in %s", result)
    return result


def _budget(pairs: int, training: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Batch and length of a training that suit so many pairs, as far as neither is `asked` for."""
    budget: dict[str, Any] = {}
    if not asked.keys() & {"training.global_batch_size", "training.per_device_train_batch_size"}:
        # A power of two, so that it can be divided among processes.
        fitting = 1 << max(pairs // _STEPS_PER_EPOCH, _SMALLEST_BATCH).bit_length() - 1
        budget["training.global_batch_size"] = min(training.get("global_batch_size", fitting), fitting)
    if not asked.keys() & {"training.max_steps", "training.num_train_epochs"}:
        budget |= {"training.max_steps": -1, "training.num_train_epochs": 3}
        if "training.warmup_steps" not in asked:
            budget["training.warmup_steps"] = 0.1  # of all: the recipe's number may be more than there are
    return budget


def _mapping(parser: argparse.ArgumentParser, flag: str, items: list[str]) -> dict[str, str]:
    pairs = [item.partition("=") for item in items]
    if wrong := [key for key, equals, _ in pairs if not equals]:
        parser.error(f"{flag} takes NAME=VALUE, not {wrong[0]!r}")
    return {key: value for key, _, value in pairs}


if __name__ == "__main__":
    main()
