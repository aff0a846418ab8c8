"""Tables of texts and pictures: CSV, TSV, JSONL, Parquet, image folders with metadata, saved datasets.

In: a file or directory, and column names. Out: a `TableSource`. A text cell is a text and nothing else, whatever it
looks like. A picture cell is a path relative to the table, never a URL, or an encoded picture as ``datasets.Image``
stores it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from .columns import Column, read_csv, read_jsonl, read_parquet, read_saved_dataset
from .folders import FolderSource, list_pictures, open_folder
from .rows import Row, Unreadable, file_state, has_lone_surrogate, hash_parts

__all__ = [
    "METADATA_NAMES",
    "TABLE_READERS",
    "TABLE_SUFFIXES",
    "TableSource",
    "open_imagefolder",
    "open_saved_dataset",
    "open_table",
    "resolve_image",
]

METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
TABLE_READERS = {".csv": read_csv, ".tsv": read_csv, ".jsonl": read_jsonl, ".parquet": read_parquet}
TABLE_SUFFIXES = frozenset(TABLE_READERS)
_IMAGE_NAMES = ("image", "image_path", "file_name")
_TEXT_NAMES = ("text", "caption")


class TableSource:
    """Rows of one table; see `Source`.

    Args:
        kind: ``"table"``, ``"imagefolder"`` or ``"dataset"``.
        path: What the user named.
        columns: The table.
        root: Directory that picture paths are relative to.
        state: Changes whenever a picture stored inside the table may have changed.
        image_column: See `open_source`.
        text_column: See `open_source`.

    Raises:
        ValueError: A named column is absent or of the wrong type, or there is none to embed.
    """

    def __init__(
        self,
        kind: str,
        path: Path,
        columns: Mapping[str, Column],
        *,
        root: Path,
        state: str,
        image_column: str | None,
        text_column: str | None,
    ) -> None:
        if image_column is None and text_column is None:
            image_column, text_column = _find_image_column(path, columns), _find_text_column(path, columns)
            if image_column is None and text_column is None:
                raise ValueError(
                    f"{path} has no column that looks like texts or pictures; it has {_listed(columns)}. Name one "
                    "with --text-column or --image-column"
                )
        images = None if image_column is None else _checked(path, columns, image_column, ("text", "image"))
        texts = None if text_column is None else _checked(path, columns, text_column, ("text",))
        self.kind = kind
        self.path = path
        self.image_column = image_column
        self.text_column = text_column
        self.notes = [_describe(image_column, text_column, columns)]
        self.unreadable: list[Unreadable] = []
        self._images = None if images is None else images.cells
        self._texts = None if texts is None else texts.cells
        self._images_are_paths = images is not None and images.holds == "text"
        self._file_of = None if images is None else images.file_of
        self._length = len(next(column for column in (images, texts) if column is not None).cells)
        self._root = root
        self._state = state
        if self._length == 0:
            raise ValueError(f"{path} has no rows")

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, row: int) -> Row:
        text = None if self._texts is None else _as_text(self._texts[row], self.text_column)
        picture = None if self._images is None else self._images[row]
        if self._images_are_paths:
            picture = _as_text(picture, self.image_column)
        image = resolve_image(picture, self._root)
        if text is not None and has_lone_surrogate(text):
            raise ValueError("the text is not valid Unicode (it holds half of a surrogate pair)")
        if image is None and not (text and text.strip()):
            raise ValueError("the row is empty: it has neither text nor picture")
        return Row(self.name(row), text=text if text and text.strip() else None, image=image)

    def name(self, row: int) -> str:
        """The picture's path as the table gives it, else the table's name and the row number, from 0."""
        cell = self._images[row] if self._images is not None and self._images_are_paths else None
        if isinstance(cell, str) and cell and not has_lone_surrogate(cell):
            return cell
        return f"{self.path.name} row {row}"

    def fingerprint(self, row: int) -> str:
        """Text by content, picture path by the file's size and modification time, stored picture by the table's.

        A picture column may hold both: paths in place of pictures count by the file as well.
        """
        text = None if self._texts is None else _hashable(self._texts[row])
        if self._images is None:
            return hash_parts(text)
        if not self._images_are_paths:
            file = None if self._file_of is None else self._file_of(row)
            of_file = [file_state(self._root / file)] if file else []
            return hash_parts(text, self._state, str(row), *of_file)
        cell = _hashable(self._images[row])
        return hash_parts(text, cell, file_state(self._root / cell) if cell else None)


def open_table(path: Path, *, image_column: str | None, text_column: str | None) -> TableSource:
    """Opens a CSV, TSV, JSONL or Parquet file; see `open_source`."""
    return TableSource(
        "table",
        path,
        TABLE_READERS[path.suffix.lower()](path),
        root=path.parent,
        state=file_state(path),
        image_column=image_column,
        text_column=text_column,
    )


def open_imagefolder(
    metadata: Path, *, image_column: str | None, text_column: str | None, exclude: Collection[Path] = ()
) -> TableSource | FolderSource:
    """Opens a folder whose ``metadata.jsonl`` (csv, parquet) names its pictures, as ``datasets`` lays it out.

    A file of that name which names no pictures says nothing about them: the folder is then read without it.
    """
    root = metadata.parent
    columns = TABLE_READERS[metadata.suffix](metadata)
    if image_column is None and text_column is None and _find_image_column(metadata, columns) is None:
        folder = open_folder(root, exclude)
        folder.notes.append(f"{metadata.name} names no pictures, so it is not used; it has {_listed(columns)}")
        return folder
    source = TableSource(
        "imagefolder",
        root,
        columns,
        root=root,
        state=file_state(metadata),
        image_column=image_column,
        text_column=text_column,
    )
    if source.image_column is not None:
        named = {os.path.normpath(root / source.name(row)) for row in range(len(source))}
        unnamed = sum(os.path.normpath(root / name) not in named for name in list_pictures(root, exclude)[0])
        if unnamed:
            source.notes.append(f"left out {unnamed} pictures that {metadata.name} does not name")
    return source


def open_saved_dataset(path: Path, *, image_column: str | None, text_column: str | None) -> TableSource:
    """Opens a directory written by ``datasets.Dataset.save_to_disk``; see `open_source`."""
    file = path / "state.json"
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        parts = [path / item["filename"] for item in state["_data_files"]]
        fingerprint = state["_fingerprint"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"cannot read {file} ({type(error).__name__}: {error}): save the dataset again with save_to_disk"
        ) from error
    return TableSource(
        "dataset",
        path,
        read_saved_dataset(path),
        root=path,
        state=hash_parts(fingerprint, *(str(part.stat().st_size) for part in parts)),
        image_column=image_column,
        text_column=text_column,
    )


def resolve_image(cell: Any, root: Path) -> Path | bytes | None:
    """What a picture cell stands for: a path, or the bytes of an encoded picture; None when it is empty.

    Raises:
        ValueError: It is a URL, or no valid file name.
    """
    if isinstance(cell, dict):
        cell = cell["bytes"] if cell["bytes"] is not None else cell["path"]
    if cell is None or cell == "":
        return None
    if isinstance(cell, bytes):
        return cell
    if "://" in cell or cell.startswith("data:"):
        raise ValueError(f"the picture is given as a URL ({cell[:80]}); URLs are not fetched: download it first")
    if has_lone_surrogate(cell) or "\0" in cell:
        raise ValueError("the picture's path is not a valid file name")
    return root / cell


def _find_image_column(path: Path, columns: Mapping[str, Column]) -> str | None:
    stored = [name for name, column in columns.items() if column.holds == "image"]
    usual = _find_usual(path, columns, _IMAGE_NAMES, ("text", "image"))
    return usual or (stored[0] if len(stored) == 1 else None)


def _find_text_column(path: Path, columns: Mapping[str, Column]) -> str | None:
    return _find_usual(path, columns, _TEXT_NAMES, ("text",))


def _find_usual(
    path: Path, columns: Mapping[str, Column], names: tuple[str, ...], kinds: tuple[str, ...]
) -> str | None:
    """The first of the usual names whose column can be embedded, None where there is no such column.

    Raises:
        ValueError: There are such columns, and none of them can be embedded.
    """
    there = [name for name in names if name in columns]
    fit = [name for name in there if columns[name].holds in kinds]
    if there and not fit:
        raise ValueError(
            f"column {there[0]!r} of {path} holds {columns[there[0]].holds}, not {' or '.join(kinds)}: name the columns "
            "to embed with --text-column and --image-column"
        )
    return fit[0] if fit else None


def _checked(path: Path, columns: Mapping[str, Column], name: str, kinds: tuple[str, ...]) -> Column:
    if name not in columns:
        raise ValueError(f"no column {name!r} in {path}; it has {_listed(columns)}")
    if columns[name].holds not in kinds:
        raise ValueError(f"column {name!r} of {path} holds {columns[name].holds}, not {' or '.join(kinds)}")
    return columns[name]


def _listed(columns: Mapping[str, Column]) -> str:
    return ", ".join(f"{name!r} ({column.holds})" for name, column in columns.items()) or "no columns"


def _describe(image_column: str | None, text_column: str | None, columns: Mapping[str, Column]) -> str:
    used = [f"pictures from column {image_column!r}"] if image_column else []
    used += [f"texts from column {text_column!r}"] if text_column else []
    rest = [repr(name) for name in columns if name not in (image_column, text_column)]
    return " and ".join(used) + (f"; not embedded: {', '.join(rest)}" if rest else "")


def _as_text(cell: Any, column: str | None) -> str | None:
    """A cell that should be a text or a path; in a JSONL file it may be anything."""
    if cell is None or isinstance(cell, str):
        return cell
    raise ValueError(f"column {column!r} holds {type(cell).__name__} {json.dumps(cell)[:40]}, not text")


def _hashable(cell: Any) -> str | None:
    """A cell that should be text, for a fingerprint: the text itself, or what no text looks like."""
    return cell if cell is None or isinstance(cell, str) else f"\0{json.dumps(cell)}"
