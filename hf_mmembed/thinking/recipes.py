"""A whole training of Think-Then-Embed in one YAML file: the reasoner, the embedder, or a head that unites them.

In: the name of a recipe that comes with the package, or a file of the same form. Out: the trained checkpoint, ``model``
in the output directory.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainingArguments

from hf_mmembed.data.pairs import read_pairs
from hf_mmembed.mining import Clusters
from hf_mmembed.model.unified_mmembed import UnifiedConfig
from hf_mmembed.only_run import only_run
from hf_mmembed.opening import is_on_the_hub
from hf_mmembed.processes import world
from hf_mmembed.training.arguments import SaHaTrainingArguments, bf16_here
from hf_mmembed.training.models import weight_files
from hf_mmembed.training.recipe_files import names_in, read_recipe, require_known, require_types, types_of

from .sft import NOT_PUSHED, fine_tune
from .templates import LATEST, load_templates
from .traced import traced_trainer
from .traces import TraceStore
from .unified import make_unified, open_unified

__all__ = ["VARIANTS", "ThinkingRecipe", "load_thinking_recipe", "thinking_recipe_names", "train_thinking"]

_FOLDER = resources.files("hf_mmembed") / "recipes" / "thinking"
VARIANTS = ("sft", "embedder", "unified")


@dataclass(frozen=True)
class ThinkingRecipe:
    """What a recipe file says.

    Attributes:
        variant: ``"sft"`` trains a reasoner, ``"embedder"`` an embedder, ``"unified"`` a head on a reasoner.
        model: A multimodal LLM; for ``"embedder"`` also an embedder or an adapter.
        data: Arguments of `read_pairs`, ``source`` first of all.
        traces: The store that ``hf-mmembed think`` has filled.
        output: Directory of the run. The result will be in ``model`` inside it.
        clusters: Directory of mined clusters, for batches of hard negatives. Defaults to random batches.
        templates: Version of the prompts, or a YAML file of them, as when the traces were made. Defaults to the latest.
        families: Task family of the queries, or one by subset: as when the traces were made. A head is trained under
            the prompt of ``content`` unless there is one family for all.
        trace_dropout: Share of traces left out. Defaults to 0.1 for ``"embedder"`` and to 0 for ``"unified"``; ``"sft"``
            has none.
        allow_gold: Take traces that saw the answer. Defaults to False.
        head: Of ``"unified"``. Defaults to ``"self_init"``.
        head_options: Such as ``{"layers": 8}``.
        training: `SaHaTrainingArguments`, or transformers' `TrainingArguments` for ``"sft"``, but for the directory.

    Raises:
        ValueError: The variant is unknown, or ``"sft"`` is given a trace dropout or ``push_to_hub``.
    """

    variant: str
    model: str
    data: Mapping[str, Any]
    traces: str
    output: str
    clusters: str | None = None
    templates: str = LATEST
    families: Any = None
    trace_dropout: float | None = None
    allow_gold: bool = False
    head: str = "self_init"
    head_options: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ValueError(f"variant is {self.variant!r}; use one of {', '.join(map(repr, VARIANTS))}")
        if self.variant == "sft" and self.trace_dropout is not None:
            raise ValueError(f"trace_dropout is {self.trace_dropout}, but 'sft' learns to write traces; leave it out")
        if self.variant == "sft" and self.training.get("push_to_hub"):  # before the data are read
            raise ValueError(f"training.{NOT_PUSHED.format(Path(self.output, 'model'))}")


def thinking_recipe_names() -> list[str]:
    """Recipes that come with the package."""
    return names_in(_FOLDER)


def load_thinking_recipe(source: str | Path, overrides: Mapping[str, Any] | None = None) -> ThinkingRecipe:
    """Read a recipe.

    Args:
        source: One of `thinking_recipe_names`, or a YAML file.
        overrides: Values that win over the file; a key may name a part, as in ``{"training.max_steps": 10}``.

    Raises:
        FileNotFoundError: There is no such recipe or file.
        ValueError: The file is no recipe, or a key is unknown, of which the message names the nearest, or a value of
            ``data`` is of another type than it must be.

    Example:
        >>> load_thinking_recipe("tte-sft", {"training.max_steps": 3}).training["max_steps"]
        3
    """
    values = read_recipe(source, _FOLDER, overrides)
    require_known(source, "", values, {item.name for item in fields(ThinkingRecipe)})
    arguments = TrainingArguments if values.get("variant") == "sft" else SaHaTrainingArguments
    of_training = {item.name for item in fields(arguments) if item.name != "output_dir"}
    require_known(source, "training.", values.get("training") or {}, of_training)
    if missing := {"variant", "model", "data", "traces", "output"} - values.keys():
        raise ValueError(f"{source} lacks {', '.join(sorted(missing))}")
    require_types(source, "data.", values["data"], types_of(read_pairs))
    if "source" not in values["data"]:
        raise ValueError(f"{source} lacks data.source")
    return ThinkingRecipe(**values)


def train_thinking(recipe: ThinkingRecipe, *, pairs: Dataset | None = None, resume: bool = False) -> Path:
    """Train as the recipe says.

    Args:
        recipe: What to do.
        pairs: Instead of ``recipe.data``.
        resume: Go on from the last checkpoint in ``recipe.output``, if there is one.

    Returns:
        The result, ``model`` in ``recipe.output``.

    Raises:
        FileNotFoundError: There is no store of traces.
        OSError: The model or the data cannot be read.
        ValueError: A value of the recipe does not fit, the run to go on with began with something else, or
            another run writes to ``recipe.output``.
    """
    output = Path(recipe.output)
    if not Path(recipe.traces).is_file():
        raise FileNotFoundError(f"there are no traces at {recipe.traces}; make them with `hf-mmembed think`")
    if pairs is None:
        pairs = read_pairs(**recipe.data)
    if recipe.variant == "sft":
        return _fine_tuned(recipe, pairs, output, resume=resume)
    # Before anything asks for the other processes: they are joined with its timeout.
    args = SaHaTrainingArguments(output_dir=str(output), **recipe.training)
    with only_run(output):
        model: Any = recipe.model
        if recipe.variant == "unified":
            model = open_unified(_untrained(recipe, output / "untrained", resume=resume))
        dropout = 0.0 if recipe.variant == "unified" else 0.1
        with TraceStore(recipe.traces) as store:
            trainer = traced_trainer(
                model,
                args,
                pairs,
                store,
                None if recipe.clusters is None else Clusters.load(recipe.clusters),
                dropout=dropout if recipe.trace_dropout is None else recipe.trace_dropout,
                allow_gold=recipe.allow_gold,
            )
        if recipe.variant == "unified":  # what the head was made of, which is not read where there is a head already
            trainer.depends_on |= {"families": recipe.families, "templates": recipe.templates}
            if not _is_gone(recipe.model):
                trainer.depends_on["reasoner"] = weight_files(recipe.model) or recipe.model
        trainer.train(resume)
        return trainer.save_result(output / "model")


def _fine_tuned(recipe: ThinkingRecipe, pairs: Dataset, output: Path, *, resume: bool) -> Path:
    defaults = {
        "report_to": "none",
        "disable_tqdm": not sys.stderr.isatty(),
        "dataloader_pin_memory": torch.accelerator.is_available(),
    }
    training = {**defaults, **recipe.training}
    training["bf16"] = bf16_here(training.get("bf16", False), training.get("use_cpu", False))
    args = TrainingArguments(output_dir=str(output), **training)
    with only_run(output), TraceStore(recipe.traces) as store:
        return fine_tune(
            recipe.model, pairs, store, args, output / "model",
            families=recipe.families, templates=load_templates(recipe.templates), allow_gold=recipe.allow_gold,
            resume=resume,
        )  # fmt: skip


def _is_gone(model: str) -> bool:
    """Whether this names a directory that is not there any more, and nothing on the Hub, whose names have two parts."""
    if Path(model).is_dir():
        return False
    return model.count("/") != 1 or model.startswith((".", "/", "~")) or not is_on_the_hub(model)


def _untrained(recipe: ThinkingRecipe, directory: Path, *, resume: bool) -> Path:
    """The reasoner with a new head, made by the first process; where a run is resumed, the one that it began with."""
    world().once(partial(_make_untrained, recipe, directory, resume=resume))
    return directory


def _make_untrained(recipe: ThinkingRecipe, directory: Path, *, resume: bool) -> None:
    wanted = recipe.head, dict(recipe.head_options)
    if (directory / "config.json").is_file():
        config = UnifiedConfig.from_pretrained(directory)
        begun = resume or any(directory.parent.glob("checkpoint-*"))
        if begun and (config.head, config.head_options) == wanted:
            return
        if begun:
            raise ValueError(
                f"the run in {directory.parent} has the head {config.head!r} with {config.head_options}, the recipe "
                f"{wanted[0]!r} with {wanted[1]}: resume it as it was begun, or choose another output"
            )
        shutil.rmtree(directory)
    family = recipe.families if isinstance(recipe.families, str) else "content"
    make_unified(
        recipe.model, directory, head=wanted[0], head_options=wanted[1], task_family=family, templates=recipe.templates
    )
