"""Embeddings of every distinct query and document, once each, on the disk.

In: pairs, their `ContentIds` and an embedder. Out: a directory per side with npy files of shape ``(shard, dim)``, float32,
which are read as memory maps, and a ``manifest.json``. A file is written under a temporary name and renamed, and its
name holds a digest of what it was made from (contents, instructions, model), so a run that was killed goes on where it
was, and one with another model or other data takes nothing from it. A file with inputs that the disk failed to give has
another name, so that the next run tries it again. Under ``accelerate launch`` every process embeds its share of the
files; the directory has to be one that all of them see.
"""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
from datasets import Dataset
from tqdm import tqdm

from hf_mmembed.data.pairs import document_of, query_of
from hf_mmembed.data.rows import hash_parts
from hf_mmembed.files import write_atomically
from hf_mmembed.only_run import only_run
from hf_mmembed.processes import world
from hf_mmembed.transient import is_transient

from .ids import ContentIds

__all__ = ["Embedder", "Embeddings", "any_embedded", "embed_contents"]

logger = logging.getLogger(__name__)

FORMAT = "hf_mmembed/contents"
FORMAT_VERSION = 1

Side = Literal["queries", "documents"]


class Embedder(Protocol):
    """What of an `MMEmbedder` is used here."""

    def encode_query(self, inputs: list[dict[str, Any]], **options: Any) -> Any:
        """Embeddings ``(inputs, dim)``."""

    def encode_document(self, inputs: list[dict[str, Any]], **options: Any) -> Any:
        """Embeddings ``(inputs, dim)``."""

    def get_embedding_dimension(self) -> int | None:
        """The ``dim`` of both."""


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of all contents of one side.

    Attributes:
        shards: Memory maps of shape ``(shard, dim)``, in the order of ids; all but the last of the same length.
        skipped: Why a content has no embedding (its vector is NaN), by id.
    """

    shards: Sequence[np.ndarray]
    skipped: Mapping[int, str]

    def take(self, ids: np.ndarray) -> np.ndarray:
        """Embeddings of some ids, shape ``(ids, dim)``, float32, in memory."""
        size = len(self.shards[0])
        found = np.empty((len(ids), self.shards[0].shape[1]), np.float32)
        for number in np.unique(ids // size):
            places = np.flatnonzero(ids // size == number)
            found[places] = self.shards[number][ids[places] - number * size]
        return found


def embed_contents(
    pairs: Dataset,
    ids: ContentIds,
    embedder: Embedder,
    directory: Path,
    side: Side,
    *,
    model: Mapping[str, Any],
    batch_size: int = 32,
    shard_size: int = 2048,
) -> Embeddings:
    """Embeds every distinct query, or every distinct document, that is not embedded yet.

    Args:
        pairs: The pairs.
        ids: Their ids. A query is embedded with the canonical instruction of the subset where it first appears.
        embedder: The model.
        directory: Where the shards go; the same one for both sides.
        side: ``"queries"`` or ``"documents"``.
        model: What decides the numbers: fingerprint, hash of the prompt, dtype, resolution. Anything JSON holds;
            embeddings of another model in the directory are left alone. Beside a ``"fingerprint"``, ``"name"`` and
            ``"revision"`` are written down and decide nothing.
        batch_size: Inputs per forward pass, at most. Defaults to 32.
        shard_size: Contents per file: what a killed run loses at most, per process. Defaults to 2048.

    Raises:
        RuntimeError: The model gave an embedding that is not finite.
        ValueError: Not one content can be embedded, the embedder does not know its dimension, or another job writes to
            the directory.
    """
    dim = embedder.get_embedding_dimension()
    if dim is None:
        raise ValueError("the embedder does not know the dimension of its embeddings")
    folder = directory / side
    folder.mkdir(parents=True, exist_ok=True)
    digests = ids.query_digests if side == "queries" else ids.document_digests
    rows = ids.query_rows if side == "queries" else ids.document_rows
    # A fingerprint tells which model it is, wherever it lies.
    told = ("name", "revision") if "fingerprint" in model else ()
    deciding = {key: value for key, value in model.items() if key not in told}
    salt = hash_parts(side, json.dumps(deciding, sort_keys=True, default=str))
    starts = range(0, len(rows), shard_size)
    # The digest of a query holds its instruction, that of a document does not.
    asked = _instructions_of_documents(pairs, rows) if side == "documents" else []
    parts = [slice(start, start + shard_size) for start in starts]
    paths = [_path(folder, salt, digests[part], asked[part], part.start) for part in parts]
    process = world()
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "side": side,
        "model": dict(model),
        "instructions": dict(zip(ids.subsets, ids.instructions, strict=True)) if side == "queries" else None,
        "contents": len(rows),
        "shard_size": shard_size,
        "shards": [path.name for path in paths],
    }
    encode = embedder.encode_query if side == "queries" else embedder.encode_document
    with only_run(folder, directory):
        if process.main:
            _write_manifest(folder, manifest, complete=False)
        own = list(zip(starts, paths, strict=True))[process.rank :: process.size]
        done = sum(min(shard_size, len(rows) - start) for start, path in own if path.exists())
        total = sum(min(shard_size, len(rows) - start) for start, _ in own)
        with tqdm(
            total=total, initial=done, unit=" inputs", desc=f"embedding {side}", disable=None, smoothing=0.1
        ) as bar:
            for start, path in own:
                if path.exists():
                    continue
                inputs = _inputs(pairs, ids, rows[start : start + shard_size], side)
                vectors, reasons, transient = _embed(inputs, encode, batch_size, dim)
                skipped = {start + place: reason for place, reason in reasons.items()}
                written = _for_now(path) if transient else path
                # First the reasons, then the vectors: a shard counts as finished when these are there.
                write_atomically(written.with_suffix(".json"), json.dumps(skipped, ensure_ascii=False).encode("utf-8"))
                _write_npy(written, vectors)
                bar.update(len(inputs))
        process.wait()
        stale = [_for_now(path) for path in paths if path.exists()]
        paths = [path if path.exists() else _for_now(path) for path in paths]
        if process.main:
            _write_manifest(folder, {**manifest, "shards": [path.name for path in paths]}, complete=True)
            for stray in [*folder.glob(".*.tmp"), *stale, *(path.with_suffix(".json") for path in stale)]:
                stray.unlink(missing_ok=True)
    reasons_by_id = [json.loads(path.with_suffix(".json").read_text(encoding="utf-8")) for path in paths]
    skipped = {int(number): why for found in reasons_by_id for number, why in found.items()}
    if len(skipped) == len(rows):
        for path in paths if process.main else ():
            path.unlink()  # it may not be the inputs that are at fault: the next run tries again
        raise ValueError(f"none of {len(rows)} {side} can be embedded; the first: {skipped[0]}")
    return Embeddings([_map_npy(path) for path in paths], skipped)


def any_embedded(directory: Path) -> bool:
    """Whether a shard of a side is finished, of whatever it was made."""
    return any(directory.glob("*/shard-*.npy"))


def _path(folder: Path, salt: str, digests: np.ndarray, instructions: list[str], start: int) -> Path:
    return folder / f"shard-{start:09d}-{hash_parts(salt, digests.tobytes().hex(), *instructions)}.npy"


def _for_now(path: Path) -> Path:
    """The name of a shard in which an input is missing that another run may be given."""
    return path.with_suffix(".transient.npy")


def _instructions_of_documents(pairs: Dataset, rows: np.ndarray) -> list[str]:
    column = pairs.select_columns(["pos_instruction"]).select(rows.tolist()).with_format("arrow")[:]
    return column.column("pos_instruction").to_pylist()


def _inputs(pairs: Dataset, ids: ContentIds, rows: np.ndarray, side: Side) -> list[dict[str, Any]]:
    """What to encode for each of the rows."""
    table = pairs.select(rows.tolist()).with_format("arrow")[:]
    inputs = [query_of(row) if side == "queries" else document_of(row) for row in table.to_pylist()]
    if side == "queries":
        for item, subset in zip(inputs, ids.subset_ids[rows], strict=True):
            item["instruction"] = ids.instructions[subset]
    return inputs


def _embed(
    inputs: list[dict[str, Any]], encode: Callable[..., Any], batch_size: int, dim: int
) -> tuple[np.ndarray, dict[int, str], bool]:
    """Vectors ``(inputs, dim)``, why some of them are NaN, and whether a reason for that may be gone the next time."""
    vectors = np.full((len(inputs), dim), np.nan, np.float32)
    reasons: dict[int, str] = {}
    transient = False
    pending = [(0, inputs)]
    while pending:
        start, group = pending.pop()
        try:
            found = encode(group, batch_size=batch_size, show_progress_bar=False, convert_to_numpy=True)
        except ValueError as error:
            # One input is refused: halve the group until it is alone.
            if len(group) == 1:
                reasons[start] = " ".join(str(error).split())
                transient |= is_transient(error)
                continue
            middle = len(group) // 2
            pending += [(start, group[:middle]), (start + middle, group[middle:])]
            continue
        vectors[start : start + len(group)] = found
    wrong = np.setdiff1d(np.flatnonzero(~np.isfinite(vectors).all(1)), list(reasons))
    if len(wrong):
        raise RuntimeError(f"the model gave an embedding that is not finite for {str(inputs[wrong[0]])[:200]}")
    return vectors, reasons, transient


def _write_npy(path: Path, vectors: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, vectors, allow_pickle=False)
    write_atomically(path, buffer.getvalue())


def _map_npy(path: Path) -> np.ndarray:
    """A file of `_write_npy` as a memory map.

    One of numpy's keeps a file descriptor for as long as it lives, and a million pairs have more files than a process
    may hold open.
    """
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        start = file.tell()
    with pa.memory_map(os.fspath(path)) as mapped:
        return np.frombuffer(mapped.read_buffer(), dtype, offset=start).reshape(shape)


def _write_manifest(folder: Path, manifest: Mapping[str, Any], *, complete: bool) -> None:
    data = json.dumps({**manifest, "complete": complete}, indent=2, ensure_ascii=False, default=str)
    write_atomically(folder / "manifest.json", data.encode("utf-8") + b"\n")
