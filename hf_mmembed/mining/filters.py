"""Telling hard negatives from answers that nobody marked: the false-negative filter.

In: candidates of shape ``(queries, depth)``. Out: for each of them the rules that suspect it. A document that is not
marked as an answer may be one all the same, and its owners tell: if a document's owner query is close to the anchor, the
document probably answers the anchor too. Similarities are cosines after the mean is taken away, since the embeddings of
a generative model crowd in a narrow cone where a plain cosine says little.

Sources: comparison with owner queries, SaHa (arXiv 2508.00955); margin to the positive, NV-Retriever (arXiv 2407.15831).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from .candidates import pair_products
from .relations import RaggedArray, Relations

__all__ = ["RULES", "FalseNegativeFilter", "FilterRules"]

RULES = ("rank", "query_similarity", "margin", "document_similarity")
_BLOCK_VALUES = 4_000_000  # of the candidates of a block of anchors: the second look at them finds them in the cache
_BLOCK_ROWS = 65_536  # anchors whose frequent candidates are looked at together
_FREQUENT = 4096  # anchors of a document times its owners: from here on a matrix product beats going through the pairs


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


class FalseNegativeFilter:
    """Marks suspects; what the vectors have in common is computed once.

    Args:
        queries: ``(queries, dim)``.
        documents: ``(documents, dim)``.
        relations: Who answers whom.
        rules: The rules.
    """

    def __init__(
        self, queries: torch.Tensor, documents: torch.Tensor, relations: Relations, rules: FilterRules
    ) -> None:
        self._queries = queries
        self._documents = documents
        self._relations = relations
        self._rules = rules

    def suspicions(self, anchors: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """Which rules suspect which candidates.

        Of owners equally similar, the rank rule suspects that of the candidate further left.

        Args:
            anchors: ``(anchors,)``: query numbers.
            candidates: ``(anchors, depth)``: document numbers, none of them a positive of its anchor; −1 for none.

        Returns:
            ``(anchors, depth)``, uint8: bit i is set where ``RULES[i]`` suspects the candidate.
        """
        found = np.zeros(candidates.shape, np.uint8)
        if self._rules == FilterRules(centre=self._rules.centre):
            return found
        step = max(1, _BLOCK_VALUES // max(1, candidates.shape[1] * self._queries.shape[1]))
        for first in range(0, len(anchors), _BLOCK_ROWS):
            part = slice(first, first + _BLOCK_ROWS)
            owners = self._owners_of_frequent(anchors[part], candidates[part])
            for start in range(0, len(owners), step):
                block = slice(first + start, min(first + start + step, first + len(owners)))
                found[block] = self._marks(anchors[block], candidates[block], owners[start : start + step])
        return found

    @cached_property
    def _query_space(self) -> _Space:
        return _Space(self._queries, centre=self._rules.centre)

    @cached_property
    def _document_space(self) -> _Space:
        return _Space(self._documents, centre=self._rules.centre)

    def _owners_of_frequent(self, anchors: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """Where in ``relations.owners.items`` the owner most like the anchor is, ``(anchors, depth)``.

        −1 where that is still to be found out: for documents that have few owners or are candidates of few anchors. An
        answer that many rows share has many of both, and would make as many pairs as the two numbers multiplied.
        """
        found = np.full(candidates.shape, -1)
        if self._rules.rank is None and self._rules.query_similarity is None:
            return found
        owners = self._relations.owners
        asked = np.bincount(candidates[candidates >= 0], minlength=len(owners.lengths))
        is_frequent = asked * owners.lengths >= _FREQUENT
        lines, columns = np.nonzero((candidates >= 0) & is_frequent[candidates])
        frequent, groups = np.unique(candidates[lines, columns], return_inverse=True)
        pairs = RaggedArray.of(groups, np.arange(len(groups)), len(frequent))
        for group, document in enumerate(frequent.tolist()):
            own = pairs[group]
            nearest = self._query_space.nearest(anchors[lines[own]], owners[document])
            found[lines[own], columns[own]] = owners.starts[document] + nearest
        return found

    def _marks(self, anchors: np.ndarray, candidates: np.ndarray, owners: np.ndarray) -> np.ndarray:
        rules, relations = self._rules, self._relations
        found = np.zeros(candidates.shape, np.uint8)
        lines, columns = np.nonzero(candidates >= 0)
        if not len(lines):
            return found
        near = candidates[lines, columns]
        units = self._query_space.centred(anchors)
        marks = np.zeros((len(RULES), len(near)), bool)
        if rules.rank is not None or rules.query_similarity is not None:
            known = owners[lines, columns]
            similar = _most_similar_owner(self._query_space, relations, units, lines, near, known)
            if rules.rank is not None:
                dropped = np.floor(np.bincount(lines) * rules.rank)
                marks[0] = _ranks(similar, lines, columns, candidates.shape) < dropped[lines]
            if rules.query_similarity is not None:
                marks[1] = similar > rules.query_similarity
        if rules.margin is not None:
            own = _best_own_score(self._document_space, relations, anchors, units)
            marks[2] = self._document_space.cosines(units, lines, near) > own[lines] + rules.margin
        if rules.document_similarity is not None:
            own = _most_similar_own(self._document_space, relations, anchors, lines, near)
            marks[3] = own > rules.document_similarity
        found[lines, columns] = np.packbits(marks, axis=0, bitorder="little")[0]
        return found


class _Space:
    """One side's vectors with what turns their plain dot products into centred cosines."""

    def __init__(self, vectors: torch.Tensor, *, centre: bool) -> None:
        parts = vectors.split(4096)
        self.vectors = vectors
        self.mean = vectors.new_zeros(vectors.shape[1])
        if centre:
            total = torch.stack([part.sum(0) for part in parts]).sum(0, dtype=torch.float64)
            self.mean = (total / len(vectors)).to(vectors.dtype)
        self.lengths = torch.cat([(part - self.mean).norm(dim=1) for part in parts]).clamp_min(1e-12)

    def centred(self, numbers: np.ndarray) -> torch.Tensor:
        """Centred unit vectors ``(rows, dim)``."""
        chosen = self._places(numbers)
        return (self.vectors[chosen] - self.mean) / self.lengths[chosen, None]

    def cosines(self, units: torch.Tensor, lines: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """``(pairs,)``, of centred unit vectors ``units[lines]`` with the vectors `numbers`; equal pairs are bit-equal."""
        left, right = self._places(lines), self._places(numbers)
        dots = pair_products(units, self.vectors, left, right, self.vectors.dtype)
        return ((dots - (units @ self.mean)[left]) / self.lengths[right]).cpu().numpy()

    def nearest(self, anchors: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Place ``(anchors,)`` in `others` of the vector most like each anchor, up to rounding; both are numbers."""
        step = max(1, math.isqrt(_BLOCK_VALUES))
        found = np.empty(len(anchors), np.int64)
        for start in range(0, len(anchors), step):
            units = self.centred(anchors[start : start + step])
            best = units.new_full((len(units),), -torch.inf)
            places = torch.zeros(len(units), dtype=torch.int64, device=units.device)
            for first in range(0, len(others), step):
                cosines, own = (units @ self.centred(others[first : first + step]).T).max(1)
                better = cosines > best
                best, places = torch.where(better, cosines, best), torch.where(better, own + first, places)
            found[start : start + step] = places.cpu().numpy()
        return found

    def _places(self, numbers: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(numbers, dtype=torch.int64, device=self.vectors.device)


def _ranks(values: np.ndarray, lines: np.ndarray, columns: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Place ``(pairs,)`` of each value among those of its line, the largest first, equal ones from the left."""
    table = np.full(shape, -np.inf, values.dtype)
    table[lines, columns] = values
    order = np.argsort(-table, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(shape[1])[None], 1)
    return ranks[lines, columns]


def _most_similar_owner(
    space: _Space, relations: Relations, units: torch.Tensor, lines: np.ndarray, near: np.ndarray, known: np.ndarray
) -> np.ndarray:
    """Cosine ``(pairs,)`` of each anchor with that owner of the document which is most like it.

    Where `known` says which owner that is, only its cosine is taken, but as all others are: one query that owns two
    documents is to be bit-equal for both, so that the rank rule sees a tie.
    """
    owners = relations.owners
    counts = np.where(known >= 0, 1, owners.lengths[near])
    starts = np.where(known >= 0, known, owners.starts[near])
    similar = np.full(len(near), -np.inf)
    firsts = np.cumsum(counts) - counts
    pairs = np.repeat(np.arange(len(near)), counts)
    items = owners.items[np.arange(len(pairs)) + (starts - firsts)[pairs]]
    owned = counts > 0
    if len(pairs):
        similar[owned] = np.maximum.reduceat(space.cosines(units, lines[pairs], items), firsts[owned])
    return similar


def _best_own_score(space: _Space, relations: Relations, anchors: np.ndarray, units: torch.Tensor) -> np.ndarray:
    """Cosine ``(anchors,)`` of each anchor with the best of its own documents."""
    best = np.full(len(anchors), -np.inf)
    for rows, own in _own_documents(relations, anchors):
        best[rows] = np.maximum(best[rows], space.cosines(units, rows, own))
    return best


def _most_similar_own(
    space: _Space, relations: Relations, anchors: np.ndarray, lines: np.ndarray, near: np.ndarray
) -> np.ndarray:
    """Cosine ``(pairs,)`` of each document with that document of its anchor which is most like it."""
    similar = np.full(len(near), -np.inf)
    for rows, own in _own_documents(relations, anchors):
        place = np.full(len(anchors), -1)
        place[rows] = np.arange(len(rows))
        pairs = np.flatnonzero(place[lines] >= 0)
        cosines = space.cosines(space.centred(own), place[lines[pairs]], near[pairs])
        similar[pairs] = np.maximum(similar[pairs], cosines)
    return similar


def _own_documents(relations: Relations, anchors: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The anchors that have a first document and these documents, then those that have a second, and so on."""
    positives = relations.positives
    counts = positives.lengths[anchors]
    for number in range(int(counts.max(initial=0))):
        rows = np.flatnonzero(counts > number)
        yield rows, positives.items[positives.starts[anchors[rows]] + number]
