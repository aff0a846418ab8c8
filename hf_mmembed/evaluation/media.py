"""Finds pictures and saved video frames below a folder, in archives too.

In: the path that an annotation gives. Out: `ImageFile` objects, checked to be there but not read.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hf_mmembed.visible import is_litter, visible

from .items import ImageFile

__all__ = ["Pictures", "frames_in", "sample_frames"]

_FRAME_SUFFIXES = {".jpg", ".jpeg", ".png"}


class Pictures:
    """The pictures of a benchmark, below one of several folders or in ``*.zip`` files beside them.

    Args:
        roots: Folders to look in, in this order; those that do not exist are passed over.
        archives: Zip files to look in when no folder has the picture. Members may lie below a common top folder.

    Raises:
        ValueError: An archive is broken.
    """

    def __init__(self, roots: Sequence[Path], archives: Sequence[Path] = ()) -> None:
        self.roots = [root for root in dict.fromkeys(roots) if root.is_dir()]
        self.members = {file: _members(file) for file in archives if file.is_file()}
        self._found: dict[str, ImageFile] = {}

    def __getitem__(self, name: str) -> ImageFile:
        """The picture at a path relative to one of the roots.

        Raises:
            ValueError: There is none; the message says where it was looked for.
        """
        # A name stands in many rows, and a network file system takes its time over every question.
        if (found := self._found.get(name)) is None:
            found = self._found[name] = self._find(name)
        return found

    def _find(self, name: str) -> ImageFile:
        for root in self.roots:
            if (root / name).is_file():
                return ImageFile(root / name)
        for archive, members in self.members.items():
            if name in members:
                return ImageFile(archive, members[name])
        places = [str(place) for place in (*self.roots, *self.members)]
        raise ValueError(f"no picture {name!r} in {' or '.join(places) or 'any folder'}")

    def optional(self, name: str | None) -> tuple[ImageFile, ...]:
        """The picture as a tuple; empty where an annotation says that there is none (null, ``""`` or ``"None"``)."""
        return () if name is None or name.strip() in ("", "None") else (self[name],)


def _members(archive: Path) -> dict[str, str]:
    """Names in a zip file, each also without the folder above it that all members share; what a Mac adds is no member."""
    try:
        with zipfile.ZipFile(archive) as file:
            names = [info.filename for info in file.infolist() if not info.is_dir()]
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"cannot read {archive}: {error} (was its download interrupted?)") from error
    names = [name for name in names if not any(map(is_litter, name.split("/")))]
    tops = {name.partition("/")[0] for name in names}
    prefix = f"{tops.pop()}/" if len(tops) == 1 else ""
    return {name.removeprefix(prefix): name for name in names} | {name: name for name in names}


def frames_in(folder: Path) -> tuple[ImageFile, ...]:
    """The saved frames of a video in time order: numbers in file names count as numbers.

    Raises:
        ValueError: There is no such folder, or no frame in it.
    """
    if not folder.is_dir():
        raise ValueError(f"no folder of frames {folder}: unpack the benchmark's frames archive")
    files = [file for file in visible(folder) if file.suffix.lower() in _FRAME_SUFFIXES]
    if not files:
        raise ValueError(f"the folder {folder} holds no frames ({', '.join(sorted(_FRAME_SUFFIXES))})")
    return tuple(ImageFile(file) for file in sorted(files, key=_natural))


def sample_frames(frames: Sequence[ImageFile], number: int) -> tuple[ImageFile, ...]:
    """`number` frames spread evenly from the first to the last; all of them where there are fewer.

    As the official ``process_video_frames``: a short video is not padded.

    Example:
        >>> files = [ImageFile(Path(f"{n}.jpg")) for n in range(5)]
        >>> [image.path.stem for image in sample_frames(files, 3)]
        ['0', '2', '4']
    """
    if number >= len(frames):
        return tuple(frames)
    return tuple(frames[index] for index in np.linspace(0, len(frames) - 1, number, dtype=int))


def _natural(file: Path) -> list[tuple[int, int | str]]:
    parts = re.split(r"(\d+)", file.name)
    return [(0, int(part)) if part.isdigit() else (1, part.lower()) for part in parts]
