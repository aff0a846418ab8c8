"""The Typer application: registers one plain function per command and turns errors into exit codes.

To add a command, write ``cli/NAME.py`` with a function ``NAME``, import it below and put it into a panel of the help.
Keep torch, transformers and the like out of the top of the command file.
"""

from __future__ import annotations

import codecs
import io
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from hf_mmembed import __version__

from .bench import bench
from .card import card
from .convert import convert
from .demo import demo
from .distill import distill
from .doctor import DISTRIBUTION, doctor, extra_with
from .embed import embed
from .evaluate import evaluate
from .export import export
from .index import index
from .judge import judge
from .mine import mine
from .printable import printable
from .prompt import prompt
from .push import push
from .quickstart import quickstart
from .search import search
from .think import think, think_train
from .tiny import tiny
from .torchvision_advice import missing_torchvision
from .train import train
from .verify import verify

__all__ = ["app", "main"]

logger = logging.getLogger(__name__)

app = typer.Typer(
    name="hf-mmembed",
    help="Turn any generative multimodal LLM into an embedding model for text, images and both.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

_PANELS: dict[str, tuple[Any, ...]] = {
    "Start": (quickstart, convert, doctor),
    "Embed and search": (embed, index, search, demo, prompt),
    "Train": (mine, judge, distill, train, think, think_train),
    "Measure": (evaluate, bench, tiny),
    "Publish": (export, card, push, verify),
}
for _panel, _commands in _PANELS.items():
    for _command in _commands:
        if isinstance(_command, typer.Typer):
            app.add_typer(_command, rich_help_panel=_panel)
        else:
            app.command(rich_help_panel=_panel)(_command)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Log details, and the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    # Such pictures are refused, in words of our own.
    warnings.filterwarnings("ignore", r"Image size \(\d+ pixels\) exceeds limit")
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    logging.getLogger("hf_mmembed").setLevel(logging.DEBUG if debug else logging.INFO)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code.

    Bad input (``ValueError``), files (``OSError``) and missing packages (``ImportError``) end in one line on stderr and
    exit code 1; wrong usage ends in code 2, Ctrl-C in code 130. Anything else is a bug and keeps its traceback.

    Args:
        args: The words after the program's name. Defaults to those of the process.

    Raises:
        SystemExit: Always, with the exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        _take_every_character(stream)
    try:
        _require_working_directory()
        app(args=None if args is None else list(args), prog_name="hf-mmembed")
    except (ValueError, OSError, ImportError) as error:
        logger.debug("where it happened", exc_info=True)
        typer.echo(f"error: {_one_line(error)}", err=True)
        sys.exit(1)
    except SystemExit as stop:
        # Typer turns Ctrl-C into an exit code without a word.
        interrupt = getattr(stop.__context__, "__cause__", None)
        if isinstance(interrupt, KeyboardInterrupt):
            typer.echo("; ".join(["\nstopped", *map(str, interrupt.args)]), err=True)
        raise


def _take_every_character(stream: Any) -> None:
    """Files and pipes are UTF-8 on Windows as elsewhere; another encoding that was chosen spells out what it lacks."""
    # None without a console, and anything at all where a program calls `main`.
    if not isinstance(stream, io.TextIOWrapper) or codecs.lookup(stream.encoding).name == "utf-8":
        return
    if os.name == "nt" and not stream.isatty():
        stream.reconfigure(encoding="utf-8", errors=stream.errors)
    else:
        stream.reconfigure(errors="backslashreplace")


def _require_working_directory() -> None:
    """Or it would be missed later, by something that does not say what is missing."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise FileNotFoundError("the working directory is gone: cd to one that exists") from None


def _one_line(error: Exception) -> str:
    message = str(error)
    if "Original Traceback (most recent call last)" in message:  # torch's, of a process that loads data
        message = message.strip().rpartition("\n")[2].partition(": ")[2]
    message = printable(" ".join(message.split())) or type(error).__name__
    if isinstance(error, ModuleNotFoundError) and (extra := extra_with(str(error.name))):
        return f'{message}; it comes with an extra: pip install "{DISTRIBUTION}[{extra}]"'
    # transformers names what it could not import and leaves why to the cause.
    cause = error.__cause__ if "Could not import module" in message else None
    if cause is not None:
        message = f"{printable(' '.join(str(cause).split()))}: {message}"
    what, absent, _ = message.partition(" requires the Torchvision library")
    if absent:
        return f"{what}{absent}, which is not installed: {missing_torchvision()}"
    if cause is not None or "torchvision" in message or (isinstance(error, ImportError) and "transformers" in message):
        message += " (run `hf-mmembed doctor` to see what is broken and the pip command that fixes it)"
    return message
