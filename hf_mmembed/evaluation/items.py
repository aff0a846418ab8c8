"""What is embedded in an evaluation: an `Item`, whose pictures may lie in folders or in zip archives.

In: paths. Out: items that know their bytes and the digest of their content. Equal content is one input, whatever it
is called: the file's name, its folder and the row it stands in do not count.
"""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from hf_mmembed.data.rows import file_state, hash_parts

__all__ = ["ImageFile", "Item", "Role", "digest"]

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
        except (OSError, KeyError, zipfile.BadZipFile, EOFError) as error:
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
    """

    text: str | None = None
    images: tuple[ImageFile, ...] = ()
    instruction: str | None = None
    role: Role = "document"

    def __str__(self) -> str:
        parts = [repr(self.text[:60])] if self.text is not None else []
        return " + ".join([*parts, *(str(image) for image in self.images[:1])])


def digest(item: Item) -> bytes:
    """Digest of an item's content, 16 bytes: role, instruction, text, and the bytes of each picture.

    Raises:
        ValueError: A picture cannot be read.
    """
    pictures = [_file_digest(image, file_state(image.path)) for image in item.images]
    return bytes.fromhex(hash_parts(item.role, item.instruction, item.text, *pictures))


@cache
def _file_digest(image: ImageFile, state: str) -> str:
    """Read once for all items that show it, and again when its file has changed."""
    return hashlib.sha256(image.read()).hexdigest()
