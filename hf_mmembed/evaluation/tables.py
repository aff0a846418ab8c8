"""Reads annotation tables from local files: Parquet, JSONL, JSON, and what `datasets` saves.

In: the places where a table may lie. Out: its rows. Nothing is downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_mmembed.visible import visible

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Missing", "Row", "find", "read_images", "read_json", "read_rows"]

Row = dict[str, Any]
"""One row of an annotation table."""


class Missing(ValueError):
    """A data set that is not in the folder at all, as against one that is there and broken."""


def find(root: Path, places: Iterable[str]) -> Path:
    """The first of some places below a folder that exists.

    Raises:
        Missing: None does; the message lists them.
    """
    tried = list(dict.fromkeys(places))
    for place in tried:
        if (root / place).exists():
            return root / place
    raise Missing(f"nothing in {root} at any of: {', '.join(tried)}")


def read_rows(path: Path, columns: Iterable[str], *, split: str = "test") -> list[Row]:
    """Rows of a table, with the columns asked for.

    Args:
        path: A ``.parquet``, ``.jsonl`` or ``.json`` file (a list of objects), a directory written by
            ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk``, or a directory of Parquet files named
            ``<split>-*.parquet``, also under ``data``.
        columns: Columns it must have.
        split: Which split to read where there are several. A directory with one split is read whatever it is called.

    Raises:
        Missing: The directory holds no such file.
        ValueError: A file is broken, cut off, empty or lacks a column; the message names it.
    """
    wanted = list(columns)
    rows: list[Row] = []
    for file in _files(path, split):
        if file.suffix in (".json", ".jsonl"):
            found = _json_rows(file)
            _check(found[0] if found else {}, wanted, file)
            rows += found
        else:
            rows += [row for batch in _batches(file, wanted) for row in batch.to_pylist()]
    if not rows:
        raise ValueError(f"{path} has no rows")
    return rows


def read_json(file: Path) -> Any:
    """What a ``.json`` file holds, or the list of what the lines of a ``.jsonl`` file hold.

    Raises:
        ValueError: It is broken or cut off; the message names it.
    """
    try:
        text = file.read_text(encoding="utf-8")
        # Not `splitlines`: a text may hold a line separator of Unicode, which JSON does not escape.
        return [json.loads(line) for line in text.split("\n") if line] if file.suffix == ".jsonl" else json.loads(text)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {file}: {error} (was its download interrupted?)") from error


def read_images(path: Path, key: str, *, split: str = "test") -> Iterator[tuple[str, bytes]]:
    """The encoded pictures in the column ``image`` of a Parquet table or saved dataset, with their names.

    Raises:
        ValueError: As `read_rows`; or a row has no picture.
    """
    for file in _files(path, split):
        for batch in _batches(file, [key, "image"]):
            for row in batch.to_pylist():
                if not row["image"] or row["image"]["bytes"] is None:
                    raise ValueError(f"{file}: {row[key]!r} has no picture")
                yield str(row[key]), row["image"]["bytes"]


def _files(path: Path, split: str) -> list[Path]:
    """Files of a table; the directory itself for one that `datasets` saved."""
    if path.is_file():
        return [path]
    for saved in (path, path / split):
        if (saved / "state.json").is_file():
            return [saved]
    for folder in (path, path / "data"):
        for pattern in (f"{split}-*.parquet", "*.parquet", "*.jsonl", "*.json"):
            if files := visible(folder, pattern):
                return files
    raise Missing(f"{path} holds no table: looked for {split}-*.parquet, *.parquet, *.jsonl, *.json, a saved dataset")


def _batches(file: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        if file.is_dir():
            from datasets import load_from_disk

            table = load_from_disk(str(file)).with_format("arrow")[:]
            _check(table.column_names, columns, file)
            yield from table.select(columns).to_batches()
        else:
            with pa.parquet.ParquetFile(file) as parquet:
                _check(parquet.schema_arrow.names, columns, file)
                yield from parquet.iter_batches(batch_size=256, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"cannot read {file}: {error} (was its download interrupted?)") from error


def _json_rows(file: Path) -> list[Row]:
    rows = read_json(file)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file} is no list of objects")
    return rows


def _check(found: Iterable[str], wanted: Iterable[str], file: Path) -> None:
    lacking = [column for column in wanted if column not in found]
    if lacking:
        raise ValueError(f"{file} has no column {', '.join(lacking)}; its columns are {', '.join(found)}")
