"""The FAISS index over the embeddings: exact while that is quick, approximate above a stated size.

In: unit vectors of shape ``(rows, dim)``, shard by shard. Out: a FAISS index whose scores are cosine similarities, and
what it is, for the manifest.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np
from tqdm import tqdm

from hf_mmembed.files import replacing

__all__ = ["FLAT_LIMIT", "HNSW_LIMIT", "Kind", "build", "choose_kind", "describe", "load", "save"]

Kind = Literal["flat", "hnsw", "ivf"]

FLAT_LIMIT = 200_000
HNSW_LIMIT = 2_000_000
_HNSW_LINKS = 32
_HNSW_EF = 128
_RECALL_QUERIES = 100
_RECALL_DEPTH = 10


def choose_kind(rows: int) -> Kind:
    """Flat (exact) up to 200,000 rows, an HNSW graph up to 2,000,000, inverted lists above.

    >>> choose_kind(300), choose_kind(1_000_000), choose_kind(5_000_000)
    ('flat', 'hnsw', 'ivf')
    """
    return "flat" if rows <= FLAT_LIMIT else "hnsw" if rows <= HNSW_LIMIT else "ivf"


def build(
    blocks: Callable[[], Iterable[np.ndarray]], *, rows: int, dim: int, kind: Kind | None = None
) -> tuple[faiss.Index, dict[str, Any]]:
    """Builds the index and, where it is approximate, measures what it misses.

    Args:
        blocks: Called whenever the vectors are needed; gives arrays of shape ``(some rows, dim)`` in row order.
        rows: Their total number.
        dim: Their length.
        kind: ``"flat"``, ``"hnsw"`` or ``"ivf"``. Defaults to what `choose_kind` says.

    Returns:
        The index and its description: ``kind``, ``metric``, ``vectors`` and ``recall_at_10`` (against exact search,
        over at most 100 of the vectors; 1.0 for a flat index).
    """
    kind = kind or choose_kind(rows)
    index: faiss.Index
    if kind == "flat":
        index = faiss.IndexFlatIP(dim)
    elif kind == "hnsw":
        index = faiss.IndexHNSWFlat(dim, _HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = index.hnsw.efSearch = _HNSW_EF
    else:
        lists = max(1, min(rows // 39, round(4 * rows**0.5)))  # FAISS wants at least 39 training vectors per list
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, lists, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = max(1, lists // 16)
        index.train(_sample(blocks(), rows, 64 * lists))
    with tqdm(total=rows, unit=" vectors", desc=f"building {kind}", delay=2, disable=None) as bar:
        for block in blocks():
            index.add(np.ascontiguousarray(block, np.float32))
            bar.update(len(block))
    recall = 1.0 if kind == "flat" else _recall(index, blocks, rows)
    return index, {"kind": kind, "metric": "cosine", "vectors": rows, "recall_at_10": round(recall, 4)}


def describe(info: dict[str, Any]) -> str:
    """One line for the user: what the index is and whether its answers are exact."""
    if info["kind"] == "flat":
        return f"flat FAISS index over {info['vectors']:,} vectors, exact"
    name = {"hnsw": "HNSW graph", "ivf": "inverted lists (IVF)"}[info["kind"]]
    limit = FLAT_LIMIT if info["kind"] == "hnsw" else HNSW_LIMIT
    return (
        f"{name} over {info['vectors']:,} vectors, approximate (default above {limit:,} vectors): finds "
        f"{100 * info['recall_at_10']:.1f} % of the exact top {_RECALL_DEPTH}, measured on "
        f"{min(_RECALL_QUERIES, info['vectors'])} of them"
    )


def save(index: faiss.Index, path: Path) -> None:
    """Writes the index to a temporary name and renames it.

    Raises:
        OSError: It cannot be written; the message names `path`.
    """
    # FAISS itself does not notice where a full disk swallows the last bytes of a file.
    with replacing(path) as temporary, temporary.open("wb") as file:
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))  # type: ignore[attr-defined]


def load(path: Path) -> faiss.Index:
    """Reads an index back.

    Raises:
        ValueError: The file is missing or broken.
    """
    try:
        return faiss.read_index(os.fspath(path))
    except RuntimeError as error:
        raise ValueError(f"cannot read {path}: run `hf-mmembed index` again, its embeddings are kept") from error


def _sample(blocks: Iterable[np.ndarray], rows: int, wanted: int) -> np.ndarray:
    """About `wanted` vectors, evenly spaced over all rows."""
    step = max(1, rows // wanted)
    picked, start = [], 0
    for block in blocks:
        picked.append(block[(-start) % step :: step])
        start += len(block)
    return np.concatenate(picked)


def _recall(index: faiss.Index, blocks: Callable[[], Iterable[np.ndarray]], rows: int) -> float:
    queries = _sample(blocks(), rows, _RECALL_QUERIES)[:_RECALL_QUERIES]
    depth = min(_RECALL_DEPTH, rows)
    scores = np.full((len(queries), 0), -np.inf, np.float32)
    labels = np.zeros((len(queries), 0), np.int64)
    start = 0
    for block in blocks():
        scores = np.concatenate([scores, queries @ block.T], axis=1)
        labels = np.concatenate([labels, np.tile(np.arange(start, start + len(block)), (len(queries), 1))], axis=1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
        scores, labels = np.take_along_axis(scores, best, 1), np.take_along_axis(labels, best, 1)
        start += len(block)
    found = index.search(np.ascontiguousarray(queries, np.float32), depth)[1]
    return float(np.mean([len(set(a) & set(b)) / depth for a, b in zip(found.tolist(), labels.tolist(), strict=True)]))
