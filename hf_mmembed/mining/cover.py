"""Cutting a subset into clusters of k + 1 pairs, each pair in at most one of them, hard for one another.

In: who answers whom, and a function that finds the hardest candidates of some anchors among the rows still free. Out:
row numbers of shape ``(clusters, k + 1)`` and where the members came from.

Anchors are taken in the order of scarcity, ties at random. One whose candidates are used up waits for the next round,
in which the hardest of the remaining rows are looked for anew, so late clusters are about as hard as early ones. Only
when that leads nowhere are suspect candidates taken, the least suspect first, and then random rows. A document with as
many free rows as there are clusters left to build must go into each of them, or some of its rows could not be placed;
that is seen to throughout.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from .relations import Relations

__all__ = ["Cover", "Pools", "build_cover"]

logger = logging.getLogger(__name__)

_STALLED = 0.05  # a round that builds fewer than this share of the missing clusters is the last of its kind
_GIVEN_UP = 32  # anchors in a row without a cluster
_TRIES = 64  # rows of one document that are tried


@dataclass(frozen=True)
class Pools:
    """Candidates of some queries, hardest first, suspect ones at the end.

    Attributes:
        place: ``(queries of the subset,)``: line of each query in the other two, −1 where it was not asked for.
        documents: ``(queries asked for, depth)``, int32: document numbers, −1 for none.
        kept: ``(queries asked for,)``: how many of them no rule suspects.
    """

    place: np.ndarray
    documents: np.ndarray
    kept: np.ndarray


@dataclass(frozen=True)
class Cover:
    """Clusters and where their members came from, each array but the first of shape ``(clusters,)``.

    Attributes:
        rows: ``(clusters, k + 1)``, int64, the anchor first.
        from_pool: Members from the anchor's own candidates in the first round.
        next_best: Members from a later round, or suspect ones.
        at_random: Members taken at random, or because their document had to be placed.
        conflicts: Members that share an answer with another one (only where that was allowed).
    """

    rows: np.ndarray
    from_pool: np.ndarray
    next_best: np.ndarray
    at_random: np.ndarray
    conflicts: np.ndarray


def build_cover(
    relations: Relations,
    find: Callable[[np.ndarray, np.ndarray], Pools],
    k: int,
    *,
    seed: int,
    allow_conflicts: bool = False,
) -> Cover:
    """Builds the clusters.

    Args:
        relations: Who answers whom, over the rows to cover.
        find: Called with the queries and the documents that have free rows; gives their candidates.
        k: Members beside the anchor.
        seed: Decides ties and what is random.
        allow_conflicts: Fill a cluster with rows that share an answer where there are no others, instead of leaving
            them over: for labels, of which there may be fewer than k + 1.
    """
    builder = _Builder(relations, k, seed, allow_conflicts)
    stage = 0
    first = True
    while (missing := builder.missing) > 0:
        free = np.flatnonzero(~builder.used)
        pools = find(np.unique(relations.query_ids[free]), np.unique(relations.document_ids[free]))
        order = builder.random.permutation(len(free))
        order = order[np.argsort(pools.kept[pools.place[relations.query_ids[free[order]]]], kind="stable")]
        built = builder.run(free[order], pools, stage, first)
        logger.debug("stage %d: %d of %d clusters", stage, built, missing)
        if stage == 2:
            break
        stage += built < max(1, _STALLED * missing)
        first = False
    return builder.result()


class _Builder:
    def __init__(self, relations: Relations, k: int, seed: int, allow_conflicts: bool) -> None:
        self.random = np.random.default_rng(seed)
        self.used = np.zeros(len(relations.query_ids), bool)
        self._relations = relations
        self._k = k
        self._allow_conflicts = allow_conflicts
        groups = relations.rows_of_document
        keys = np.repeat(np.arange(relations.number_of_documents), groups.lengths)
        self._rows = groups.items[np.lexsort((self.random.random(len(keys)), keys))]  # in random order per document
        self._starts = groups.starts
        self._left = groups.lengths.copy()
        self._frequent = np.flatnonzero(self._left > 1)
        self._clusters: list[list[int]] = []
        self._origins: list[tuple[int, int, int, int]] = []
        self._spare = np.empty(0, np.int64)

    @property
    def missing(self) -> int:
        """Clusters that the free rows could still make."""
        return (len(self.used) - len(self._clusters) * (self._k + 1)) // (self._k + 1)

    def run(self, anchors: np.ndarray, pools: Pools, stage: int, first: bool) -> int:
        """Tries every free anchor once; returns how many clusters it built."""
        before, failures = len(self._clusters), 0
        places = pools.place[self._relations.query_ids]
        for row in anchors.tolist():
            if self.used[row]:
                continue
            if self.missing == 0 or (stage == 2 and failures == _GIVEN_UP):
                break
            line = places[row]
            near = pools.documents[line, : pools.kept[line]] if stage == 0 else pools.documents[line]
            near = near[near >= 0]
            near = near[self._left[near] > 0]
            failures = 0 if self._build(row, near, stage, first) else failures + 1
        return len(self._clusters) - before

    def result(self) -> Cover:
        rows = np.array(self._clusters, np.int64).reshape(-1, self._k + 1)
        return Cover(rows, *np.array(self._origins, np.int64).reshape(-1, 4).T)

    def _build(self, anchor: int, near: np.ndarray, stage: int, first: bool) -> bool:
        urgent = self._frequent[self._left[self._frequent] >= self.missing]
        if stage < 2 and len(near) + len(urgent) < self._k:
            return False
        draft = _Draft(self._relations, anchor, self._k)
        draft.add(self._free_rows(urgent[self.random.permutation(len(urgent))].tolist()))
        placed = len(draft.rows)
        draft.add(self._free_rows(near.tolist()))
        hard = len(draft.rows) - placed
        if len(draft.rows) <= self._k and stage == 2:
            draft.add(self._free_rows(self._spares()))
        conflicts = 0
        if len(draft.rows) <= self._k and stage == 2 and self._allow_conflicts:
            free = np.flatnonzero(~self.used)
            rest = np.setdiff1d(free, draft.rows)
            conflicts = self._k + 1 - len(draft.rows)
            draft.rows += rest[self.random.permutation(len(rest))[:conflicts]].tolist()
        if len(draft.rows) <= self._k:
            return False
        self.used[draft.rows] = True
        np.subtract.at(self._left, self._relations.document_ids[draft.rows], 1)
        origins = (hard, 0) if first else (0, hard)
        self._clusters.append(draft.rows)
        self._origins.append((*origins, self._k - hard - conflicts, conflicts))
        return True

    def _free_rows(self, documents: Iterable[int]) -> Iterator[Iterator[int]]:
        """For each document its free rows."""
        for document in documents:
            rows = self._rows[self._starts[document] : self._starts[document + 1]]
            yield iter(rows[~self.used[rows]][:_TRIES].tolist() if len(rows) > 1 else rows[~self.used[rows]].tolist())

    def _spares(self) -> Iterator[int]:
        """Documents with free rows, those with the most first, else in random order."""
        alive = self._spare[self._left[self._spare] > 0]
        if len(alive) < len(self._spare) / 2 or not len(self._spare):
            alive = np.flatnonzero(self._left > 0)
            alive = alive[self.random.permutation(len(alive))]
            alive = alive[np.argsort(-self._left[alive], kind="stable")]
            self._spare = alive
        return iter(alive.tolist())


class _Draft:
    """A cluster in the making: rows of which no two share an answer."""

    def __init__(self, relations: Relations, anchor: int, k: int) -> None:
        self.rows = [anchor]
        self._relations = relations
        self._k = k
        self._answers = set(relations.positives[relations.query_ids[anchor]].tolist())

    def add(self, documents: Iterable[Iterator[int]]) -> None:
        """Takes from each document's rows the first that shares no answer, until the cluster is full."""
        if len(self.rows) > self._k:
            return
        relations = self._relations
        for rows in documents:
            for row in rows:
                answers = relations.positives[relations.query_ids[row]].tolist()
                if self._answers.isdisjoint(answers):
                    self._answers.update(answers)
                    self.rows.append(row)
                    break
            if len(self.rows) > self._k:
                return
