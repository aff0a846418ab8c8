"""A whole training in one YAML file: model, data, mining, training, and where the result goes.

In: the name of a recipe that comes with the package, or a file of the same form. Out: a trainer with everything in
place (`prepare`), or the trained checkpoint (`train`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import resources
from inspect import signature
from pathlib import Path
from typing import Any, get_type_hints

from datasets import Dataset

from hf_mmembed.data.pairs import read_pairs
from hf_mmembed.identity import inert_adapters
from hf_mmembed.mining import (
    DEFAULT_RULES,
    Clusters,
    ContentIds,
    FilterRules,
    changed_rules,
    content_ids,
    mine_pairs,
)
from hf_mmembed.mining.digests import KEPT_DIGESTS
from hf_mmembed.model.presets import load_prompt
from hf_mmembed.only_run import only_run
from hf_mmembed.processes import world
from hf_mmembed.sentence_transformer import MMEmbedder

from .arguments import SaHaTrainingArguments
from .checkpoints import last_complete, require_no_run
from .models import open_embedder, open_for_training
from .recipe_files import names_in, read_recipe, require_types, types_of
from .run_file import digests_of
from .trainer import SaHaTrainer

__all__ = ["FOLDER", "Recipe", "load_recipe", "prepare", "recipe_names", "train"]

logger = logging.getLogger(__name__)

_NOT_MINING = ("pairs", "embedder", "out", "model")  # of `mine_pairs`: not matters of a recipe

_ASKED = ("strategy", "k", "mult", "seed", "canonical_instruction")

FOLDER = resources.files("hf_mmembed") / "recipes"


@dataclass(frozen=True)
class Recipe:
    """What a recipe file says.

    Attributes:
        model: A multimodal LLM, an embedder, or an adapter over one; see `open_for_training`.
        data: Arguments of `read_pairs`, ``source`` first of all.
        output: Directory of the run. The result will be in ``model`` inside it.
        prompt: Of the result. Defaults to that of the embedder, and to ``"saha"`` for a multimodal LLM.
        dtype: Of the frozen weights. Defaults to ``"auto"``, that of the checkpoint.
        image_size: ``size`` of the family's image processor, kept with the result. Defaults to that of the checkpoint.
        mining: Arguments of the mining, and optionally ``model``, the embedder that mines. ``rules`` holds fields of
            `FilterRules` that differ from those of the strategy. Defaults to those of ``hf-mmembed mine``; None for
            random batches.
        training: `SaHaTrainingArguments`, but for the output directory.
        distillation: A first stage, which ``hf-mmembed distill`` reads and the training does not; see
            `hf_mmembed.distillation.DistillationRecipe`.
    """

    model: str
    data: Mapping[str, Any]
    output: str
    prompt: str | None = None
    dtype: str = "auto"
    image_size: Mapping[str, int] | None = None
    mining: Mapping[str, Any] | None = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    distillation: Mapping[str, Any] | None = None


def recipe_names() -> list[str]:
    """Recipes that come with the package."""
    return names_in(FOLDER)


def load_recipe(source: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe.

    Args:
        source: One of `recipe_names`, or a YAML file.
        overrides: Values that win over the file; a key may name a part, as in ``{"training.max_steps": 10}``.

    Raises:
        FileNotFoundError: There is no such recipe or file.
        ValueError: The file is no recipe, a key is unknown, of which the message names the nearest, or a value is of
            another type than it must be.

    Example:
        >>> load_recipe("saha-tiny", {"training.max_steps": 3}).training["max_steps"]
        3
    """
    values = read_recipe(source, FOLDER, overrides)
    require_types(source, "", values, get_type_hints(Recipe))
    require_types(
        source, "training.", values.get("training", {}), types_of(SaHaTrainingArguments, without=("output_dir",))
    )
    mining = values.get("mining") or {}
    types = types_of(mine_pairs, without=_NOT_MINING)
    require_types(source, "mining.", mining, {**types, "model": str | None, "rules": Mapping | None})
    require_types(source, "mining.rules.", mining.get("rules") or {}, get_type_hints(FilterRules))
    try:
        _rules(mining)
    except ValueError as error:
        raise ValueError(f"{source}: mining.rules: {error}") from error
    if missing := {"model", "data", "output"} - values.keys():
        raise ValueError(f"{source} lacks {', '.join(sorted(missing))}")
    require_types(source, "data.", values["data"], types_of(read_pairs))
    if "source" not in values["data"]:
        raise ValueError(f"{source} lacks data.source")
    return Recipe(**values)


def prepare(
    recipe: Recipe,
    *,
    pairs: Dataset | None = None,
    clusters: Clusters | None = None,
    resume: bool = False,
    args: SaHaTrainingArguments | None = None,
    **trainer: Any,
) -> SaHaTrainer:
    """Everything up to the first step: data read, model open, clusters mined.

    Args:
        recipe: What to do.
        pairs: Instead of reading ``recipe.data``, which should say what they are.
        clusters: Instead of mining.
        resume: Where there is a complete checkpoint, its run goes on: take the clusters that it began with, unless the
            recipe asks for others.
        args: Those of the recipe, where they are made already.
        **trainer: More arguments of `SaHaTrainer`.

    Raises:
        OSError: The model or the data cannot be read.
        ValueError: A value of the recipe does not fit, another run writes to ``recipe.output``, or there are
            checkpoints of an earlier one and ``resume`` is not asked for.
    """
    args = args or _arguments(recipe)
    if pairs is None:
        pairs = read_pairs(**recipe.data)
    with only_run(args.output_dir):
        if not resume:
            world().once(partial(require_no_run, args.output_dir))  # before its clusters are replaced
        model = _as_asked(
            open_for_training(recipe.model, args, prompt=recipe.prompt or "saha", dtype=recipe.dtype), recipe
        )
        ids = world().once(partial(content_ids, pairs, kept=Path(args.output_dir, KEPT_DIGESTS)))
        mine = None if recipe.mining is None else partial(mine_clusters, pairs=pairs, options=recipe.mining, ids=ids)
        given = clusters is not None
        if not given and recipe.mining is not None and mine is not None:
            miner, directory = _miner(recipe, model), Path(args.output_dir, "clusters", "epoch-0")
            if resume:
                clusters = world().once(partial(_mined_before, directory, miner, recipe.mining, ids))
            clusters = mine(miner, directory) if clusters is None else clusters
        asked = {name: value for name, value in asdict(recipe).items() if not (given and name == "mining")}
        return SaHaTrainer(model, args, pairs, clusters, ids=ids, mine=mine, recipe=asked, **trainer)


def _arguments(recipe: Recipe) -> SaHaTrainingArguments:
    return SaHaTrainingArguments(output_dir=str(Path(recipe.output)), **recipe.training)


def _mined_before(directory: Path, miner: MMEmbedder, options: Mapping[str, Any], ids: ContentIds) -> Clusters | None:
    """What a run to go on with began with; None where there is no such run, or where other clusters are asked for."""
    if not directory.is_dir() or last_complete(directory.parents[1]) is None:
        return None
    try:
        found = Clusters.load(directory)
    except ValueError as error:
        logger.warning("%s; mining anew", error)
        return None
    defaults = {name: parameter.default for name, parameter in signature(mine_pairs).parameters.items()}
    asked = {name: options.get(name, defaults[name]) for name in _ASKED}
    asked |= {"data": ids.fingerprint, "miner": _that_matter(digests_of(miner), miner)}
    if rules := _rules(options) or DEFAULT_RULES.get(asked["strategy"]):
        asked["rules"] = asdict(rules)
    made = {"mult": asked["mult"], **found.settings, "strategy": found.strategy}  # without mult if random
    made["miner"] = _that_matter(made.get("miner") or {}, miner)
    subsets = made.get("subsets") or {}
    labels = options.get("label_subsets") or {}
    if {name: made.get(name) for name in asked} != asked or any(
        subsets.get(name, {}).get("label_subset") != value for name, value in labels.items()
    ):
        return None
    logger.info("going on with the clusters in %s", directory)
    return found


def mine_clusters(
    model: MMEmbedder, directory: Path, *, pairs: Dataset, options: Mapping[str, Any], ids: ContentIds | None = None
) -> Clusters:
    """Mine with an embedder as it is in memory; a run that was killed goes on where it was.

    Args:
        model: The embedder, trained or not.
        directory: For embeddings and clusters.
        pairs: What to mine.
        options: Of `mine_pairs`; ``model`` is not one.
        ids: What `content_ids` says of the pairs by default, which spares reading all their pictures again.
    """
    identity = digests_of(model)
    known = {"ids": ids} if options.get("canonical_instruction") is None else {}
    chosen = {"device": model.device, **known, **options}
    chosen.pop("model", None)
    with _inert_adapters_off(model):
        return mine_pairs(pairs, model, directory, model=identity, **{**chosen, "rules": _rules(options)}).clusters


def _that_matter(digests: Mapping[str, str], miner: MMEmbedder) -> dict[str, str]:
    """Without that of weights of which some are a fresh adapter's: it may begin elsewhere, and is off while mining."""
    return {name: value for name, value in digests.items() if name != "weights" or not inert_adapters(miner)}


@contextmanager
def _inert_adapters_off(model: MMEmbedder) -> Iterator[None]:
    """A fresh DoRA changes no embedding and makes them take several times as long: it computes norms of all weights."""
    layers: list[Any] = inert_adapters(model)
    for layer in layers:
        layer.enable_adapters(enabled=False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(enabled=True)


def _rules(mining: Mapping[str, Any]) -> FilterRules | None:
    """None: those of the strategy."""
    changes = mining.get("rules")
    return changed_rules(mining.get("strategy", "saha"), changes) if changes else None


def _miner(recipe: Recipe, model: MMEmbedder) -> MMEmbedder:
    """The embedder that mines at the beginning: the one to be trained, unless the recipe names another."""
    other = (recipe.mining or {}).get("model")
    if other is None:
        return model
    directory = Path(recipe.output) / "miner"
    return _as_asked(open_embedder(other, directory, prompt=recipe.prompt or "saha", dtype=recipe.dtype), recipe)


def _as_asked(embedder: MMEmbedder, recipe: Recipe) -> MMEmbedder:
    """The same embedder, which reads its inputs as the recipe says."""
    if recipe.prompt is not None:
        embedder.processor.prompt = load_prompt(recipe.prompt)  # an embedder has one of its own
    if recipe.image_size is not None:
        size = embedder.processor.image_processor.size
        embedder.processor.image_processor.size = type(size)(**recipe.image_size)
    return embedder


def train(
    recipe: Recipe, *, pairs: Dataset | None = None, clusters: Clusters | None = None, resume: bool = False
) -> Path:
    """Train as the recipe says.

    Args:
        recipe: What to do.
        pairs: Instead of ``recipe.data``.
        clusters: Instead of mining.
        resume: Go on from the last complete checkpoint in ``recipe.output``, if there is one.

    Returns:
        The result, ``model`` in ``recipe.output``.

    Raises:
        OSError: The model or the data cannot be read.
        ValueError: A value of the recipe does not fit, the run to go on with began with something else, another run
            writes to ``recipe.output``, or the loss is not a number.
    """
    args = _arguments(recipe)  # before anything asks for the other processes: they are joined with its timeout
    with only_run(args.output_dir):
        trainer = prepare(recipe, pairs=pairs, clusters=clusters, resume=resume, args=args)
        trainer.train(resume)
        return trainer.save_result(Path(recipe.output) / "model")
