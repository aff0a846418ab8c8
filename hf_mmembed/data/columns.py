"""Columns of CSV, TSV, JSONL and Parquet files and of saved datasets, cell by cell and on demand.

In: a file or directory. Out: a mapping from column name to `Column`. No type is guessed: every CSV cell is a string.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, DatasetDict

__all__ = ["Column", "load_saved", "read_csv", "read_jsonl", "read_parquet", "read_saved_dataset"]


_CSV_BLOCK = 64 << 20  # bytes; pyarrow reads no row that is longer than a block, which by default is 1 MB


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        cells: Values by row number, None where there is none.
        holds: ``"text"`` (strings; in JSONL, some cells may be something else), ``"image"`` (encoded pictures) or the
            name of another type. A column without values holds text.
        file_of: Path that the cell of a row gives in place of an encoded picture, None where it gives none; of columns
            that may have such cells. Pictures are not read for it where that can be helped.
    """

    cells: Sequence[Any]
    holds: str
    file_of: Callable[[int], str | None] | None = None


def read_csv(path: Path) -> dict[str, Column]:
    """Reads a CSV (or, by its suffix, TSV) file in UTF-8 with a header line; an empty cell is None.

    Raises:
        ValueError: It is not UTF-8, its lines do not match its header, or two columns share a name.
    """
    import pyarrow as pa
    from pyarrow import csv

    read = csv.ReadOptions(block_size=_CSV_BLOCK)
    parse = csv.ParseOptions(delimiter="\t" if path.suffix.lower() == ".tsv" else ",", newlines_in_values=True)
    try:
        with csv.open_csv(path, read_options=read, parse_options=parse) as reader:
            names = reader.schema.names
        _require_different(names)
        types = dict.fromkeys(names, pa.string())
        convert = csv.ConvertOptions(column_types=types, strings_can_be_null=True, null_values=[""])
        table = csv.read_csv(path, read_options=read, parse_options=parse, convert_options=convert)
    except ValueError as error:  # pyarrow's errors are ValueErrors
        foreign = isinstance(error, UnicodeDecodeError) or "invalid UTF8" in str(error)
        advice = "; save it as UTF-8" if foreign else _advice_on_separators(path)
        raise ValueError(f"cannot read {path}: {error}{advice}") from error
    return {name: Column(_ArrowCells(table.column(name)), "text") for name in names}


def _advice_on_separators(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        header = file.readline(_CSV_BLOCK)
    found = next((mark for mark in (";", "\t") if mark in header and "," not in header), None)
    return f"; its header holds {found!r} and no comma: save it with commas between the columns" if found else ""


def read_jsonl(path: Path) -> dict[str, Column]:
    """Reads a file of one JSON object per line; blank lines are passed over and a missing key is None.

    Raises:
        ValueError: A line is no JSON object; the message names the line.
    """
    rows: list[dict[str, Any]] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except UnicodeDecodeError as error:
                raise ValueError(f"cannot read {path}: line {number} is not UTF-8; save it as UTF-8") from error
            except ValueError as error:
                raise ValueError(f"cannot read {path}: line {number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"cannot read {path}: line {number} is a {type(row).__name__}, not a JSON object")
            rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: Column([row.get(name) for row in rows], _kind_of_values(rows, name)) for name in names}


def read_parquet(path: Path) -> dict[str, Column]:
    """Opens a Parquet file; a row group is read when one of its cells is asked for.

    Raises:
        ValueError: It is no Parquet file, or two columns share a name.
    """
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        _require_different(file.schema_arrow.names)
    except ValueError as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    columns = {}
    for field in file.schema_arrow:
        cells, holds = _ParquetCells(file, field.name), _kind_of_type(field.type)
        columns[field.name] = Column(cells, holds, cells.file_of if _is_picture_or_path(field.type) else None)
    return columns


def _require_different(names: Sequence[str]) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"several columns are called {', '.join(map(repr, twice))}")


def read_saved_dataset(path: Path) -> dict[str, Column]:
    """Opens a directory written by ``datasets.Dataset.save_to_disk``, memory-mapped; see `load_saved`."""
    table = load_saved(path).with_format("arrow")
    return {
        field.name: Column(_DatasetCells(table, field.name), _kind_of_type(field.type))
        for field in table.features.arrow_schema
    }


def load_saved(path: Path) -> Dataset | DatasetDict:
    """``datasets.load_from_disk``, with an error that names the directory.

    Raises:
        ValueError: One of its files is broken.
    """
    from datasets import load_from_disk

    try:
        return load_from_disk(str(path))
    except (ValueError, KeyError, TypeError) as error:  # JSON files that hold something else
        raise ValueError(
            f"cannot read {path} ({type(error).__name__}: {error}): save the dataset again with save_to_disk"
        ) from error


class _ArrowCells(Sequence[Any]):
    def __init__(self, array: pa.ChunkedArray) -> None:
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, row: Any) -> Any:
        return self._array[row].as_py()


class _ParquetCells(Sequence[Any]):
    """Keeps the last row group that was asked for: rows are mostly read in order."""

    def __init__(self, file: Any, name: str) -> None:
        self._file = file
        self._name = name
        self._ends: list[int] = []
        for group in range(file.num_row_groups):
            self._ends.append(file.metadata.row_group(group).num_rows + (self._ends[-1] if self._ends else 0))
        self._group: int | None = None
        self._cells: Any = None
        self._files: tuple[int, Any] | None = None  # of the last row group that was asked for

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, row: Any) -> Any:
        group = bisect_right(self._ends, row)
        if group != self._group:
            self._cells = self._file.read_row_group(group, columns=[self._name]).column(self._name)
            self._group = group
        return self._cells[row - self._start(group)].as_py()

    def file_of(self, row: int) -> str | None:
        """See `Column`."""
        group = bisect_right(self._ends, row)
        if self._files is None or self._files[0] != group:
            self._files = group, self._files_of(group)
        files = self._files[1]
        return None if files is None else files[row - self._start(group)].as_py()

    def _start(self, group: int) -> int:
        return self._ends[group - 1] if group else 0

    def _files_of(self, group: int) -> Any:
        """Paths of a row group, null where there is a picture; None where there are pictures alone."""
        import pyarrow.compute as pc

        metadata = self._file.metadata.row_group(group)
        columns = (metadata.column(number) for number in range(metadata.num_columns))
        counted = next(column.statistics for column in columns if column.path_in_schema == f"{self._name}.bytes")
        absent = counted.null_count if counted is not None and counted.has_null_count else None
        if absent == 0:
            return None
        if absent == metadata.num_rows:
            cells = self._file.read_row_group(group, columns=[f"{self._name}.path"]).column(self._name)
            return pc.struct_field(cells, "path")
        cells = self._file.read_row_group(group, columns=[self._name]).column(self._name)
        stored = pc.is_valid(pc.struct_field(cells, "bytes"))
        return pc.if_else(stored, None, pc.struct_field(cells, "path"))


class _DatasetCells(Sequence[Any]):
    def __init__(self, table: Any, name: str) -> None:
        self._column = table.select_columns([name])
        self._name = name

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, row: Any) -> Any:
        return self._column[row].column(self._name)[0].as_py()


def _kind_of_type(kind: pa.DataType) -> str:
    import pyarrow as pa

    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if (
        pa.types.is_null(kind)
        or pa.types.is_string(value)
        or pa.types.is_large_string(value)
        or pa.types.is_string_view(value)
    ):
        return "text"
    if pa.types.is_binary(value) or pa.types.is_large_binary(value) or pa.types.is_binary_view(value):
        return "image"
    return "image" if _is_picture_or_path(kind) else str(kind)


def _is_picture_or_path(kind: pa.DataType) -> bool:
    """Whether it is what `datasets` makes of pictures; saved by `save_to_disk`, they all hold the picture."""
    import pyarrow as pa

    return bool(pa.types.is_struct(kind)) and {field.name for field in kind} == {"bytes", "path"}


def _kind_of_values(rows: list[dict[str, Any]], name: str) -> str:
    kinds = {type(row[name]).__name__ for row in rows if row.get(name) is not None}
    return "text" if not kinds or "str" in kinds else " or ".join(sorted(kinds))
