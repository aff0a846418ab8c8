"""The ``--column`` option of the commands that read pairs, and what else is of the form NAME=VALUE.

In: words of the command line. Out: names and values, as `read_pairs` and others take them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

__all__ = ["ColumnOption", "assignment", "columns_named"]

ColumnOption = Annotated[
    list[str] | None,
    typer.Option(help="Which column is what, `query_text=question`; repeat. Default: the usual names."),
]


def columns_named(given: Sequence[str] | None) -> dict[str, str] | None:
    """What ``--column`` says, if anything.

    Raises:
        typer.BadParameter: One is not of the form NAME=VALUE.
    """
    return dict(assignment(item, "--column") for item in given or []) or None


def assignment(item: str, option: str) -> tuple[str, str]:
    """Name and value of one NAME=VALUE.

    Raises:
        typer.BadParameter: It is not of that form.

    Example:
        >>> assignment("query_text=question", "--column")
        ('query_text', 'question')
    """
    name, equals, value = item.partition("=")
    if not (name and equals and value):
        raise typer.BadParameter(f"{item!r} is not of the form NAME=VALUE", param_hint=option)
    return name, value
