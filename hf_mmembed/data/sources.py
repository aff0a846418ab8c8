"""Tells what kind of input a path is and opens it.

In: a picture file, a folder, an image folder with metadata, a CSV, TSV, JSONL or Parquet file, or a directory written
by ``datasets.Dataset.save_to_disk``. Out: a `Source`.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from .folders import open_folder, open_image_file
from .rows import IMAGE_SUFFIXES, Source, require_utf8
from .tables import METADATA_NAMES, TABLE_SUFFIXES, open_imagefolder, open_saved_dataset, open_table

__all__ = ["open_source"]


def open_source(
    path: str | Path,
    *,
    image_column: str | None = None,
    text_column: str | None = None,
    exclude: Collection[Path] = (),
) -> Source:
    """Opens whatever `path` is as a sequence of rows.

    Args:
        path: The input.
        image_column: Column of a table that holds picture paths (relative to the table) or pictures. When neither
            column is given, both are looked for by their usual names; when one is given, only that one is used.
        text_column: Column of a table that holds texts.
        exclude: Directories below a folder to leave out.

    Raises:
        FileNotFoundError: There is nothing at `path`.
        ValueError: It is none of the kinds above, holds nothing to embed, lacks a named column, or its name is not
            valid UTF-8.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no such input: {path}")
    path = path.resolve()
    require_utf8(path)
    columns = {"image_column": image_column, "text_column": text_column}
    if path.is_dir():
        if (path / "dataset_dict.json").is_file():
            splits = sorted(str(item) for item in path.iterdir() if (item / "dataset_info.json").is_file())
            raise ValueError(
                f"{path} holds a DatasetDict: name one of its splits ({', '.join(splits) or 'none found'})"
            )
        if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
            return open_saved_dataset(path, **columns)
        metadata = [path / name for name in METADATA_NAMES if (path / name).is_file()]
        if len(metadata) > 1:
            raise ValueError(f"{path} holds {' and '.join(file.name for file in metadata)}; keep one of them")
        if metadata:
            return open_imagefolder(metadata[0], **columns, exclude=exclude)
    elif path.suffix.lower() in TABLE_SUFFIXES:
        return open_table(path, **columns)
    if image_column or text_column:
        raise ValueError(f"{path} has no columns: leave --image-column and --text-column out, or name a table")
    if path.is_dir():
        return open_folder(path, exclude)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return open_image_file(path)
    raise ValueError(
        f"cannot read {path}: {path.suffix or 'no extension'} is none of {', '.join(sorted(IMAGE_SUFFIXES))} (pictures) "
        f"or {', '.join(sorted(TABLE_SUFFIXES))} (tables), and it is no folder"
    )
