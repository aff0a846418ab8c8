"""`hf-mmembed demo`: the Space on this machine."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from .config import ConfigOption

__all__ = ["demo", "space_folder"]


def space_folder() -> Path:
    """Where the Space's files are: in the package where it was installed as a wheel, else in the repository."""
    in_package = Path(__file__).parents[1] / "spaces_app"
    return in_package if in_package.is_dir() else Path(__file__).parents[2] / "spaces_app"


def demo(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Embedder: a directory, a Hub id, or mmembed-tiny. Default: the one in the environment variable "
            "MMEMBED_MODEL, or else mmembed-tiny."
        ),
    ] = None,
    port: Annotated[int | None, typer.Option(help="Default: the first free one from 7860.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    browser: Annotated[bool, typer.Option(help="Open a browser.")] = True,
    config: ConfigOption = None,
) -> None:
    """Try a model in the browser: search, prompt lab, similarity map, hard-negative explorer.

    With a generative model in the environment variable MMEMBED_REASONER, the search can think first.

    Example: hf-mmembed demo my-embedder
    """
    if find_spec("gradio") is None:
        raise ImportError('the demo needs gradio: pip install "hf-mmembed[demo]"')
    sys.path.insert(0, str(space_folder()))
    import app  # type: ignore[import-not-found]

    app.launch(model, server_name=host, server_port=port, inbrowser=browser)
