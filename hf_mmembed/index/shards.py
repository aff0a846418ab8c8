"""Finished work on the disk: Arrow files of embeddings, each named by the digest of what it was made from.

In: a `Source` and a salt that stands for the embedder. Out: a plan of shards, the shards already there, and a
directory that ``datasets.load_from_disk`` opens. A shard is written under a temporary name and renamed, so it exists
in full or not at all; one made from other rows or by another model has another name, so it is never taken for this.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from hf_mmembed.data import Row, Source, Unreadable
from hf_mmembed.data.rows import hash_parts
from hf_mmembed.files import write_atomically

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "Embedded",
    "Shard",
    "any_finished",
    "dataset_fingerprint",
    "is_dataset_of",
    "plan_shards",
    "read_dataset",
    "read_embeddings",
    "read_row",
    "read_skipped",
    "recall_rows",
    "remove_stale",
    "write_dataset_files",
    "write_shard",
]

_STATE = "state.json"


@dataclass(frozen=True)
class Shard:
    """Rows ``start`` to ``stop`` (exclusive) of a source, in one Arrow file."""

    start: int
    stop: int
    digest: str

    def path(self, directory: Path) -> Path:
        """The file that holds the shard once it is finished."""
        return directory / f"data-{self.start:09d}-{self.digest}.arrow"


@dataclass(frozen=True)
class Embedded:
    """One finished row. `embedding` has shape ``(dim,)``, float32."""

    row: int
    item: Row
    fingerprint: str
    embedding: np.ndarray


def plan_shards(source: Source, *, salt: str, size: int) -> list[Shard]:
    """Cuts a source into shards of `size` rows; the digest of each covers its rows' fingerprints, in order.

    Args:
        source: The rows.
        salt: Digest of everything else that decides the numbers: model, prompt, task, instruction.
        size: Rows per shard.
    """
    shards = []
    with tqdm(total=len(source), unit=" items", desc="looking for changes", delay=2, disable=None) as bar:
        for start in range(0, len(source), size):
            stop = min(start + size, len(source))
            digest = hash_parts(salt, str(start), *(source.fingerprint(row) for row in range(start, stop)))
            shards.append(Shard(start, stop, digest))
            bar.update(stop - start)
    return shards


def write_shard(
    directory: Path, shard: Shard, rows: Sequence[Embedded], skipped: Sequence[Unreadable], *, salt: str, dim: int
) -> None:
    """Writes a shard; what was skipped travels in the schema's metadata, so both appear at once."""
    import pyarrow as pa

    flat = np.concatenate([row.embedding for row in rows]) if rows else np.empty(0, np.float32)
    columns = {
        "row": pa.array([row.row for row in rows], pa.int64()),
        "name": pa.array([row.item.name for row in rows], pa.string()),
        "text": pa.array([row.item.text for row in rows], pa.string()),
        "path": pa.array([row.item.path for row in rows], pa.string()),
        "fingerprint": pa.array([row.fingerprint for row in rows], pa.string()),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float32()), dim),
    }
    metadata = {"salt": salt, "skipped": json.dumps([asdict(item) for item in skipped])}
    table = pa.table(columns).replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    write_atomically(shard.path(directory), sink.getvalue().to_pybytes())


def any_finished(directory: Path) -> bool:
    """Whether there is a finished shard, of whatever it was made."""
    return any(directory.glob("data-*.arrow"))


def read_embeddings(directory: Path, shards: Iterable[Shard]) -> Iterator[np.ndarray]:
    """Embeddings of each shard in turn, shape ``(rows, dim)``, float32."""
    for shard in shards:
        yield _matrix(_read(shard.path(directory)))


def read_row(path: Path, row: int) -> dict[str, Any]:
    """All that a file holds of one of its rows, without the embedding.

    Raises:
        ValueError: The file is damaged or does not hold the row.
    """
    table = _read(path).drop_columns("embedding")
    place = table.column("row").index(row).as_py()
    if place < 0:
        raise ValueError(f"{path} does not hold row {row}")
    return table.slice(place, 1).to_pylist()[0]


def read_skipped(directory: Path, shard: Shard) -> list[Unreadable]:
    """What was skipped in a finished shard."""
    return [Unreadable(**item) for item in json.loads(_read(shard.path(directory)).schema.metadata[b"skipped"])]


def recall_rows(directory: Path, shards: Iterable[Shard], *, salt: str) -> dict[str, np.ndarray]:
    """Embeddings by row fingerprint, from finished shards that are not in the plan any more.

    When files were added, removed or changed, the shards around them have new digests; their other rows need not be
    embedded again. Only shards of the same embedder (`salt`) count.
    """
    current = {shard.path(directory) for shard in shards}
    known: dict[str, np.ndarray] = {}
    for path in sorted(directory.glob("data-*.arrow")):
        if path not in current:
            table = _read(path)
            if table.schema.metadata[b"salt"].decode() == salt:
                known.update(zip(table.column("fingerprint").to_pylist(), _matrix(table), strict=True))
    return known


def remove_stale(directory: Path, shards: Iterable[Shard]) -> None:
    """Deletes shards that are not in the plan and what a killed run left behind."""
    current = {shard.path(directory) for shard in shards}
    for path in [*directory.glob("data-*.arrow"), *directory.glob(".*.tmp")]:
        if path not in current:
            path.unlink()


def write_dataset_files(directory: Path, shards: Sequence[Shard]) -> None:
    """Adds the two small files with which ``datasets.load_from_disk(directory)`` opens the shards as one dataset."""
    from datasets import DatasetInfo, Features

    schema = _read(shards[0].path(directory)).schema.remove_metadata()
    DatasetInfo(features=Features.from_arrow_schema(schema)).write_to_directory(str(directory))
    write_atomically(directory / _STATE, _state(directory, shards))


def is_dataset_of(directory: Path, shards: Sequence[Shard]) -> bool:
    """Whether the dataset in `directory` is made of exactly these shards."""
    path = directory / _STATE
    return path.exists() and path.read_bytes() == _state(directory, shards)


def dataset_fingerprint(shards: Iterable[Shard]) -> str:
    """Stands for a dataset made of these shards; `read_dataset` gives it too."""
    return hash_parts(*(shard.digest for shard in shards))


def read_dataset(directory: Path) -> tuple[list[Path], str]:
    """The files of the dataset in `directory`, in row order, and its fingerprint."""
    state = json.loads((directory / _STATE).read_bytes())
    return [directory / file["filename"] for file in state["_data_files"]], state["_fingerprint"]


def _state(directory: Path, shards: Sequence[Shard]) -> bytes:
    state: dict[str, Any] = {
        "_data_files": [{"filename": shard.path(directory).name} for shard in shards],
        "_fingerprint": dataset_fingerprint(shards),
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    return json.dumps(state, indent=2).encode() + b"\n"


def _read(path: Path) -> pa.Table:
    import pyarrow as pa

    with pa.memory_map(os.fspath(path)) as file:
        try:
            with pa.ipc.open_stream(file) as reader:
                return reader.read_all()
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(
                f"{path} is damaged ({error}): delete it and run the same command again, which embeds its rows anew and "
                "keeps the others"
            ) from error


def _matrix(table: pa.Table) -> np.ndarray:
    column = table.column("embedding").combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), column.type.list_size)
