"""Self-aware hard negative sampling, and the baselines that differ from it by which candidates they trust.

In: embeddings, who answers whom, and `FilterRules`. Out: `Clusters` of one subset. For every query the nearest
documents are looked up; those that are no answers of its own are its candidates; the rules put suspect ones last; and
`build_cover` makes clusters of what is left.

==========  ===========================================================================================================
strategy    candidates
==========  ===========================================================================================================
saha        nearest documents that are not the same thing (`groups`), suspects by the similarity of their owners, of
            the documents, and by the margin put last
top-k       nearest documents
margin      nearest documents that are not nearly as near as the positive (NV-Retriever, arXiv 2407.15831, TopK-MarginPos)
mutual      nearest documents whose owners have the anchor's document among their own nearest
==========  ===========================================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from .candidates import nearest_documents
from .clusters import Clusters
from .cover import Pools, build_cover
from .filters import RULES, FalseNegativeFilter, FilterRules
from .relations import Relations

__all__ = ["DEFAULT_RULES", "changed_rules", "mine_filtered"]

DEFAULT_RULES = {
    "saha": FilterRules(query_similarity=0.95, margin=0.0, document_similarity=0.95),
    "top-k": FilterRules(),
    "margin": FilterRules(margin=-0.05, centre=False),
    "mutual": FilterRules(),
}

_RECALL_AT = (1, 5, 10)
_RANK = np.uint8(1 << RULES.index("rank"))
_NOT_MUTUAL = np.uint8(1 << len(RULES))
_MOST_CHECKED = 8  # owners and documents that the mutual strategy looks at
_BLOCK_ROWS = 65_536
_DEEP_VALUES = 1 << 24  # documents looked at together for queries with very many of their own


def changed_rules(strategy: str, changes: Mapping[str, Any]) -> FilterRules:
    """The rules of a strategy, some of them changed.

    Args:
        strategy: A key of `DEFAULT_RULES`.
        changes: By name; None switches a rule off.

    Raises:
        ValueError: The strategy has no rules, or a value is out of range.

    Example:
        >>> changed_rules("saha", {"margin": None, "rank": 0.05})
        FilterRules(rank=0.05, query_similarity=0.95, margin=None, document_similarity=0.95, centre=True)
    """
    if strategy not in DEFAULT_RULES:
        raise ValueError(f"{strategy} has no rules to change; {', '.join(DEFAULT_RULES)} have")
    return replace(DEFAULT_RULES[strategy], **changes)


def mine_filtered(
    relations: Relations,
    queries: torch.Tensor,
    documents: torch.Tensor,
    *,
    strategy: str,
    k: int,
    mult: int,
    rules: FilterRules,
    label_subset: bool,
    seed: int,
) -> Clusters:
    """Clusters of one subset.

    Args:
        relations: Who answers whom.
        queries: ``(queries, dim)``.
        documents: ``(documents, dim)``.
        strategy: A key of `DEFAULT_RULES`.
        k: Members of a cluster beside the anchor.
        mult: ``mult · k`` admissible candidates per query are kept.
        rules: When a candidate is suspect.
        label_subset: The documents are labels: no candidate is suspect, and where there are too few labels one may
            come twice in a cluster (training masks it by its id).
        seed: Decides ties in the order of anchors and what is random.
    """
    if label_subset:
        rules = FilterRules()
    finder = _Finder(relations, queries, documents, depth=mult * k, rules=rules, strategy=strategy)
    cover = build_cover(relations, finder, k, seed=seed, allow_conflicts=label_subset)
    anchors = relations.query_ids[cover.rows[:, 0]]
    diagnostics = {name: values[anchors] for name, values in finder.diagnostics.items()}
    members = {
        "from_pool": cover.from_pool,
        "next_best": cover.next_best,
        "at_random": cover.at_random,
        "conflicts": cover.conflicts,
    }
    counts = {name: int(values.sum()) for name, values in (*finder.diagnostics.items(), *members.items())}
    counts |= {"rows": len(relations.query_ids), "left_over": len(relations.query_ids) - cover.rows.size}
    return Clusters(cover.rows, strategy, counts=counts, diagnostics={**diagnostics, **members}, recall=finder.recall)


class _Finder:
    """Looks for candidates; what the first search over everything finds is kept for the report.

    Attributes:
        diagnostics: ``(queries,)`` per name: admissible candidates (``candidates``), those that no rule suspects
            (``pool``), and those that each rule suspects (``suspect_rank`` ...).
        recall: Share of rows whose query has one of its documents among the nearest 1, 5, 10.
    """

    def __init__(
        self,
        relations: Relations,
        queries: torch.Tensor,
        documents: torch.Tensor,
        *,
        depth: int,
        rules: FilterRules,
        strategy: str,
    ) -> None:
        self.diagnostics: dict[str, np.ndarray] = {}
        self.recall: dict[str, float] = {}
        self._relations = relations
        self._queries = queries
        self._documents = documents
        self._depth = depth
        self._filter = FalseNegativeFilter(queries, documents, relations, rules)
        self._strategy = strategy

    def __call__(self, queries: np.ndarray, documents: np.ndarray) -> Pools:
        """Candidates of `queries` among `documents`, both given by number."""
        relations = self._relations
        reach = 2 * self._depth + min(2 * self._depth, relations.most_related)
        nearest = nearest_documents(
            _chosen(self._queries, queries), _chosen(self._documents, documents), max(reach, _RECALL_AT[-1])
        )
        near = documents.astype(np.int32)[nearest.documents]
        found = np.full((len(queries), self._depth), -1, np.int32)
        hits = np.zeros((len(queries), len(_RECALL_AT)), bool)
        for block in _blocks(len(queries)):
            own = relations.are_positives(queries[block, None], near[block])
            hits[block] = np.stack([own[:, :depth].any(1) for depth in _RECALL_AT], 1)
        near = near[:, :reach]
        for block in _blocks(len(queries)):
            found[block] = self._admissible(queries[block], near[block])
        self._look_deeper(queries, documents, near, found)
        marks = self._filter.suspicions(queries, found)
        if self._strategy == "mutual":
            marks[~_mutual(relations, queries, near, found) & (found >= 0)] |= _NOT_MUTUAL
        there = found >= 0
        pool = (there & (marks == 0)).sum(1)
        # The baselines look at the anchor alone.
        firm = (
            pool + (there & (marks == _RANK)).sum(1) if self._strategy == "saha" else np.full_like(pool, self._depth)
        )
        if not self.diagnostics:
            self._describe(queries, found, marks, pool, hits)
        for block in _blocks(len(queries)):
            suspicion = 2 * np.bitwise_count(marks[block]) - (marks[block] == _RANK) + np.where(there[block], 0, 99)
            found[block] = np.take_along_axis(found[block], np.argsort(suspicion, axis=1, kind="stable"), 1)
        place = np.full(len(self._queries), -1, np.int64)
        place[queries] = np.arange(len(queries))
        return Pools(place, found, pool, firm)

    def _admissible(self, queries: np.ndarray, near: np.ndarray) -> np.ndarray:
        """The first of the documents `near` each query that are not related to it, ``(queries, depth)``; −1 for none."""
        related = self._relations.are_related(queries[:, None], near)
        others = np.argsort(related, axis=1, kind="stable")[:, : self._depth]
        found = np.full((len(queries), self._depth), -1, np.int32)
        found[:, : others.shape[1]] = np.take_along_axis(near, others, 1)
        found[:, : others.shape[1]][np.take_along_axis(related, others, 1)] = -1
        return found

    def _look_deeper(self, queries: np.ndarray, documents: np.ndarray, near: np.ndarray, found: np.ndarray) -> None:
        """Searches on for queries that have found too few documents but their own, and completes their lines of `found`.

        In `near`, what they find takes the place of their own documents.
        """
        reach = near.shape[1]
        short = begun = np.flatnonzero(found[:, -1] < 0)
        while len(short) and reach < len(documents):
            reach = min(2 * reach, len(documents))
            for part in np.array_split(short, -(-len(short) * reach // _DEEP_VALUES)):
                asked = _chosen(self._queries, queries[part])
                deeper = nearest_documents(asked, _chosen(self._documents, documents), reach).documents
                found[part] = self._admissible(queries[part], documents.astype(np.int32)[deeper])
            short = short[found[short, -1] < 0]
        width = min(near.shape[1], self._depth)  # the mutual strategy asks whose nearest documents others' answers are
        there = found[begun, :width] >= 0
        near[begun, :width] = np.where(there, found[begun, :width], near[begun, :width])

    def _describe(
        self, queries: np.ndarray, found: np.ndarray, marks: np.ndarray, pool: np.ndarray, hits: np.ndarray
    ) -> None:
        columns = {"candidates": (found >= 0).sum(1), "pool": pool}
        columns |= {f"suspect_{name}": (marks >> bit & 1).sum(1) for bit, name in enumerate(RULES)}
        for name, values in columns.items():
            self.diagnostics[name] = np.zeros(len(self._queries), np.int64)
            self.diagnostics[name][queries] = values
        of_query = np.zeros((len(self._queries), len(_RECALL_AT)), bool)
        of_query[queries] = hits
        recall = of_query[self._relations.query_ids].mean(0).tolist()
        self.recall = {f"recall@{depth}": share for depth, share in zip(_RECALL_AT, recall, strict=True)}


def _mutual(relations: Relations, queries: np.ndarray, near: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Whether an owner of the candidate has a document of the anchor among its own nearest; shape of `found`."""
    width = relations.number_of_documents
    near_keys = np.sort((queries[:, None] * width + near).ravel())
    positives, owners = relations.positives, relations.owners
    mutual = np.zeros(found.shape, bool)
    candidates = np.maximum(found, 0)
    for i in range(min(_MOST_CHECKED, int(owners.lengths.max(initial=0)))):
        owner = owners.items[np.minimum(owners.starts[candidates] + i, len(owners.items) - 1)]
        for j in range(min(_MOST_CHECKED, int(positives.lengths[queries].max(initial=0)))):
            own = positives.items[np.minimum(positives.starts[queries] + j, len(positives.items) - 1)][:, None]
            keys = owner * width + own
            is_near = near_keys[np.minimum(np.searchsorted(near_keys, keys), len(near_keys) - 1)] == keys
            mutual |= is_near & (owners.lengths[candidates] > i) & (positives.lengths[queries] > j)[:, None]
    return mutual & (found >= 0)


def _chosen(vectors: torch.Tensor, numbers: np.ndarray) -> torch.Tensor:
    return vectors if len(numbers) == len(vectors) else vectors[torch.as_tensor(numbers, device=vectors.device)]


def _blocks(length: int) -> list[slice]:
    return [slice(start, start + _BLOCK_ROWS) for start in range(0, length, _BLOCK_ROWS)]
