"""`hf-mmembed distill`: UniME's first stage, a text teacher for the language model of an embedder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from .config import values_set
from .models import embedder, teacher
from .train import DRAWN_WORLD

__all__ = ["distill"]

DRAWN_PAIRS, DRAWN_SEED = 1000, 0


def distill(
    config: Annotated[
        str, typer.Option("--config", help="A recipe with a part `distillation`, by name or YAML file.")
    ],
    model: Annotated[str | None, typer.Option(help="A multimodal LLM, an embedder, or mmembed-tiny.")] = None,
    teacher_: Annotated[
        str | None, typer.Option("--teacher", help="Any model of sentence-transformers: a directory or a Hub id.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Sentence pairs: a table, a Hub id, a .txt of sentences, or drawn-world.")
    ] = None,
    column: Annotated[str | None, typer.Option(help="Column of plain sentences, where DATA holds no pairs.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Directory of the run; the result will be in OUTPUT/model.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Another value of the part, as in training.max_steps=100; may be repeated."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the last complete checkpoint.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Do everything up to the first step, and say what.")
    ] = False,
) -> None:
    """Teach the language model of a multimodal LLM a text teacher's idea of similarity (UniME, stage 1).

    The second stage starts from the result: hf-mmembed train --config RECIPE --model OUTPUT/model. Several processes: as
    for train.

    Example: hf-mmembed distill --config unime-tiny
    """
    from hf_mmembed import distillation
    from hf_mmembed.processes import world

    # The recipe's columns are those of its own data.
    overrides: dict[str, Any] = {} if data is None else {"data": {"source": data}}
    overrides |= values_set(set_ or [])
    flags = {
        "model": model,
        "teacher": teacher_,
        "data.column": column,
        "output": None if output is None else str(output),
    }
    overrides |= {key: value for key, value in flags.items() if value is not None}
    recipe = distillation.load_distillation_recipe(config, overrides)
    pairs = _drawn_sentences() if recipe.data.get("source") == DRAWN_WORLD else None
    recipe = replace(recipe, model=embedder(recipe.model), teacher=teacher(recipe.teacher))
    if dry_run:
        summary = distillation.prepare_distillation(recipe, pairs=pairs).summary()
        words = [f"{name:>24}  {value}" for name, value in summary.items()]
    else:
        words = [f"wrote {distillation.distill(recipe, pairs=pairs, resume=resume)}"]
    if world().main:
        typer.echo("\n".join(words))


def _drawn_sentences() -> Any:
    from hf_mmembed.tiny.sentences import draw_sentences

    return draw_sentences(DRAWN_SEED, pairs=DRAWN_PAIRS)
