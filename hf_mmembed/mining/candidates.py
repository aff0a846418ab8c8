"""Exact nearest documents of every query, by matrix products over blocks.

In: embeddings of shape ``(queries, dim)`` and ``(documents, dim)``. Out: document numbers and scores of shape
``(queries, depth)``, best first, equal scores by number: what sorting all scores in float64 gives. No approximate index
is needed up to about two million documents, and memory does not grow with the product of the two.

How it stays exact in float32: a block product finds a few more documents than asked for; their scores are computed
anew in float64. A row is settled when its last document beats, by more than float32 can err, everything that was left
out; the rest, full of ties, is scored in float64 throughout.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

__all__ = ["Candidates", "as_matrix", "nearest_documents"]

BLOCK_BYTES = 256_000_000
"""Size of a block of scores; the search needs about three times as much on top of embeddings and result."""

_SPARE = 32  # documents beyond the asked ones, so that few rows are unsettled
_GROUP = 32  # scores whose maximum stands for them in the first selection
_EXACT_ROWS = 16


@dataclass(frozen=True)
class Candidates:
    """Nearest documents of every query.

    Attributes:
        documents: ``(queries, depth)``, int32, best first.
        scores: ``(queries, depth)``, float64 rounded to float32: dot products.
        unsettled: Rows that had to be scored in float64 throughout.
    """

    documents: np.ndarray
    scores: np.ndarray
    unsettled: int


def as_matrix(embeddings: np.ndarray | torch.Tensor, name: str) -> torch.Tensor:
    """Embeddings as a tensor of shape ``(rows, dim)``; float32 unless they are on an accelerator or in float64.

    Raises:
        ValueError: The shape is wrong or a value is not finite; the message names the row.
    """
    matrix = torch.as_tensor(embeddings)
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
        queries: ``(queries, dim)``, float32 or float64; the device they are on does the work.
        documents: ``(documents, dim)``, of the same type.
        depth: How many.
        block_bytes: Size of a block of scores. Defaults to 256 MB.

    Example:
        >>> found = nearest_documents(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.0], [1.0, 0.0], [0.5, 1.0]]), 2)
        >>> found.documents, found.scores
        (array([[1, 0]], dtype=int32), array([[1. , 0.5]], dtype=float32))
    """
    depth = min(depth, len(documents))
    kept = min(depth + _SPARE, len(documents))
    columns = min(len(documents), max(16_384, 4 * kept * _GROUP))
    rows = max(1, min(len(queries), 4096, block_bytes // (4 * columns)))
    limit = _largest_error(queries, documents)
    found = np.empty((len(queries), depth), np.int32)
    scores = np.empty((len(queries), depth), np.float32)
    unsettled = []
    with tqdm(total=len(queries), unit=" queries", desc="nearest documents", delay=2, disable=None) as bar:
        for start in range(0, len(queries), rows):
            block = queries[start : start + rows]
            near, rough = _roughly_nearest(block, documents, kept, columns)
            exact = _rescored(block, documents, near)
            order = np.lexsort((near, -exact), axis=1)
            near, exact = np.take_along_axis(near, order, 1), np.take_along_axis(exact, order, 1)
            found[start : start + rows] = near[:, :depth]
            scores[start : start + rows] = exact[:, :depth]
            if kept < len(documents) and depth:
                unsure = np.flatnonzero(exact[:, depth - 1] <= rough + limit)
                unsettled += (start + unsure).tolist()
            bar.update(len(block))
    for start in range(0, len(unsettled), _EXACT_ROWS):
        chosen = unsettled[start : start + _EXACT_ROWS]
        found[chosen], scores[chosen] = _exactly_nearest(queries[chosen], documents, depth, columns)
    return Candidates(found, scores, len(unsettled))


def _roughly_nearest(
    queries: torch.Tensor, documents: torch.Tensor, kept: int, columns: int
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers ``(rows, kept)`` of the best documents in the products' own precision, and the last one's score."""
    best = queries.new_empty((len(queries), 0))
    numbers = torch.empty((len(queries), 0), dtype=torch.int64, device=queries.device)
    for start in range(0, len(documents), columns):
        scores = queries @ documents[start : start + columns].to(queries.device).T
        own, places = _top(scores, min(kept, scores.shape[1]))
        best, numbers = torch.cat([best, own], 1), torch.cat([numbers, places + start], 1)
        if best.shape[1] > kept:
            best, places = best.topk(kept, dim=1)
            numbers = numbers.gather(1, places)
    return numbers.cpu().numpy(), best.amin(1).double().cpu().numpy()


def _top(scores: torch.Tensor, kept: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`torch.topk` over the last axis, several times faster where that is long.

    The `kept` best scores lie in the `kept` groups with the best maxima, so only these are looked at one by one.
    """
    rows, columns = scores.shape
    groups = columns // _GROUP
    if groups <= 2 * kept:
        return scores.topk(kept, dim=1)
    # A group is every `groups`-th score: maxima of whole rows are quicker than maxima of short runs.
    grouped = scores[:, : groups * _GROUP].view(rows, _GROUP, groups)
    chosen = grouped.amax(1).topk(kept, dim=1, sorted=False).indices
    places = (torch.arange(_GROUP, device=scores.device)[:, None] * groups + chosen[:, None, :]).flatten(1)
    rest = torch.arange(groups * _GROUP, columns, device=scores.device).expand(rows, -1)
    places = torch.cat([places, rest], 1)
    best, order = scores.gather(1, places).topk(kept, dim=1)
    return best, places.gather(1, order)


def _rescored(queries: torch.Tensor, documents: torch.Tensor, near: np.ndarray) -> np.ndarray:
    """Dot products in float64 of each query with its documents; equal documents get bit-equal scores."""
    exact = np.empty(near.shape)
    numbers = torch.as_tensor(near, device=documents.device)
    step = max(1, 32_000_000 // (8 * max(1, near.shape[1] * queries.shape[1])))
    for start in range(0, len(queries), step):
        chosen = documents[numbers[start : start + step]].to(queries.device, torch.float64)
        product = chosen.mul_(queries[start : start + step, None].double())
        exact[start : start + step] = product.sum(-1).cpu().numpy()
    return exact


def _exactly_nearest(
    queries: torch.Tensor, documents: torch.Tensor, depth: int, columns: int
) -> tuple[np.ndarray, np.ndarray]:
    """The same by float64 alone, for rows with more ties than could be kept."""
    wide = queries.double()
    scores = torch.cat(
        [
            wide @ documents[start : start + columns].to(wide.device, torch.float64).T
            for start in range(0, len(documents), columns)
        ],
        1,
    )
    limit = _largest_error(wide, documents)
    last = scores.topk(depth, dim=1).values[:, -1:]
    found, best = np.empty((len(queries), depth), np.int32), np.empty((len(queries), depth), np.float32)
    for row, near in enumerate(scores >= last - limit):
        numbers = near.nonzero().cpu().numpy().T
        exact = _rescored(queries[row : row + 1], documents, numbers)[0]
        order = np.lexsort((numbers[0], -exact))[:depth]
        found[row], best[row] = numbers[0, order], exact[order]
    return found, best


def _largest_error(queries: torch.Tensor, documents: torch.Tensor) -> float:
    """Twice what a dot product in the precision of `queries` can be off: dim · unit roundoff · the two lengths."""
    if not len(queries) or not len(documents):
        return 0.0
    lengths = [max(float(part.norm(dim=1).max()) for part in side.split(65_536)) for side in (queries, documents)]
    return 2 * queries.shape[1] * torch.finfo(queries.dtype).eps * lengths[0] * lengths[1]
