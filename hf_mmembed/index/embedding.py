"""Embeds a source into a directory, shard by shard, and takes up where an earlier run was stopped.

In: a `Source`, a loaded `MMEmbedder` and a directory. Out: in the directory, `items/` (Arrow files that
``datasets.load_from_disk`` opens; embeddings of shape ``(rows, dim)``), `skipped.jsonl` and `manifest.json`. A row that
cannot be read has no embedding; it is listed with the reason.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from hf_mmembed.data import Source, Unreadable
from hf_mmembed.data.rows import UnreadableNow, hash_parts
from hf_mmembed.files import replacing, write_atomically
from hf_mmembed.identity import ModelIdentity
from hf_mmembed.lock import LOCK, only_writer
from hf_mmembed.visible import is_litter

from .manifest import Manifest, read_manifest, remove_leftovers, write_manifest
from .portions import embed_portions, encoder_of, threads_beside
from .shards import (
    Embedded,
    Shard,
    any_finished,
    is_dataset_of,
    plan_shards,
    read_embeddings,
    read_skipped,
    recall_rows,
    remove_stale,
    write_dataset_files,
    write_shard,
)

if TYPE_CHECKING:
    from hf_mmembed.sentence_transformer import MMEmbedder

__all__ = ["ITEMS", "SKIPPED", "Report", "check_directory", "embed_source", "unchanged_since", "write_npy"]

logger = logging.getLogger(__name__)

ITEMS = "items"
SKIPPED = "skipped.jsonl"
_NPY = "embeddings.npy"


@dataclass(frozen=True)
class Report:
    """What a run of `embed_source` did.

    Attributes:
        manifest: The manifest as written.
        shards: Files that hold the embeddings, in row order.
        skipped: Rows without an embedding, and what could not be listed.
        new: Embeddings computed by this run; the others were there before.
        seconds: What that took.
    """

    manifest: Manifest
    shards: list[Shard]
    skipped: list[Unreadable]
    new: int
    seconds: float


def embed_source(
    source: Source,
    embedder: MMEmbedder,
    identity: ModelIdentity,
    out: Path,
    *,
    task: str = "document",
    instruction: str | None = None,
    batch_size: int = 32,
    shard_size: int = 256,
    strict: bool = False,
) -> Report:
    """Embeds every row of `source` into `out`, keeping what an earlier, interrupted run finished.

    A run that was killed at any moment and started again gives the same bytes as one that was not. When rows of the
    source have changed since, only those are embedded again, and those that the disk failed to give.

    Args:
        source: What to embed.
        embedder: The model.
        identity: Its identity; a directory begun with another one is refused.
        out: Directory to write to; created if needed.
        task: ``"document"`` or ``"query"``.
        instruction: Instruction for every row, if any.
        batch_size: Rows per forward pass, at most. Defaults to 32.
        shard_size: Rows per file: what is lost when the process dies, with up to 8 x 64 pictures in the making beside a
            GPU. Defaults to 256.
        strict: Stop at the first row that cannot be read, now or in an earlier run.

    Raises:
        ValueError: `out` is a file or holds something else, another process is writing to it, (`strict`) a row cannot be
            read, or none can.
        OSError: A file cannot be written; finished shards are kept.
    """
    check_directory(out)
    out.mkdir(parents=True, exist_ok=True)
    with only_writer(out):
        manifest = _begin(source, identity, out, task=task, instruction=instruction, shard_size=shard_size)
        items = out / ITEMS
        made_by = [identity.fingerprint, identity.prompt_hash, task, instruction]
        if manifest.model.dtype is not None:
            made_by.append(manifest.model.dtype)
        salt = hash_parts(*made_by)
        shards = plan_shards(source, salt=salt, size=shard_size)
        finished = {shard: None for shard in shards if shard.path(items).exists()}  # in order
        if strict and (first := next(_skipped(source, items, finished), None)):
            raise ValueError(_stopped(first, items))
        if not is_dataset_of(items, shards):
            manifest = manifest.changed(faiss=None)
        write_manifest(out, manifest)
        items.mkdir(exist_ok=True)
        known = recall_rows(items, shards, salt=salt) if len(finished) < len(shards) else {}
        encode = encoder_of(embedder, task=task, instruction=instruction, batch_size=batch_size)
        todo = [(number, shard) for number, shard in enumerate(shards) if shard not in finished]
        threads = threads_beside(embedder.device.type)
        kept = sum(shard.stop - shard.start for shard in finished)
        new = 0
        for_now = any(isinstance(item, UnreadableNow) for item in source.unreadable)
        started = time.perf_counter()
        rows: list[Embedded] = []
        skipped: list[Unreadable] = []
        with (
            tqdm(total=len(source), initial=kept, unit=" items", desc="embedding", disable=None, smoothing=0.1) as bar,
            closing(embed_portions(source, todo, encode, known=known, threads=threads)) as portions,
        ):
            for done in portions:
                if strict and done.skipped:
                    raise ValueError(_stopped(done.skipped[0], items))
                new += done.new
                rows += done.rows
                skipped += done.skipped
                bar.update(len(done.rows) + len(done.skipped))
                if not done.last:
                    continue
                shard = shards[done.shard]
                rows.sort(key=lambda row: row.row)
                skipped.sort(key=lambda item: item.row or 0)
                if any(isinstance(item, UnreadableNow) for item in skipped):
                    # Under another name the next run recalls its rows, and does not take it for finished.
                    for_now = True
                    shard = shards[done.shard] = replace(
                        shard, digest=hash_parts(shard.digest, "not all could be read")
                    )
                write_shard(items, shard, rows, skipped, salt=salt, dim=identity.dimension)
                rows, skipped = [], []
        seconds = time.perf_counter() - started
        report = _finish(source, out, manifest, shards, new, seconds)
        if not for_now:  # else the next run finds there what this one was not given
            remove_stale(items, shards)
        return report


@contextmanager
def unchanged_since(report: Report, out: Path) -> Iterator[None]:
    """Holds a directory for adding to what `embed_source` made of it.

    Raises:
        ValueError: Another process is writing to it, or has changed it since.
    """
    with only_writer(out):
        same = read_manifest(out).changed(faiss=None) == report.manifest.changed(faiss=None)
        if not (same and is_dataset_of(out / ITEMS, report.shards)):
            raise ValueError(f"{out} was changed by another run meanwhile: run the same command again")
        yield


def write_npy(report: Report, out: Path) -> Path:
    """Writes all embeddings as `embeddings.npy`, shape ``(rows, dim)``, float32, in the order of the Arrow dataset.

    Raises:
        OSError: The file cannot be written.
        ValueError: Another process is writing to `out`, or has changed it since.
    """
    path = out / _NPY
    shape = (report.manifest.embedded, report.manifest.model.dimension)
    # Not through a memory map: on a full disk, writing to one kills the process.
    with unchanged_since(report, out), replacing(path) as temporary, temporary.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for block in read_embeddings(out / ITEMS, report.shards):
            file.write(block.astype("<f4").tobytes())
    return path


def check_directory(out: Path) -> None:
    """Makes sure that a directory may be written to: it is not there yet, is empty, or is ours.

    Raises:
        ValueError: It is a file, or holds something else.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise ValueError(f"{out} is a file: choose a directory for the embeddings")
    # A run killed early leaves its lock and a temporary file.
    foreign = any(item.name != LOCK and item.suffix != ".tmp" and not is_litter(item.name) for item in out.iterdir())
    if foreign and not (out / "manifest.json").exists():
        raise ValueError(f"{out} is not empty and holds no embeddings of ours: choose another directory")


def _begin(
    source: Source, identity: ModelIdentity, out: Path, *, task: str, instruction: str | None, shard_size: int
) -> Manifest:
    """The manifest to begin with; makes sure that what is there was begun in the same way."""
    named = {
        "kind": source.kind,
        "path": str(source.path),
        "image_column": source.image_column,
        "text_column": source.text_column,
    }
    manifest = Manifest(identity, task, instruction, named, rows=len(source), shard_size=shard_size)
    remove_leftovers(out)
    if (out / "manifest.json").exists():
        earlier = read_manifest(out)
        found = earlier.model.differences(identity)
        if earlier.input != named:
            found.append(f"the input ({earlier.input['path']} there, {source.path} here, or its columns)")
        if (earlier.task, earlier.instruction) != (task, instruction):
            found.append(f"the task or instruction ({earlier.task}, {earlier.instruction!r} there)")
        if earlier.model.dtype not in (None, identity.dtype):
            found.append(f"the number format ({earlier.model.dtype} there, {identity.dtype} on this device)")
        if found:
            raise ValueError(
                f"{out} was built from something else; what differs: {'; '.join(found)}. Choose another directory, or "
                "delete this one"
            )
        manifest = manifest.changed(faiss=earlier.faiss)
        if earlier.model.dtype is None:  # it counts for any, so that what is there can be used
            manifest = manifest.changed(model=replace(identity, dtype=None))
    return manifest


def _finish(source: Source, out: Path, manifest: Manifest, shards: list[Shard], new: int, seconds: float) -> Report:
    items = out / ITEMS
    skipped = list(_skipped(source, items, shards))
    lines = [json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in skipped]
    write_atomically(out / SKIPPED, "".join(lines).encode("utf-8"))
    lost = sum(item.row is not None for item in skipped)
    embedded = len(source) - lost
    if embedded == 0:
        first = f"; the first: {skipped[0].name}: {skipped[0].reason}" if skipped else ""
        raise ValueError(f"nothing in {source.path} could be embedded ({len(skipped)} items skipped{first})")
    if (out / _NPY).exists() and not is_dataset_of(items, shards):
        (out / _NPY).unlink()
        logger.info("removed %s: it held the embeddings before this change", out / _NPY)
    write_dataset_files(items, shards)
    manifest = manifest.changed(embedded=embedded, skipped=len(skipped), complete=True)
    write_manifest(out, manifest)
    return Report(manifest, shards, skipped, new, seconds)


def _skipped(source: Source, items: Path, shards: Iterable[Shard]) -> Iterator[Unreadable]:
    """What could not be listed, and what was skipped in finished shards."""
    yield from source.unreadable
    for shard in shards:
        yield from read_skipped(items, shard)


def _stopped(item: Unreadable, items: Path) -> str:
    kept = "; finished shards are kept" if any_finished(items) else ""
    return f"{item.name}: {item.reason} (stopped by --strict{kept})"
