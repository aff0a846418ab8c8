"""Names and texts come from anywhere: no control character of theirs reaches the terminal."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str) -> str:
    r"""`text` with a space for every character that a terminal may obey rather than show.

    >>> printable("red\x1b[2J.png")
    'red [2J.png'
    """
    return "".join(char if char.isprintable() else " " for char in text)
