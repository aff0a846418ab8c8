"""Rows of a source become embeddings, a portion at a time; beside a GPU, threads prepare several portions at once.

In: a source, shards of it and how to encode. Out: for each portion, its embeddings and what cannot be read. Pictures are
opened a bounded number of pixels at a time, and the same ones are encoded together however many threads there are.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_mmembed.batching import Lookahead, prefetch, usable_cores
from hf_mmembed.data import Row, Source, Unreadable
from hf_mmembed.data.rows import UnreadableNow
from hf_mmembed.model.images_mmembed import open_image
from hf_mmembed.transient import is_transient

from .shards import Embedded, Shard

if TYPE_CHECKING:
    from PIL.Image import Image

    from hf_mmembed.sentence_transformer import MMEmbedder

__all__ = ["Done", "embed_portions", "encoder_of", "threads_beside"]

Encode = Callable[[list[dict[str, Any]]], np.ndarray]

_ROWS = 256  # of a portion, at most
_PICTURES = 64  # of a portion, where several are in the making
_BYTES = 64_000_000  # of a portion's pictures, still encoded, where these do not lie in files
_OPEN_PIXELS = 64_000_000  # decoded pictures held at once by a thread, about 200 MB; and as much again in the making
_OPENING = Lookahead(threads=4, items=8)
_MOST_THREADS = 8


@dataclass(frozen=True)
class Done:
    """What came of a portion.

    Attributes:
        shard: Number of the shard that its rows belong to.
        last: Whether that has no rows left.
        rows: Those with an embedding.
        skipped: The others.
        new: Embeddings that were computed, not recalled.
    """

    shard: int
    last: bool
    rows: list[Embedded]
    skipped: list[Unreadable]
    new: int


@dataclass(frozen=True)
class _Refused:
    reason: str
    transient: bool


@dataclass
class _Portion:
    shard: int
    last: bool = False
    recalled: list[Embedded] = field(default_factory=list)
    rows: list[tuple[int, Row | _Refused]] = field(default_factory=list)
    fingerprints: dict[int, str] = field(default_factory=dict)
    pictures: int = 0
    bytes: int = 0

    def add(self, row: int, item: Row | _Refused, fingerprint: str) -> None:
        self.rows.append((row, item))
        self.fingerprints[row] = fingerprint
        if isinstance(item, Row) and item.image is not None:
            self.pictures += 1
            self.bytes += len(item.image) if isinstance(item.image, bytes) else 0


@dataclass(frozen=True)
class _Opened:
    row: int
    item: Row
    inputs: dict[str, Any]
    pixels: int


def threads_beside(device_type: str) -> int:
    """How many portions to prepare at once for a model on a device of this type; 0 for none beside the one at work.

    Reading, decoding and scaling a photograph takes one core longer than it takes a GPU to embed it. Products on a CPU
    suffer from work beside them.

    Example:
        >>> threads_beside("cpu"), threads_beside("cuda") > 0
        (0, True)
    """
    return 0 if device_type == "cpu" else min(_MOST_THREADS, usable_cores())


def encoder_of(embedder: MMEmbedder, *, task: str, instruction: str | None, batch_size: int) -> Encode:
    """What makes unit vectors ``(inputs, dim)``, float32, of inputs for `task`, all under one instruction."""
    method = embedder.encode_query if task == "query" else embedder.encode_document

    def encode(inputs: list[dict[str, Any]]) -> np.ndarray:
        if instruction is not None:
            inputs = [{**item, "instruction": instruction} for item in inputs]
        # Searching compares by inner products; a module behind the model may have changed the length.
        options = {"normalize_embeddings": True, "show_progress_bar": False, "convert_to_numpy": True}
        vectors = method(inputs, batch_size=batch_size, **options)
        return np.asarray(vectors, dtype=np.float32)

    return encode


def embed_portions(
    source: Source,
    shards: Iterable[tuple[int, Shard]],
    encode: Encode,
    *,
    known: Mapping[str, np.ndarray],
    threads: int,
) -> Generator[Done, None, None]:
    """Embeds the rows of shards, in order.

    Args:
        source: The rows; read in the caller's thread alone.
        shards: The shards with their numbers.
        encode: Makes vectors of inputs; any thread may call it.
        known: Embeddings by the fingerprint of a row, which are not computed again.
        threads: As `threads_beside` gives it.

    Raises:
        RuntimeError: The model gave an embedding that is not finite.
    """
    portions = _portions(source, shards, known, pictures=_PICTURES if threads else _ROWS)
    opening = Lookahead(0, 0) if threads else _OPENING

    def work(portion: _Portion) -> tuple[list[Embedded], list[Unreadable]]:
        return _embed(source, portion, encode, opening)

    with closing(prefetch(work, portions, Lookahead(threads, items=threads))) as finished:
        for portion, (rows, skipped) in finished:
            yield Done(portion.shard, portion.last, portion.recalled + rows, skipped, new=len(rows))


def _portions(
    source: Source, shards: Iterable[tuple[int, Shard]], known: Mapping[str, np.ndarray], *, pictures: int
) -> Iterator[_Portion]:
    """Every row of the shards once; each shard has at least one portion, and only the last one says so."""
    for number, shard in shards:
        portion = _Portion(number)
        for row in range(shard.start, shard.stop):
            fingerprint = source.fingerprint(row)
            if fingerprint in known:
                portion.recalled.append(Embedded(row, source[row], fingerprint, known[fingerprint]))
                continue
            if len(portion.rows) >= _ROWS or portion.pictures >= pictures or portion.bytes >= _BYTES:
                yield portion
                portion = _Portion(number)
            portion.add(row, _read(source, row), fingerprint)
        portion.last = True
        yield portion


def _read(source: Source, row: int) -> Row | _Refused:
    try:
        return source[row]
    except ValueError as error:
        return _Refused(_one_line(error), transient=False)


def _embed(
    source: Source, portion: _Portion, encode: Encode, opening: Lookahead
) -> tuple[list[Embedded], list[Unreadable]]:
    """Finished and failed rows of a portion."""
    rows: list[Embedded] = []
    skipped: list[Unreadable] = []
    for opened, failed in _open_in_groups(source, portion.rows, opening):
        done, refused = _encode_group(source, opened, encode)
        rows += [Embedded(item.row, item.item, portion.fingerprints[item.row], vector) for item, vector in done]
        skipped += failed + refused
    return rows, skipped


def _encode_group(
    source: Source, group: list[_Opened], encode: Encode
) -> tuple[list[tuple[_Opened, np.ndarray]], list[Unreadable]]:
    """Encodes a group; where the model refuses an input (`ValueError`), finds out which one."""
    if not group:
        return [], []
    try:
        vectors = encode([item.inputs for item in group])
    except ValueError as error:
        if len(group) == 1:
            return [], [Unreadable(group[0].row, source.name(group[0].row), _one_line(error))]
        halves = [_encode_group(source, half, encode) for half in (group[: len(group) // 2], group[len(group) // 2 :])]
        return halves[0][0] + halves[1][0], halves[0][1] + halves[1][1]
    for item, vector in zip(group, vectors, strict=True):
        if not np.isfinite(vector).all():
            raise RuntimeError(f"the model gave an embedding that is not finite for {source.name(item.row)}")
    return list(zip(group, vectors, strict=True)), []


def _open_in_groups(
    source: Source, rows: Sequence[tuple[int, Row | _Refused]], opening: Lookahead
) -> Iterator[tuple[list[_Opened], list[Unreadable]]]:
    """Opens pictures and hands them on in groups of a bounded number of pixels, always the same ones."""
    group: list[_Opened] = []
    failed: list[Unreadable] = []
    pixels = 0
    with closing(prefetch(_open, rows, opening)) as all_opened:
        for (row, _), opened in all_opened:
            if isinstance(opened, _Refused):
                kind = UnreadableNow if opened.transient else Unreadable
                failed.append(kind(row, source.name(row), opened.reason))
                continue
            group.append(opened)
            pixels += opened.pixels
            if pixels >= _OPEN_PIXELS:
                yield group, failed
                group, failed, pixels = [], [], 0
    yield group, failed


def _open(numbered: tuple[int, Row | _Refused]) -> _Opened | _Refused:
    """The row with its picture decoded, or why it has none; any thread may call it."""
    row, item = numbered
    if isinstance(item, _Refused):
        return item
    inputs: dict[str, Any] = {} if item.text is None else {"text": item.text}
    pixels = 0
    if item.image is not None:
        try:
            image: Image = open_image(item.image)
        except ValueError as error:
            return _Refused(_one_line(error), transient=is_transient(error))
        inputs["image"] = image
        pixels = image.width * image.height
    return _Opened(row, item, inputs, pixels)


def _one_line(error: ValueError) -> str:
    return " ".join(str(error).split())
