"""Exact nearest documents of every query, by matrix products over blocks.

In: embeddings of shape ``(queries, dim)`` and ``(documents, dim)``. Out: document numbers and scores of shape
``(queries, depth)``, best first, equal scores by number: what sorting all scores in float64 gives. No approximate index
is needed up to about two million documents, and memory does not grow with the product of the two.

How it stays exact in float32: a block product, never one of TF32, finds a few more documents than asked for. Scores that
lie closer together than float32 can err are computed anew in float64. A row is settled when its last document beats, by
more than that, all that was left out; the rest, full of ties, is scored in float64 throughout.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import torch
from tqdm import tqdm

__all__ = ["Candidates", "as_matrix", "nearest_documents", "pair_products"]

BLOCK_BYTES = 256_000_000
"""Size of a block of scores; the search needs little more on top of embeddings and result."""

_COLUMNS = 131_072  # of a block, unless more are kept: so that it has some hundred rows
_ROWS = 1024
_SPARE = 32  # documents beyond the asked ones, so that few rows are unsettled
_GROUP = 32  # scores whose maximum stands for them in the first selection
_EXACT_ROWS = 16
_CACHED_VALUES = 1 << 15  # gathered at once by a processor: what stays in its cache
_GATHERED_ROWS = 1 << 14  # gathered at once by an accelerator
_precision_is_set = threading.Lock()  # torch has one for all threads


@dataclass(frozen=True)
class Candidates:
    """Nearest documents of every query.

    Attributes:
        documents: ``(queries, depth)``, int32, best first.
        scores: ``(queries, depth)``, float32: dot products.
        unsettled: Rows that had to be scored in float64 throughout.
    """

    documents: np.ndarray
    scores: np.ndarray
    unsettled: int


def as_matrix(embeddings: np.ndarray | torch.Tensor, name: str) -> torch.Tensor:
    """Embeddings as a tensor of shape ``(rows, dim)``, float32 or float64, without gradient; half precision is widened.

    Raises:
        ValueError: The shape is wrong or a value is not finite; the message names the row.
    """
    if isinstance(embeddings, np.ndarray):  # of which torch takes neither negative strides nor another byte order
        embeddings = np.ascontiguousarray(embeddings, embeddings.dtype.newbyteorder("="))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nothing here writes into it
        matrix = torch.as_tensor(embeddings).detach()
    if matrix.ndim != 2 or not matrix.is_floating_point():
        raise ValueError(f"{name} must be floats of shape (rows, dim), not {matrix.dtype} {tuple(matrix.shape)}")
    if matrix.dtype in (torch.float16, torch.bfloat16):
        matrix = matrix.float()
    for start in range(0, len(matrix), 65_536):
        # A sum is finite only if all of its terms are; float64, so that large values do not overflow.
        wrong = ~torch.isfinite(matrix[start : start + 65_536].sum(1, dtype=torch.float64))
        if wrong.any():
            raise ValueError(
                f"{name}: row {start + int(wrong.nonzero()[0])} holds NaN or infinity ({int(wrong.sum())} such rows in "
                "its block): embed it again, or leave its pairs out"
            )
    return matrix


def nearest_documents(
    queries: torch.Tensor,
    documents: torch.Tensor,
    depth: int,
    *,
    block_bytes: int = BLOCK_BYTES,
) -> Candidates:
    """The `depth` documents with the largest dot product for every query, or all where there are fewer.

    Args:
        queries: ``(queries, dim)``, float32 or float64.
        documents: ``(documents, dim)``, of the same type, on the same device.
        depth: How many, at least 1.
        block_bytes: Size of a block of scores. Defaults to 256 MB.

    Example:
        >>> found = nearest_documents(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.0], [1.0, 0.0], [0.5, 1.0]]), 2)
        >>> found.documents, found.scores
        (array([[1, 0]], dtype=int32), array([[1. , 0.5]], dtype=float32))
    """
    depth = min(depth, len(documents))
    kept = min(depth + _SPARE, len(documents))
    columns = _GROUP * -(-min(len(documents), max(_COLUMNS, 4 * kept * _GROUP)) // _GROUP)
    rows = max(1, min(len(queries), _ROWS, block_bytes // (queries.element_size() * columns)))
    buffer = queries.new_empty(rows * columns)
    limits = _largest_difference(queries, documents)
    found = np.empty((len(queries), depth), np.int32)
    scores = np.empty((len(queries), depth), np.float32)
    unsettled = []
    with tqdm(total=len(queries), unit=" queries", desc="nearest documents", delay=2, disable=None) as bar:
        for start in range(0, len(queries), rows):
            block, limit = queries[start : start + rows], limits[start : start + rows, None]
            near, rough = _roughly_nearest(block, documents, kept, buffer, columns)
            if kept < len(documents):
                # Written so that scores that are not finite, from an overflow, count as unsure.
                unsure = ~(rough[:, depth - 1 : depth] - rough[:, -1:] > limit)
                unsettled += (start + unsure[:, 0].nonzero()[:, 0]).tolist()
            found[start : start + rows], scores[start : start + rows] = _in_exact_order(
                block, documents, near, rough, limit, depth
            )
            bar.update(len(block))
    for start in range(0, len(unsettled), _EXACT_ROWS):
        chosen = unsettled[start : start + _EXACT_ROWS]
        found[chosen], scores[chosen] = _exactly_nearest(
            queries[chosen].double(), documents, limits[chosen], depth, columns
        )
    return Candidates(found, scores, len(unsettled))


def pair_products(
    left: torch.Tensor,
    right: torch.Tensor,
    left_rows: torch.Tensor,
    right_rows: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Dot products ``(pairs,)`` of ``left[left_rows]`` and ``right[right_rows]``, both of shape ``(pairs, dim)``.

    They are summed in `dtype`, and the same two vectors give the same bits wherever they stand, which matrix products
    do not promise.
    """
    if left.device.type != "cpu":
        parts = zip(left_rows.split(_GATHERED_ROWS), right_rows.split(_GATHERED_ROWS), strict=True)
        return torch.cat([(left[one].to(dtype) * right[other].to(dtype)).sum(1) for one, other in parts])
    if dtype == torch.float32:
        arrays = [array.contiguous().numpy() for array in (left, left_rows, right, right_rows)]
        single = np.empty(len(left_rows), np.float32)
        pointers = [faiss.swig_ptr(array) for array in (*arrays, single)]
        faiss.pairwise_indexed_inner_product(left.shape[1], len(left_rows), *pointers)  # type: ignore[attr-defined]
        return torch.from_numpy(single)
    products = np.empty(len(left_rows))
    ours, theirs, one, other = left.numpy(), right.numpy(), left_rows.numpy(), right_rows.numpy()
    step = max(1, _CACHED_VALUES // left.shape[1])
    for start in range(0, len(products), step):
        part = slice(start, start + step)
        products[part] = np.vecdot(ours[one[part]].astype(np.float64), theirs[other[part]].astype(np.float64))
    return torch.from_numpy(products)


def _roughly_nearest(
    queries: torch.Tensor, documents: torch.Tensor, kept: int, buffer: torch.Tensor, columns: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers and scores ``(rows, kept)`` of the best documents in the products' own precision, best first."""
    best = queries.new_empty((len(queries), 0))
    numbers = torch.empty((len(queries), 0), dtype=torch.int64, device=queries.device)
    for start in range(0, len(documents), columns):
        part = documents[start : start + columns]
        width = _GROUP * -(-len(part) // _GROUP)
        scores = buffer[: len(queries) * width].view(len(queries), width)
        with _full_precision():
            torch.mm(queries, part.T, out=scores[:, : len(part)])
        scores[:, len(part) :] = -torch.inf
        own, places = _top(scores, min(kept, len(part)))
        best, numbers = torch.cat([best, own], 1), torch.cat([numbers, places + start], 1)
        best, places = best.topk(min(kept, best.shape[1]), dim=1)
        numbers = numbers.gather(1, places)
    return numbers, best


@contextmanager
def _full_precision() -> Iterator[None]:
    """Matrix products of float32 that multiply float32, where torch may be told to round to TF32 or bfloat16 before.

    What it is told for each kind of device is all that products look at, and can be read and written however it was set:
    `torch.get_float32_matmul_precision` and ``allow_tf32`` fail where it was set by kind of device.
    """
    kinds: list[Any] = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]  # type: ignore[attr-defined]
    with _precision_is_set:
        rounding = [(kind, kind.fp32_precision) for kind in kinds if kind.fp32_precision not in ("none", "ieee")]
        try:
            for kind, _ in rounding:
                kind.fp32_precision = "ieee"
            yield
        finally:
            for kind, precision in rounding:
                kind.fp32_precision = "none"  # as it is where torch as a whole was told, which the kind then follows
                if kind.fp32_precision != precision:
                    kind.fp32_precision = precision


def _top(scores: torch.Tensor, kept: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`torch.topk` over the last axis in any order, several times faster where that is long.

    The `kept` best scores lie in the `kept` groups with the best maxima, so only these are looked at one by one.
    """
    rows, columns = scores.shape
    groups = columns // _GROUP
    if groups <= 2 * kept:
        return scores.topk(kept, dim=1, sorted=False)
    # A group is every `groups`-th score: maxima of whole rows are quicker than maxima of short runs.
    chosen = scores.view(rows, _GROUP, groups).amax(1).topk(kept, dim=1, sorted=False).indices
    places = (torch.arange(_GROUP, device=scores.device)[:, None] * groups + chosen[:, None, :]).flatten(1)
    best, order = scores.gather(1, places).topk(kept, dim=1, sorted=False)
    return best, places.gather(1, order)


def _in_exact_order(
    queries: torch.Tensor,
    documents: torch.Tensor,
    near: torch.Tensor,
    rough: torch.Tensor,
    limit: torch.Tensor,
    depth: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The first `depth` documents by float64 scores, equal ones by number, and the scores; in and out best first."""
    close = ~(rough[:, :-1] - rough[:, 1:] > limit)
    close[:, depth - 1 :] = close[:, depth - 1 :].cumprod(1).bool()  # beyond `depth` what hangs together with it
    unsure = torch.zeros_like(near, dtype=torch.bool)
    unsure[:, :-1] |= close
    unsure[:, 1:] |= close
    lines, places = unsure.nonzero(as_tuple=True)
    scores = rough.double()
    scores[lines, places] = pair_products(queries, documents, lines, near[lines, places], torch.float64)
    return _sorted(near.cpu().numpy(), scores.cpu().numpy(), depth)


def _exactly_nearest(
    queries: torch.Tensor, documents: torch.Tensor, limits: torch.Tensor, depth: int, columns: int
) -> tuple[np.ndarray, np.ndarray]:
    """The same by float64 alone, for rows with more ties than could be kept."""
    scores = torch.cat([queries @ part.double().T for part in documents.split(columns)], 1)
    last = scores.topk(depth, dim=1).values[:, -1]
    found, best = np.empty((len(queries), depth), np.int32), np.empty((len(queries), depth), np.float32)
    for row, within in enumerate(scores >= (last - limits)[:, None]):
        [numbers] = within.nonzero(as_tuple=True)
        exact = pair_products(queries, documents, torch.full_like(numbers, row), numbers, torch.float64)
        found[row], best[row] = _sorted(numbers.cpu().numpy()[None], exact.cpu().numpy()[None], depth)
    return found, best


def _sorted(numbers: np.ndarray, scores: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.lexsort((numbers, -scores), axis=1)[:, :depth]
    return np.take_along_axis(numbers, order, 1), np.take_along_axis(scores, order, 1)


def _largest_difference(queries: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
    """How far apart two equal scores of a query can come out in the precision of `queries`, ``(queries,)``.

    A dot product is off by at most dim · unit roundoff · the two lengths (Higham, Accuracy and Stability, §3.1).
    """
    longest = max((float(part.norm(dim=1).max()) for part in documents.split(4096)), default=0.0)
    return 1.01 * queries.shape[1] * torch.finfo(queries.dtype).eps * longest * queries.norm(dim=1)
