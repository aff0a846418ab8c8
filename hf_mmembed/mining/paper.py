"""The greedy of the SaHa paper as its authors published it, for comparison.

In: embeddings and ids of one subset. Out: `Clusters` whose rows are shorter where the greedy found fewer members. Every
query is an anchor or a member in the first pass; anchors that found nothing left take members a second time in the
second. Of the ``mult · k`` nearest documents with an owner still free, the k are taken whose owners are least like the
anchor. The published program goes through queries and documents in the order of Python's sets, which depends on the
hash seed; this goes through them in the order of the data. Nothing else of the greedy differs: a query may meet itself,
a member may come twice, and the row of a query is its last one (Ju & Lee, arXiv 2508.00955, and their repository
Gen2Embed). What it is given differs: they take each wording of an instruction for a query of its own, here wordings of one
content are one query, embedded under the subset's most frequent instruction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .candidates import nearest_documents
from .clusters import Clusters
from .relations import RaggedArray, Relations

__all__ = ["mine_as_published"]

_LEAST = 256  # anchors looked up at once: fewer make slow matrix products
_PART = 32  # of the waiting anchors one in so many is looked up at once: some of these become members meanwhile


def mine_as_published(
    relations: Relations,
    queries: torch.Tensor,
    documents: torch.Tensor,
    *,
    k: int,
    mult: int,
    label_subset: bool,
) -> Clusters:
    """Clusters of one subset by the published greedy.

    Args:
        relations: Who answers whom.
        queries: ``(queries, dim)``.
        documents: ``(documents, dim)``.
        k: Members beside the anchor, at most.
        mult: ``mult · k`` candidates are compared with the anchor.
        label_subset: Take the nearest candidates, not those with the least similar owners.
    """
    pool = mult * k
    greedy = _Greedy(relations, queries, documents, k, 2 * pool, label_subset)
    rows = [*greedy.run(pool, again=False), *greedy.run(2 * pool, again=True)]
    shaped = np.full((len(rows), k + 1), -1, np.int64)
    for line, row in zip(shaped, rows, strict=True):
        line[: len(row)] = row
    lost = len(relations.query_ids) - len(np.unique(shaped[shaped >= 0]))
    return Clusters(shaped, "saha-paper", counts={"rows": len(relations.query_ids), "left_over": lost})


@dataclass(eq=False)
class _Greedy:
    relations: Relations
    queries: torch.Tensor
    documents: torch.Tensor
    k: int
    depth: int
    label_subset: bool

    def __post_init__(self) -> None:
        relations = self.relations
        self._vectors = self.queries.cpu().numpy()
        self._found: dict[int, np.ndarray] = {}
        self._used = np.zeros(len(self.queries), bool)
        self._last_row = np.full(len(self.queries), -1, np.int64)
        self._last_row[relations.query_ids] = np.arange(len(relations.query_ids))  # the last assignment counts
        # Owners in the order of the data, as a set that keeps the order of insertion would hold them.
        keys = relations.query_ids * relations.number_of_documents + relations.document_ids
        firsts = np.sort(np.unique(keys, return_index=True)[1])
        self._owners = RaggedArray.of(
            relations.document_ids[firsts], relations.query_ids[firsts], relations.number_of_documents
        )

    def run(self, limit: int, *, again: bool) -> list[list[int]]:
        """One pass over the data; rows of each cluster it makes, the anchor first."""
        relations, clusters = self.relations, []
        taken = np.zeros_like(self._used) if again else self._used
        for row, (anchor, document) in enumerate(zip(relations.query_ids, relations.document_ids, strict=True)):
            if self._used[anchor]:
                continue
            if anchor not in self._found:
                self._look_up(row)
            members = self._candidates(anchor, document, taken, limit)
            if not len(members):
                continue
            self._used[anchor] = True
            if not self.label_subset:
                members = members[np.argsort(self._vectors[members] @ self._vectors[anchor], kind="stable")]
            members = members[: self.k]
            clusters.append([row, *self._last_row[members].tolist()])
            self._used[members] = True
            taken[members] = True
        return clusters

    def _look_up(self, row: int) -> None:
        """Finds the nearest documents of the anchors from a row on, as many as will hardly be members before their turn."""
        waiting = self.relations.query_ids[row:]
        waiting = waiting[~self._used[waiting]]
        anchors = np.unique(waiting[: max(_LEAST, len(waiting) // _PART)])
        chosen = self.queries[torch.as_tensor(anchors, device=self.queries.device)]
        near = nearest_documents(chosen, self.documents, self.depth)
        self._found = dict(zip(anchors.tolist(), near.documents, strict=True))

    def _candidates(self, anchor: int, document: int, taken: np.ndarray, limit: int) -> np.ndarray:
        """The most similar free owner of each of the nearest documents, up to `limit`."""
        owners = self._owners
        found: list[int] = []
        for near in self._found[anchor].tolist():
            if near == document:
                continue
            free = owners[near][~taken[owners[near]]]
            if len(free) > 1:
                free = free[[int(np.argmax(self._vectors[free] @ self._vectors[anchor]))]]
            found += free.tolist()
            if len(found) == limit:
                break
        return np.array(found, np.int64)
