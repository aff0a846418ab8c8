"""`hf-mmembed card`: the model card of a directory, made of what was really run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .config import ConfigOption

__all__ = ["card"]


def card(
    directory: Annotated[Path, typer.Argument(help="A converted or fine-tuned checkpoint, or an adapter.")],
    repo: Annotated[
        str | None, typer.Argument(help="ORG/NAME for the snippets. Default: the directory's name.")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Print a model card from a checkpoint's files: config, recipe, mining, training, scores.

    A README.md that somebody wrote is checked and printed as it is. `hf-mmembed push` uploads the same card.

    To edit it, write it to another file first: the shell empties the one that it writes to before it is read.

    Example: hf-mmembed card my-embedder my-name/my-embedder > card.md && mv card.md my-embedder/README.md
    """
    from hf_mmembed.hub import card_of

    if not directory.is_dir():
        raise ValueError(f"there is no directory {directory}")
    typer.echo(card_of(directory, repo_id=repo or directory.resolve().name), nl=False)
