"""Cutting a subset into clusters of k + 1 pairs, each pair in at most one of them, hard for one another.

In: who answers whom, and a function that finds the hardest candidates of some anchors among the rows still free. Out:
row numbers of shape ``(clusters, k + 1)`` and where the members came from.

Anchors are taken in the order of scarcity, ties at random. One whose candidates are used up waits for the next round,
in which the hardest of the remaining rows are looked for anew, so late clusters are about as hard as early ones. Where
that leads nowhere, clusters are filled up with random rows, and only where these do not fit either, with suspect ones,
the least suspect first, and what is the same thing. What is suspect to one member is kept out whoever the anchor is. A
document with as many free rows as there are clusters left to build has to go into each of them, or some of its rows
could not be placed; that is seen to throughout.
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
_TRIES = 4  # rows of one query without a cluster: its others have the same candidates, fewer by then
_TRIES = 64  # rows of one document that are tried


@dataclass(frozen=True)
class Pools:
    """Candidates of some queries, hardest first, suspect ones at the end.

    Attributes:
        place: ``(queries of the subset,)``: line of each query in the other two, −1 where it was not asked for.
        documents: ``(queries asked for, depth)``, int32: document numbers, −1 for none.
        kept: ``(queries asked for,)``: how many of them no rule suspects.
        firm: ``(queries asked for,)``: from where on they are suspect for what they are, not only for their rank; such
            a document is kept out of the cluster of that query altogether.
    """

    place: np.ndarray
    documents: np.ndarray
    kept: np.ndarray
    firm: np.ndarray

    def suspects(self, query: int) -> list[int]:
        """Documents that are firmly suspect to a query."""
        line = self.place[query]
        return self.documents[line, self.firm[line] :].tolist()


@dataclass(frozen=True)
class Cover:
    """Clusters and where their members came from, each array but the first of shape ``(clusters,)``.

    Attributes:
        rows: ``(clusters, k + 1)``, int64, the anchor first.
        from_pool: Members from the anchor's own candidates in the first round.
        next_best: Members from a later round, or suspect ones where nothing else fits.
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
        self._clusters: list[list[int]] = []
        self._origins: list[tuple[int, int, int, int]] = []
        self.used = np.zeros(len(relations.query_ids), bool)
        self._relations = relations
        self._k = k
        self._allow_conflicts = allow_conflicts
        groups = relations.rows_of_document
        keys = np.repeat(np.arange(relations.number_of_documents), groups.lengths)
        self._rows = groups.items[np.lexsort((self.random.random(len(keys)), keys))]  # in random order per document
        self._starts = groups.starts
        self._first = groups.starts[:-1].copy()  # before it, the rows of a document are used up
        self._left = groups.lengths.copy()
        self._frequent = np.flatnonzero(self._left > 1)
        self._most = int(self._left.max(initial=0))
        self._left_of_query = np.bincount(relations.query_ids)
        self._queries_left = np.count_nonzero(self._left_of_query)
        self.missing = self.achievable()
        self._urgent = self._find_urgent()
        self._spare = np.empty(0, np.int64)
        self._shuffled = self.random.permutation(len(self.used))

    def achievable(self) -> int:
        """How many clusters the free rows could make at best, with no document twice in one."""
        low, high = 0, int(self._left.sum()) // (self._k + 1)
        if self._allow_conflicts:
            return high
        while low < high:
            number = (low + high + 1) // 2
            if np.minimum(self._left, number).sum() >= number * (self._k + 1):
                low = number
            else:
                high = number - 1
        return low

    def run(self, anchors: np.ndarray, pools: Pools, stage: int, first: bool) -> int:
        """Tries every free anchor once; returns how many clusters it built."""
        self.missing = self.achievable()
        self._urgent = self._find_urgent()
        before, failures = len(self._clusters), 0
        queries = self._relations.query_ids
        places = pools.place[queries]
        in_vain = np.zeros(len(self._left_of_query), np.int64)
        for row in anchors.tolist():
            if self.used[row] or stage == 0 and in_vain[queries[row]] == _TRIES:
                continue
            if self.missing == 0 or failures == _GIVEN_UP and stage > 0:
                break
            if self._queries_left <= self._k and not self._allow_conflicts:  # no two rows of one query in a cluster
                break
            line = places[row]
            near = pools.documents[line] if stage == 2 else pools.documents[line, : pools.kept[line]]
            near = near[near >= 0]
            near = near[self._left[near] > 0]
            if stage == 0 and len(near) + len(self._urgent) < self._k:
                continue
            draft = _Draft(self._relations, row, self._k, pools if stage < 2 else None)
            built = self._build(draft, near, stage, first)
            failures = 0 if built else failures + 1
            in_vain[queries[row]] += not built
        return len(self._clusters) - before

    def result(self) -> Cover:
        rows = np.array(self._clusters, np.int64).reshape(-1, self._k + 1)
        return Cover(rows, *np.array(self._origins, np.int64).reshape(-1, 4).T)

    def _build(self, draft: _Draft, near: np.ndarray, stage: int, first: bool) -> bool:
        urgent = self._urgent[self.random.permutation(len(self._urgent))].tolist()
        needed = min(self._k, len(urgent) - len(draft.answers.intersection(urgent)))
        draft.add(self._free_rows(urgent))
        placed = len(draft.rows)
        if stage < 2 and placed <= needed:
            return False
        draft.add(self._free_rows(near.tolist()))
        hard = len(draft.rows) - placed
        if stage > 0:
            draft.add(self._free_rows(self._spares()))
        conflicts = 0
        if len(draft.rows) <= self._k and stage == 2 and self._allow_conflicts:
            conflicts = self._k + 1 - len(draft.rows)
            draft.rows += self._free_rows_but(draft.rows, conflicts)
        if len(draft.rows) <= self._k:
            return False
        self.used[draft.rows] = True
        np.subtract.at(self._left, self._relations.document_ids[draft.rows], 1)
        queries = self._relations.query_ids[draft.rows]
        np.subtract.at(self._left_of_query, queries, 1)
        self._queries_left -= np.count_nonzero(self._left_of_query[np.unique(queries)] == 0)
        origins = (hard, 0) if first else (0, hard)
        self._clusters.append(draft.rows)
        self._origins.append((*origins, self._k - hard - conflicts, conflicts))
        self.missing -= 1
        self._urgent = self._find_urgent()
        return True

    def _find_urgent(self) -> np.ndarray:
        """Documents that have to go into every cluster still missing."""
        if self.missing > self._most:
            return self._frequent[:0]
        return self._frequent[self._left[self._frequent] >= self.missing]

    def _free_rows(self, documents: Iterable[int]) -> Iterator[Iterator[int]]:
        """For each document its first free rows."""
        for document in documents:
            found: list[int] = []
            place, end = self._first[document], self._starts[document + 1]
            while len(found) < _TRIES and place < end:
                rows = self._rows[place : min(place + _TRIES, end)]
                free = np.flatnonzero(~self.used[rows])
                if not found:
                    self._first[document] = place + (free[0] if len(free) else len(rows))
                found += rows[free].tolist()
                place += len(rows)
            yield iter(found[:_TRIES])

    def _free_rows_but(self, taken: list[int], number: int) -> list[int]:
        """The next free rows in random order; there are enough of them."""
        found: list[int] = []
        end = 0
        while len(found) < number:
            part = self._shuffled[end : end + 4 * self._k]
            found += [row for row in part[~self.used[part]].tolist() if row not in taken]
            end += len(part)
        self._shuffled = self._shuffled[np.argmin(self.used[self._shuffled[:end]]) :]  # used up at the front
        return found[:number]

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
    """A cluster in the making: rows of which no two share an answer, are the same thing, or suspect to one another."""

    def __init__(self, relations: Relations, anchor: int, k: int, pools: Pools | None) -> None:
        self.rows: list[int] = []
        self._relations = relations
        self._k = k
        self._pools = pools
        self.answers: set[int] = set()
        self._suspects: set[int] = set()
        self._documents: set[int] = set()
        self._groups: set[int] = set()
        self._take(anchor)

    def add(self, documents: Iterable[Iterator[int]]) -> None:
        """Takes from each document's rows the first that fits, until the cluster is full."""
        if len(self.rows) > self._k:
            return
        for rows in documents:
            for row in rows:
                if self._take(row):
                    break
            if len(self.rows) > self._k:
                return

    def _take(self, row: int) -> bool:
        query = self._relations.query_ids[row]
        answers = self._relations.positives[query].tolist()
        if not self.answers.isdisjoint(answers):
            return False
        if self._pools is not None:
            group = None if self._relations.groups is None else int(self._relations.groups[0][query])
            if group in self._groups:
                return False
            document = int(self._relations.document_ids[row])
            suspects = self._pools.suspects(query)
            if document in self._suspects or not self._documents.isdisjoint(suspects):
                return False
            self._suspects.update(suspects)
            self._documents.add(document)
            if group is not None:
                self._groups.add(group)
        self.answers.update(answers)
        self.rows.append(row)
        return True
