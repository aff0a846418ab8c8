"""`hf-mmembed train`: fine-tune an embedder on pairs, as a recipe says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from .config import values_set
from .models import embedder

__all__ = ["DRAWN_WORLD", "train"]

DRAWN_WORLD = "drawn-world"
DRAWN_FAMILIES, DRAWN_SEED = 120, 0


def train(
    config: Annotated[str, typer.Option("--config", help="A recipe: the name of one that ships, or a YAML file.")],
    model: Annotated[
        str | None, typer.Option(help="A multimodal LLM, an embedder, an adapter, or mmembed-tiny.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Pairs: a folder, a table, a Hub id, or drawn-world.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Directory of the run; the result will be in OUTPUT/model.")
    ] = None,
    clusters: Annotated[Path | None, typer.Option(help="What `hf-mmembed mine` wrote, instead of mining now.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Another value of the recipe, as in training.max_steps=100; may be repeated."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the last complete checkpoint.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Do everything up to the first step, and say what.")
    ] = False,
) -> None:
    """Fine-tune an embedder on pairs: mine clusters with its own eyes, then train on them.

    With several processes: accelerate launch --num_processes 8 -m hf_mmembed.cli train --config RECIPE (without GPUs,
    accelerate needs --multi_gpu all the same to start more than one).

    Example: hf-mmembed train --config saha-tiny
    """
    from hf_mmembed.mining import Clusters
    from hf_mmembed.processes import world
    from hf_mmembed.training import recipes

    overrides: dict[str, Any] = {}
    overrides |= values_set(set_ or [])
    flags = {"model": model, "data.source": data, "output": None if output is None else str(output)}
    recipe = recipes.load_recipe(config, overrides | {key: value for key, value in flags.items() if value is not None})
    pairs = _drawn_pairs() if recipe.data.get("source") == DRAWN_WORLD else None
    recipe = replace(recipe, model=embedder(recipe.model))
    given = None if clusters is None else Clusters.load(clusters)
    if dry_run:
        summary = recipes.prepare(recipe, pairs=pairs, clusters=given, resume=resume).summary()
        words = [f"{name:>24}  {value}" for name, value in summary.items()]
    else:
        try:
            words = [f"wrote {recipes.train(recipe, pairs=pairs, clusters=given, resume=resume)}"]
        except KeyboardInterrupt:
            raise KeyboardInterrupt("--resume goes on from the last checkpoint, if one was written") from None
    if world().main:
        typer.echo("\n".join(words))


def _drawn_pairs() -> Any:
    from hf_mmembed.tiny.pairs import draw_pairs

    return draw_pairs(DRAWN_SEED, families=DRAWN_FAMILIES).pairs
