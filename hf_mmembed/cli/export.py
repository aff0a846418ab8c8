"""`hf-mmembed export`: an embedder for engines that run no remote code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .config import ConfigOption
from .models import embedder
from .torchvision_advice import lacks_torchvision, missing_torchvision

__all__ = ["export"]


def export(
    model: Annotated[str, typer.Argument(help="Embedder: a directory, a Hub id, or mmembed-tiny.")],
    out: Annotated[Path, typer.Argument(help="Directory to write; it must not exist yet, or be empty.")],
    native: Annotated[
        bool, typer.Option("--native", help="Stock architecture, chat template and sentence-transformers files.")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.")] = None,
    config: ConfigOption = None,
) -> None:
    """Write an embedder in the stock format of its backbone, with the same embeddings.

    The result opens with plain sentence-transformers, without trust_remote_code, and in vLLM's pooling mode.

    Example: hf-mmembed export my-embedder my-embedder-native --native
    """
    if not native:
        raise typer.BadParameter("say what to export to; --native is the one format there is", param_hint="--native")
    from hf_mmembed.hub import export_native

    typer.echo(f"wrote {export_native(embedder(model), out, revision=revision)}")
    if lacks_torchvision(out):
        typer.echo(f"to open it: {missing_torchvision()}", err=True)
