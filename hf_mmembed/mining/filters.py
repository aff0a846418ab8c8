"""Telling hard negatives from answers that nobody marked: the false-negative filter.

In: candidates of shape ``(queries, depth)``. Out: for each of them the rules that suspect it. A document that is not
marked as an answer may be one all the same, and its owners tell: who asks much the same as I do wants much the same
answer. Similarities are cosines after the mean is taken away, since the embeddings of a generative model crowd in a
narrow cone where a plain cosine says little.

Sources: comparison with owner queries, SaHa (arXiv 2508.00955); margin to the positive, NV-Retriever (arXiv 2407.15831).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .relations import Relations

__all__ = ["RULES", "FilterRules", "suspicions"]

RULES = ("rank", "query_similarity", "margin", "document_similarity")
_BLOCK_VALUES = 16_000_000  # float32 values gathered at once, 64 MB
_GATHER_COST = 20  # a dot product of gathered vectors takes as long as this many inside a matrix product


@dataclass(frozen=True)
class FilterRules:
    """When a candidate is suspect; None switches a rule off.

    Attributes:
        rank: Share of an anchor's candidates, those with the most similar owners, that are suspect whatever their
            similarity.
        query_similarity: Suspect above this similarity of the anchor's query and the document's most similar owner.
        margin: Suspect when the document is more similar to the anchor's query than its own document is, by this much.
        document_similarity: Suspect above this similarity of the document and the anchor's own document.
        centre: Take the mean away first. Defaults to True.
    """

    rank: float | None = None
    query_similarity: float | None = None
    margin: float | None = None
    document_similarity: float | None = None
    centre: bool = True

    def __post_init__(self) -> None:
        if self.rank is not None and not 0 <= self.rank < 1:
            raise ValueError(f"rank is a share, at least 0 and below 1, got {self.rank!r}")


class _Space:
    """One side's vectors with what turns their plain dot products into centred cosines."""

    def __init__(self, vectors: torch.Tensor, *, centre: bool) -> None:
        self.vectors = vectors
        self.mean = (
            vectors.mean(0, dtype=torch.float64).to(vectors.dtype) if centre else vectors.new_zeros(vectors.shape[1])
        )
        self.lengths = torch.cat([(part - self.mean).norm(dim=1) for part in vectors.split(65_536)]).clamp_min(1e-12)

    def centred(self, numbers: np.ndarray) -> torch.Tensor:
        chosen = torch.as_tensor(numbers, device=self.vectors.device)
        return (self.vectors[chosen] - self.mean) / self.lengths[chosen, None]

    def cosines(self, units: torch.Tensor, numbers: np.ndarray) -> np.ndarray:
        """Of centred unit vectors ``(rows, dim)`` with the vectors ``(rows, columns)`` beside them."""
        chosen = torch.as_tensor(numbers, device=self.vectors.device)
        dots = torch.bmm(self.vectors[chosen], units[:, :, None])[:, :, 0] - (units @ self.mean)[:, None]
        return (dots / self.lengths[chosen]).cpu().numpy()


def suspicions(
    queries: torch.Tensor,
    documents: torch.Tensor,
    relations: Relations,
    anchors: np.ndarray,
    candidates: np.ndarray,
    rules: FilterRules,
) -> np.ndarray:
    """Which rules suspect which candidates.

    Args:
        queries: ``(queries, dim)``.
        documents: ``(documents, dim)``.
        relations: Who answers whom.
        anchors: ``(anchors,)``: query numbers.
        candidates: ``(anchors, depth)``: document numbers, none of them a positive of its anchor; −1 for none.
        rules: The rules.

    Returns:
        ``(anchors, depth)``, uint8: bit i is set where ``RULES[i]`` suspects the candidate.
    """
    found = np.zeros(candidates.shape, np.uint8)
    if not len(anchors) or not candidates.shape[1]:
        return found
    query_space, document_space = _Space(queries, centre=rules.centre), _Space(documents, centre=rules.centre)
    step = max(1, _BLOCK_VALUES // (candidates.shape[1] * queries.shape[1]))
    for start in range(0, len(anchors), step):
        block = slice(start, start + step)
        near = np.maximum(candidates[block], 0)
        there = candidates[block] >= 0
        marks = np.zeros((len(RULES), *near.shape), bool)
        units = query_space.centred(anchors[block])
        if rules.rank is not None or rules.query_similarity is not None:
            similar = np.where(there, _most_similar_owner(query_space, relations, units, near, there), -np.inf)
            if rules.rank is not None:
                dropped = np.floor(there.sum(1) * rules.rank)
                ranks = np.argsort(np.argsort(-similar, axis=1, kind="stable"), axis=1, kind="stable")
                marks[0] = ranks < dropped[:, None]
            if rules.query_similarity is not None:
                marks[1] = similar > rules.query_similarity
        if rules.margin is not None or rules.document_similarity is not None:
            own_score, own_similarity = _against_own(document_space, relations, anchors[block], units, near)
            if rules.margin is not None:
                marks[2] = document_space.cosines(units, near) > own_score[:, None] + rules.margin
            if rules.document_similarity is not None:
                marks[3] = own_similarity > rules.document_similarity
        found[block] = np.packbits(marks & there, axis=0, bitorder="little")[0]
    return found


def _most_similar_owner(
    space: _Space, relations: Relations, units: torch.Tensor, near: np.ndarray, there: np.ndarray
) -> np.ndarray:
    """Cosine ``(anchors, depth)`` of each anchor with that owner of the document which is most like it."""
    owners = relations.owners
    counts = np.where(there, owners.lengths[near], 0)
    if counts.max(initial=0) <= 1:
        return space.cosines(units, owners.items[np.minimum(owners.starts[near], len(owners.items) - 1)])
    found = np.full(near.shape, -np.inf, np.float32)
    if counts.sum() * _GATHER_COST > len(near) * len(owners.items):
        owned = np.flatnonzero(owners.lengths)
        place = np.searchsorted(owned, near)
        for row in range(len(near)):
            every = space.vectors @ units[row] - units[row] @ space.mean
            every = (every / space.lengths).cpu().numpy()[owners.items]
            best = np.maximum.reduceat(every, owners.starts[owned])
            found[row] = best[np.minimum(place[row], len(owned) - 1)]
        return found
    flat = np.repeat(np.arange(near.size), counts.ravel())
    first = np.cumsum(counts.ravel()) - counts.ravel()
    items = owners.items[owners.starts[near].ravel()[flat] + np.arange(len(flat)) - first[flat]]
    step = max(1, _BLOCK_VALUES // units.shape[1])
    for start in range(0, len(flat), step):
        part = slice(start, start + step)
        cosines = space.cosines(
            units[torch.as_tensor(flat[part] // near.shape[1], device=units.device)], items[part, None]
        )
        np.maximum.at(found.reshape(-1), flat[part], cosines[:, 0])
    return found


def _against_own(
    space: _Space, relations: Relations, anchors: np.ndarray, units: torch.Tensor, near: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Best score ``(anchors,)`` of an anchor's own documents; similarity ``(anchors, depth)`` of others to one of them."""
    positives = relations.positives
    score = np.full(len(anchors), -np.inf, np.float32)
    similarity = np.full(near.shape, -np.inf, np.float32)
    for place in range(int(positives.lengths[anchors].max(initial=0))):
        rows = np.flatnonzero(positives.lengths[anchors] > place)
        own = positives.items[positives.starts[anchors[rows]] + place]
        chosen = torch.as_tensor(rows, device=units.device)
        score[rows] = np.maximum(score[rows], space.cosines(units[chosen], own[:, None])[:, 0])
        similarity[rows] = np.maximum(similarity[rows], space.cosines(space.centred(own), near[rows]))
    return score, similarity
