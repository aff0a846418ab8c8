"""What is embedded in an evaluation: an `Item`, whose pictures may lie in folders or in zip archives.

In: paths. Out: items that know their bytes and the digest of their content. Equal content is one input, whatever it
is called: the file's name, its folder and the row it stands in do not count.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from hf_mmembed.data.rows import file_state, hash_parts

__all__ = ["ImageFile", "Item", "Role", "as_input", "digest", "name_input"]

Role = Literal["query", "document"]


@dataclass(frozen=True)
class ImageFile:
    """A picture that is read when it is needed: a file, or a member of a zip archive."""

    path: Path
    member: str | None = None

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.path}/{self.member}"

    def read(self) -> bytes:
        """The bytes of the picture file.

        Raises:
            ValueError: It is missing, or the archive is broken; the message names it.
        """
        try:
            if self.member is None:
                return self.path.read_bytes()
            return _archive(self.path, file_state(self.path)).read(self.member)
        # RuntimeError: a member that is encrypted, or packed in a way that Python cannot unpack.
        except (OSError, KeyError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            raise ValueError(f"cannot read the picture {self}: {error}") from error


@cache
def _archive(path: Path, state: str) -> zipfile.ZipFile:
    """An open archive, until its file changes."""
    return zipfile.ZipFile(path)


@dataclass(frozen=True)
class Item:
    """One input: text, pictures (several are the frames of a video) or both, and how it is to be read.

    Attributes:
        text: The text. None when there is none.
        images: The pictures, in reading order.
        instruction: What the model is told to do with it, outside the text. None when nothing is said.
        role: Which side of the prompt it gets.
        trace: What a reasoner wrote about it, which the model reads behind it. None when nothing was.
    """

    text: str | None = None
    images: tuple[ImageFile, ...] = ()
    instruction: str | None = None
    role: Role = "document"
    trace: str | None = None

    def __str__(self) -> str:
        words = " ".join((self.text or "").split())
        parts = [repr(words[:60])] if words or not self.images else []
        return " + ".join([*parts, *(str(image) for image in self.images[:1])])


def as_input(item: Item) -> dict[str, Any]:
    """The item without its role and trace, as `MMEmbedder.encode` takes it; pictures as the bytes of their files.

    Raises:
        ValueError: A picture cannot be read.
    """
    parts = {
        "text": item.text,
        "image": [image.read() for image in item.images] or None,
        "instruction": item.instruction,
    }
    return {key: value for key, value in parts.items() if value is not None}


def name_input(error: ValueError, items: Sequence[Item]) -> ValueError:
    """The error with an item's own name before ``inputs[7]``, which counts the inputs of one call.

    Example:
        >>> name_input(ValueError("inputs[0] is no picture"), [Item(None, (ImageFile(Path("a.png")),))])
        ValueError('a.png: inputs[0] is no picture')
    """
    named = re.match(r"inputs\[(\d+)\]", str(error))
    return ValueError(f"{items[int(named[1])]}: {error}") if named else error


def digest(item: Item) -> bytes:
    """Digest of an item's content, 16 bytes: role, instruction, text, trace, and the bytes of each picture.

    Raises:
        ValueError: A picture cannot be read.
    """
    pictures = [_file_digest(image, file_state(image.path)) for image in item.images]
    return bytes.fromhex(hash_parts(item.role, item.instruction, item.text, item.trace, *pictures))


@cache
def _file_digest(image: ImageFile, state: str) -> str:
    """Read once for all items that show it, and again when its file has changed."""
    return hashlib.sha256(image.read()).hexdigest()
