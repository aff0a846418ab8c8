"""Folders without the files that nobody put there: a Mac writes some of its own beside those of the user.

In: a folder. Out: its entries, without hidden ones and those of a file manager.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["is_litter", "visible"]


def is_litter(name: str) -> bool:
    """Whether macOS made it: the view of a folder, or what a disk or an archive cannot keep within a file.

    >>> [name for name in (".DS_Store", "._0.jpg", "__MACOSX", "0.jpg", ".git") if is_litter(name)]
    ['.DS_Store', '._0.jpg', '__MACOSX']
    """
    return name in (".DS_Store", "__MACOSX") or name.startswith("._")


def visible(folder: Path, pattern: str | None = None) -> list[Path]:
    """What a folder holds, sorted, without what is hidden or `is_litter`, and without what lies below that.

    Args:
        folder: It may be hidden itself.
        pattern: As for `Path.glob`. Defaults to all that lies directly in the folder.

    Raises:
        OSError: Without a pattern: the folder cannot be listed.
    """
    found = folder.iterdir() if pattern is None else folder.glob(pattern)
    above = len(folder.parts)
    return sorted(path for path in found if not any(part[0] == "." or is_litter(part) for part in path.parts[above:]))
