"""A folder of pictures, recursively, or one picture file.

In: a directory. Out: a `FolderSource` with its picture files in the order of their relative paths. Symbolic links are
followed, loops are not, and a folder that is there itself goes before links to it; hidden files and folders are left
out; files of other kinds are counted and named in a note.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection
from heapq import heappop, heappush
from pathlib import Path

from .rows import IMAGE_SUFFIXES, Listing, Row, file_state, has_lone_surrogate, hash_parts

__all__ = ["FolderSource", "list_pictures", "open_folder", "open_image_file"]


class FolderSource:
    """Picture files below one directory; see `Source`."""

    def __init__(self, kind: str, path: Path, root: Path, files: list[str], listing: Listing) -> None:
        self.kind = kind
        self.image_column: str | None = None
        self.text_column: str | None = None
        self.path = path
        self.notes = listing.notes
        self.unreadable = listing.unreadable
        self._root = root
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, row: int) -> Row:
        return Row(self._files[row], image=self._root / self._files[row])

    def name(self, row: int) -> str:
        """Path relative to the folder."""
        return self._files[row]

    def fingerprint(self, row: int) -> str:
        """Relative path, size and modification time."""
        return hash_parts(self._files[row], file_state(self._root / self._files[row]))


def open_image_file(path: Path) -> FolderSource:
    """One picture file as a source of one row."""
    return FolderSource("file", path, path.parent, [path.name], Listing())


def open_folder(path: Path, exclude: Collection[Path] = ()) -> FolderSource:
    """Lists the pictures below a directory.

    Args:
        path: The directory.
        exclude: Directories below it to leave out (the output, when it lies inside the input).

    Raises:
        ValueError: There is no picture file below `path`.
    """
    files, listing = list_pictures(path, exclude)
    if not files and not listing.unreadable:
        found = f"it holds {listing.notes[0].removeprefix('left out ')}" if listing.notes else "it is empty"
        raise ValueError(
            f"no picture in {path}: {found}. Looked for {', '.join(sorted(IMAGE_SUFFIXES))}, in sub-folders too"
        )
    return FolderSource("folder", path, path, files, listing)


def list_pictures(root: Path, exclude: Collection[Path] = ()) -> tuple[list[str], Listing]:
    """Picture files below a directory: sorted relative paths, and what was left out; see `open_folder`.

    Raises:
        OSError: `root` itself cannot be listed; what lies below it is reported as unreadable.
    """
    excluded = {item.resolve() for item in exclude}
    listing = Listing()
    files: list[str] = []
    others: Counter[str] = Counter()
    visited: set[tuple[int, int]] = set()
    pending = [(False, root)]
    while pending:
        _, folder = heappop(pending)  # what can be reached without a link is named without one
        try:
            stat = folder.stat()
            if (stat.st_dev, stat.st_ino) in visited or (folder != root and folder.resolve() in excluded):
                continue
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            if folder == root:
                raise
            listing.refuse(
                folder.relative_to(root).as_posix(), f"the folder cannot be listed: {error.strerror}", error
            )
            continue
        visited.add((stat.st_dev, stat.st_ino))
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = Path(entry.path).relative_to(root).as_posix()
            suffix = Path(name).suffix.lower()
            try:
                is_folder = entry.is_dir()
            except OSError as error:  # a link to what cannot even be looked at
                listing.refuse(name, f"it cannot be reached: {error.strerror}", error)
                continue
            if has_lone_surrogate(name):
                listing.refuse(name, "the name is not valid UTF-8: rename it")
            elif is_folder:
                heappush(pending, (entry.is_symlink(), Path(entry.path)))
            elif suffix in IMAGE_SUFFIXES:
                files.append(name)  # a broken link too: reading it says so
            else:
                others[suffix] += 1
    if others:
        kinds = ", ".join(f"{suffix or 'no extension'} {count}" for suffix, count in sorted(others.items()))
        listing.notes.append(f"left out {sum(others.values())} files that are no pictures by extension ({kinds})")
    return sorted(files), listing
