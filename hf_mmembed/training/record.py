"""What was really run, in files that lie beside the weights that came of it.

In: a trainer that has trained. Out: ``training.json`` (data, seed, hardware, hours, versions, last loss), ``recipe.yaml``
(what was asked for) and ``mining.json`` (what mining counted), of which `hf_mmembed.hub` makes the model card. Only facts,
and no path of this machine: a local directory is called by its last name.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from hf_mmembed import __version__
from hf_mmembed.mining import Clusters
from hf_mmembed.shipped import SHIPPED

from .arguments import SaHaTrainingArguments
from .run_file import BASE

if TYPE_CHECKING:
    from .trainer import SaHaTrainer

__all__ = ["record_of"]

# Numbers of every subset; and what training.json says, or may name a path.
_NOT_OF_MINING = {"subsets", "data", "miner"}
_LIBRARIES = ("torch", "transformers", "sentence-transformers", "peft", "accelerate", "datasets")
# Of this machine and its user; nobody needs them to train the same again.
_PRIVATE = re.compile(r"output_dir|logging_dir|run_name|disable_tqdm|use_cpu|push_to_hub|hub_.*|.*_token")


def record_of(trainer: SaHaTrainer) -> dict[str, str]:
    """The files of the record, by name.

    Args:
        trainer: After training. Its ``recipe`` is recorded as given; without one, the arguments that are not the
            defaults are.
    """
    recipe = dict(trainer.recipe or {"training": _chosen(trainer.args)})
    training = recipe.get("training") or {}
    recipe["training"] = {name: value for name, value in training.items() if not _PRIVATE.fullmatch(name)}
    files = {
        "training.json": json.dumps(_training(trainer), indent=2, ensure_ascii=False) + "\n",
        "recipe.yaml": yaml.safe_dump(_without_paths(recipe), sort_keys=False, allow_unicode=True),
    }
    if trainer.mined is not None:
        counted = _mining(trainer.mined) | ({"mined_anew": "every epoch"} if trainer.args.remine_every_epoch else {})
        files["mining.json"] = json.dumps(counted, indent=2, ensure_ascii=False) + "\n"
    return files


def _training(trainer: SaHaTrainer) -> dict[str, Any]:
    args, logs = trainer.args, [entry for entry in trainer.state.log_history if "loss" in entry]
    begun = trainer.facts or {}
    # A pair left alone at the end has no negatives: its loss is 0 and its hardness NaN, which JSON does not know.
    told = [entry for entry in logs if math.isfinite(entry["loss"]) and math.isfinite(entry.get("hardness", 0.0))]
    last = told[-1] if told else {}
    summary = trainer.summary()
    source = ((trainer.recipe or {}).get("data") or {}).get("source")
    facts = {
        "datasets": [source] if _is_on_the_hub(source) else None,
        "pairs": summary["pairs"],
        "data_fingerprint": trainer.ids.fingerprint,
        "base": {name: begun[f"base.{name}"] for name in BASE} if begun else None,
        "clusters": summary["clusters"],
        "pairs_per_step": summary["pairs per step"],
        "steps": trainer.state.global_step,
        "best_step": trainer.best_step,  # whose weights were loaded at the end; the numbers below are of the last one
        "epochs": round(trainer.state.epoch or 0, 2),
        "trained_weights": summary["trainable weights"],
        "loss_function": type(trainer.loss).__name__,
        "final_loss": round(last["loss"], 4) if last else None,
        "final_hardness": last.get("hardness"),
        "seed": args.seed,
        "hardware": _hardware(args),
        "hours": round(sum(entry["seconds"] for entry in logs) / 3600, 3),
        "versions": [f"hf-mmembed {__version__}", *(f"{name} {metadata.version(name)}" for name in _LIBRARIES)],
    }
    return {name: value for name, value in facts.items() if value is not None}


def _mining(clusters: Clusters) -> dict[str, Any]:
    """Settings, counts and recall of the first mining, over all subsets."""
    settings = {name: value for name, value in clusters.settings.items() if name not in _NOT_OF_MINING}
    recall = {name: round(value, 4) for name, value in clusters.recall.items()}
    size = clusters.rows.shape[1]
    return {
        "strategy": clusters.strategy,
        "clusters": len(clusters),
        "size": size,
        **settings,
        **clusters.counts,
        **recall,
    }


def _hardware(args: SaHaTrainingArguments) -> str:
    if args.device.type == "cuda":
        return f"{args.world_size} x {torch.cuda.get_device_name(args.device)}"
    if args.device.type == "cpu":
        return f"{args.world_size} x CPU ({platform.machine()}, {os.cpu_count()} cores, torch threads: {torch.get_num_threads()})"
    return f"{args.world_size} x {args.device.type}"


def _chosen(args: SaHaTrainingArguments) -> dict[str, Any]:
    """The arguments that are not the defaults, as a recipe would give them."""
    values = args.to_dict()
    if args.global_batch_size is not None:
        values.pop("per_device_train_batch_size")  # follows from the global one
    return {
        item.name: values[item.name]
        for item in fields(args)
        if isinstance(values.get(item.name), str | int | float | list | tuple)
        and values[item.name] not in (item.default, [])
    }


def _is_on_the_hub(source: Any) -> bool:
    return isinstance(source, str) and source.count("/") == 1 and source[0] not in "./~" and not Path(source).exists()


def _without_paths(value: Any) -> Any:
    """The same in YAML's types, without what is None, absolute paths cut down to their last name."""
    if isinstance(value, Mapping):
        return {str(name): _without_paths(item) for name, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_paths(item) for item in value]
    if isinstance(value, str | Path):
        path = Path(value)
        return str(value) if not path.is_absolute() else SHIPPED if SHIPPED in path.parts else path.name
    return value
