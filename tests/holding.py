"""Whether a run holds a directory, now and at each call of some function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hf_mmembed.lock import only_writer

__all__ = ["is_held", "watch"]


def is_held(directory: Path) -> bool:
    """Whether somebody writes to the directory."""
    try:
        with only_writer(directory):
            return False
    except ValueError:
        return True


def watch(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, directory: Path) -> list[bool]:
    """A list that grows at each call of `owner`'s function: whether the directory was held."""
    held: list[bool] = []
    function = getattr(owner, name)

    def watched(*arguments: Any, **options: Any) -> Any:
        held.append(is_held(directory))
        return function(*arguments, **options)

    monkeypatch.setattr(owner, name, watched)
    return held
