"""The one shape in which inputs reach the embedder: a `Row` of a `Source`.

In: nothing. Out: the types that `folders` and `tables` produce and `hf_mmembed.index` consumes.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from hf_mmembed.transient import is_transient

__all__ = [
    "IMAGE_SUFFIXES",
    "Listing",
    "Row",
    "Source",
    "Unreadable",
    "UnreadableNow",
    "file_state",
    "has_lone_surrogate",
    "hash_parts",
    "require_utf8",
]

_READ = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff")
_REFUSED = (".heic", ".heif")  # meant as pictures: opening them says what to do
IMAGE_SUFFIXES = frozenset({*_READ, *_REFUSED})


@dataclass(frozen=True)
class Row:
    """One thing to embed: a text, a picture, or both.

    Attributes:
        name: What to call it in a message: the path relative to the input, or ``captions.csv row 12``.
        text: The text, never taken for a path or URL. None when there is none.
        image: The picture, still encoded: a local path, or the bytes of a file. None when there is none.
    """

    name: str
    text: str | None = None
    image: Path | bytes | None = None

    @property
    def path(self) -> str | None:
        """Where the picture lies, if it is a file."""
        return str(self.image) if isinstance(self.image, Path) else None


@dataclass(frozen=True)
class Unreadable:
    """An item that could not be embedded, and why."""

    row: int | None  # None: met while listing, before it got a row number
    name: str
    reason: str


class UnreadableNow(Unreadable):
    """An item that the disk did not give this time, and may the next."""


class Source(Protocol):
    """A sequence of rows, read on demand.

    Attributes:
        kind: ``"file"``, ``"folder"``, ``"imagefolder"``, ``"table"`` or ``"dataset"``.
        path: Absolute path of the input.
        image_column: Column the pictures come from; None for a plain folder.
        text_column: Column the texts come from, if any.
        notes: What the user should know about the listing, one sentence each.
        unreadable: What could not even be listed.
    """

    kind: str
    path: Path
    image_column: str | None
    text_column: str | None
    notes: list[str]
    unreadable: list[Unreadable]

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Row:
        """The row itself. Raises `ValueError` with a reason when it cannot be an input."""
        ...

    def name(self, row: int) -> str:
        """What to call the row in a message; never fails."""
        ...

    def fingerprint(self, row: int) -> str:
        """Changes when the row's content changes; never fails.

        Texts count by their content, picture files by path, size and modification time (they are not read for it),
        pictures stored inside a table by the table's own size and modification time.
        """
        ...


@dataclass
class Listing:
    """What went wrong or was left out while a source was listed."""

    notes: list[str] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)

    def refuse(self, name: str, reason: str, error: OSError | None = None) -> None:
        """Notes an item that cannot become a row, for good or, by the error, for now."""
        kind = UnreadableNow if is_transient(error) else Unreadable
        self.unreadable.append(kind(None, _printable(name), reason))


def file_state(path: Path) -> str:
    """Size, modification time and readability of a file, without reading it; ``"missing"`` when it is not there."""
    try:
        stat = path.stat()
    except (OSError, ValueError):  # ValueError: a NUL byte in the name
        return "missing"
    return f"{stat.st_size} {stat.st_mtime_ns} {'readable' if os.access(path, os.R_OK) else 'locked'}"


def has_lone_surrogate(text: str) -> bool:
    """Whether a text holds half of a surrogate pair, which cannot be encoded."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def require_utf8(path: Path) -> None:
    """Raises `ValueError` for a path that cannot be written down, in an index or a message, as text."""
    if has_lone_surrogate(str(path)):
        raise ValueError(f"the name of {_printable(path)} is not valid UTF-8: rename it")


def _printable(name: str | Path) -> str:
    """A file's name with the bytes that are not UTF-8, lone surrogates to Python, spelled out."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def hash_parts(*parts: str | None) -> str:
    """Digest of a sequence of strings, 32 hexadecimal digits; None differs from the empty string.

    >>> hash_parts("a", "b") == hash_parts("ab"), hash_parts(None) == hash_parts("")
    (False, False)
    """
    digest = hashlib.sha256()
    for part in parts:
        data = b"" if part is None else part.encode("utf-8", "surrogatepass")
        digest.update(b"-" if part is None else b"%d:" % len(data))
        digest.update(data)
    return digest.hexdigest()[:32]
