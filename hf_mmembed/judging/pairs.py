"""Judges a whole dataset of pairs; resumable, and shared out among processes.

In: pairs, a judge and candidates. Out: the pairs with hard negatives and scores; on the disk, in one directory, the
scores (``scores/``, a file for every few rows, named by a digest of what was asked and who answered) and the result
(``pairs/``, a dataset that `read_pairs` opens). The files of scores are kept, so that another margin costs nothing.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features
from datasets.arrow_writer import ArrowWriter
from numpy.typing import NDArray
from tqdm import tqdm

from hf_mmembed.data.pairs import NEGATIVE_FEATURES, document_of, query_of
from hf_mmembed.data.rows import hash_parts
from hf_mmembed.files import write_atomically
from hf_mmembed.only_run import only_run
from hf_mmembed.processes import world
from hf_mmembed.staging import replaced

from .candidates import Pool
from .sampling import sampled

__all__ = ["Judged", "judge_pairs"]

logger = logging.getLogger(__name__)

_ROWS_AT_ONCE = 32


class _Judge(Protocol):
    identity: str

    def __call__(self, queries: Sequence[dict[str, Any]], candidates: Sequence[dict[str, Any]]) -> NDArray[np.float64]:
        """Scores, none of them NaN."""
        ...


@dataclass(frozen=True)
class Judged:
    """What judging gave.

    Attributes:
        pairs: With ``neg_text``, ``neg_image``, ``pos_score`` and ``neg_score``.
        scores: ``(rows, 1 + most)``: of the document and of all candidates, NaN where there is none.
        false_negatives: Candidates that the filter took out.
        without: Rows that are left without a negative.
    """

    pairs: Dataset
    scores: NDArray[np.float64]
    false_negatives: int
    without: int


def judge_pairs(
    pairs: Dataset,
    judge: _Judge,
    pool: Pool,
    out: Path,
    *,
    margin: float = 0.1,
    keep: int = 8,
    stride: int = 5,
    rows_per_file: int = 16,
) -> Judged:
    """Scores every document and every candidate, as far as that is still to be done, and chooses the negatives.

    Args:
        pairs: What `read_pairs` returns; negatives and scores that they have are replaced.
        judge: A `Judge`.
        pool: Candidates of each row.
        out: Directory for scores and result.
        margin: See `sampled`, as for the next two.
        keep: Negatives per row.
        stride: Spread of the negatives.
        rows_per_file: What a killed run loses at most, per process.

    Raises:
        OSError: The result cannot be written; as below.
        ValueError: An input cannot be judged, or another run writes to the directory. Scores that were made before are
            kept.
    """
    with only_run(out):
        folder = out / "scores"
        folder.mkdir(parents=True, exist_ok=True)
        process = world()
        starts = range(0, len(pairs), rows_per_file)
        paths = [folder / name for name in process.once(lambda: _names(pairs, judge.identity, pool, starts))]
        with tqdm(total=len(pairs), unit=" pairs", desc="judging", delay=2, disable=None) as bar:
            for number, (start, path) in enumerate(zip(starts, paths, strict=True)):
                rows, places = _part(pairs, pool, start, rows_per_file)
                if number % process.size == process.rank and not path.exists():
                    try:
                        _save(path, _judged(judge, rows, places, pool))
                    except ValueError as error:
                        raise ValueError(
                            f"rows {start} to {start + len(rows) - 1} cannot be judged: {error}"
                        ) from error
                bar.update(len(rows))
        process.wait()
        # A file is in the order of the questions, but may have been written when rows had more candidates or gaps elsewhere.
        kept = [np.load(path) for path in paths]
        scores = _in_places(np.concatenate([file[~np.isnan(file)] for file in kept]), pool.places)
        chosen = [sampled(row[1:], row[0], margin=margin, keep=keep, stride=stride) for row in scores]
        process.once(partial(_write, out / "pairs", pairs, pool, scores, chosen))
        answers = np.isfinite(scores[:, 1:]) & (scores[:, 1:] > scores[:, :1] - margin)
        without = sum(len(own) == 0 for own in chosen)
        if without:
            logger.warning(
                "%d of %d rows are left without a negative and will teach nothing: the judge takes all of their candidates "
                "for answers, or they had none",
                without,
                len(pairs),
            )
        return Judged(Dataset.load_from_disk(str(out / "pairs")), scores, int(answers.sum()), without)


def _part(pairs: Dataset, pool: Pool, start: int, number: int) -> tuple[Dataset, NDArray[np.int64]]:
    """At most `number` rows, and the places of their candidates."""
    rows = range(start, min(start + number, len(pairs)))
    return pairs.select(rows), pool.places[rows.start : rows.stop]


def _names(pairs: Dataset, identity: str, pool: Pool, starts: range) -> list[str]:
    """The file of scores for each of `starts`. Each candidate is read once, whoever it is shown to."""
    shown = np.unique(pool.places[pool.places >= 0]).tolist()
    digests = {place: _digest(document_of(row)) for place, row in zip(shown, pool.items.select(shown), strict=True)}
    names = []
    for start in tqdm(starts, desc="judging: reading", delay=2, disable=None, leave=False):
        parts = zip(*_part(pairs, pool, start, starts.step), strict=True)
        asked = [part for row, own in parts for part in _asked(row, own, digests)]
        names.append(f"{start:09d}-{hash_parts(identity, *asked)}.npy")
    return names


def _asked(row: dict[str, Any], places: NDArray[np.int64], digests: dict[int, str]) -> list[str]:
    """What the questions about a row are made of: query and candidate of each, the row's own document first."""
    query, shown = (
        _digest(query_of(row)),
        [_digest(document_of(row)), *(digests[p] for p in places[places >= 0].tolist())],
    )
    return [part for candidate in shown for part in (query, candidate)]


def _judged(judge: _Judge, rows: Dataset, places: NDArray[np.int64], pool: Pool) -> NDArray[np.float64]:
    queries, candidates = [], []
    for row, own in zip(rows, places, strict=True):
        shown = [document_of(row), *pool.inputs(own[own >= 0])]
        queries += [query_of(row)] * len(shown)
        candidates += shown
    return _in_places(judge(queries, candidates), places)


def _in_places(answers: NDArray[np.float64], places: NDArray[np.int64]) -> NDArray[np.float64]:
    """Scores of each row's own document and of its candidates, NaN where there is none."""
    there = np.concatenate([np.ones((len(places), 1), bool), places >= 0], axis=1)
    scores = np.full(there.shape, np.nan)
    scores[there] = answers
    return scores


def _write(
    directory: Path, pairs: Dataset, pool: Pool, scores: NDArray[np.float64], chosen: list[NDArray[np.int64]]
) -> None:
    """The pairs with their negatives, some rows at a time: an array of Arrow's holds 2 GB of pictures, no more."""
    pairs = pairs.remove_columns([name for name in NEGATIVE_FEATURES if name in pairs.column_names])
    features = type(pairs.features)({**pairs.features, **NEGATIVE_FEATURES})
    with replaced(directory) as written, TemporaryDirectory(dir=written) as folder:
        file = str(Path(folder, "pairs.arrow"))
        with ArrowWriter(features=features, path=file) as writer:
            for start in range(0, len(pairs), _ROWS_AT_ONCE):
                rows = range(start, min(start + _ROWS_AT_ONCE, len(pairs)))
                part = slice(rows.start, rows.stop)
                table = pairs.select(rows).with_format("arrow")[:]
                own = pool.places[part], scores[part], chosen[part]
                writer.write_table(_with_negatives(table, pool, *own, features))
            writer.finalize()
        Dataset.from_file(file).save_to_disk(written)


def _with_negatives(
    table: pa.Table,
    pool: Pool,
    places: NDArray[np.int64],
    scores: NDArray[np.float64],
    chosen: list[NDArray[np.int64]],
    features: Features,
) -> pa.Table:
    flat = np.concatenate([row[own] for row, own in zip(places, chosen, strict=True)])
    offsets = pa.array(np.cumsum([0, *map(len, chosen)]), pa.int32())
    items = pool.items.select(flat.tolist()).with_format("arrow")[:]
    columns = {f"neg_{kind}": items.column(f"pos_{kind}").combine_chunks() for kind in ("text", "image")}
    columns["neg_score"] = pa.array(np.concatenate([row[1:][own] for row, own in zip(scores, chosen, strict=True)]))
    for name, values in columns.items():
        table = table.append_column(name, pa.ListArray.from_arrays(offsets, values))
    table = table.append_column("pos_score", pa.array(scores[:, 0]))
    return table.select(list(features)).cast(features.arrow_schema)


def _digest(item: dict[str, Any]) -> str:
    image = item.get("image")
    if isinstance(image, str):
        # A file that cannot be read is reported when it is opened to be judged.
        with suppress(OSError, ValueError):
            image = Path(image).read_bytes()
    picture = hashlib.blake2b(image, digest_size=16).hexdigest() if isinstance(image, bytes) else image
    return hash_parts(item.get("text"), item.get("instruction"), picture)


def _save(path: Path, scores: NDArray[np.float64]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, scores, allow_pickle=False)
    write_atomically(path, buffer.getvalue())
