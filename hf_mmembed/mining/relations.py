"""Which documents answer a query and which queries a document answers, as flat arrays.

In: ids of shape ``(rows,)``. Out: `Relations`. Two rows conflict when their queries share an answer (a query shares its
own with itself): then the document of one is no negative for the query of the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

__all__ = ["RaggedArray", "Relations"]


@dataclass(frozen=True)
class RaggedArray:
    """Lists of different lengths in one array: list i is ``items[starts[i]:starts[i + 1]]``."""

    starts: np.ndarray
    items: np.ndarray

    @classmethod
    def of(cls, keys: np.ndarray, items: np.ndarray, number: int) -> RaggedArray:
        """Items by their key, from 0 to `number` (exclusive); within a key in the order given."""
        order = np.argsort(keys, kind="stable")
        return cls(np.searchsorted(keys[order], np.arange(number + 1)), items[order])

    def __getitem__(self, key: int) -> np.ndarray:
        return self.items[self.starts[key] : self.starts[key + 1]]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Length of each list."""
        return np.diff(self.starts)


class Relations:
    """Relations of the rows of one subset.

    Args:
        query_ids: ``(rows,)``, integers from 0.
        document_ids: ``(rows,)``, integers from 0.
        queries: How many query ids there may be.
        documents: How many document ids there may be.
        groups: ``(queries,)`` and ``(documents,)``, integers: what has the same number on either side is the same thing
            (`hf_mmembed.mining.groups`), so never a negative. Defaults to None: only the rows tell.
    """

    def __init__(
        self,
        query_ids: np.ndarray,
        document_ids: np.ndarray,
        queries: int,
        documents: int,
        groups: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        self.groups = groups
        self.query_ids = query_ids
        self.document_ids = document_ids
        self.number_of_documents = documents
        self.pairs = np.unique(query_ids.astype(np.int64) * documents + document_ids)  # sorted: a set to look up in
        of_query, of_document = np.divmod(self.pairs, documents)
        self.positives = RaggedArray.of(of_query, of_document, queries)
        self.owners = RaggedArray.of(of_document, of_query, documents)
        self.rows_of_document = RaggedArray.of(document_ids, np.arange(len(document_ids)), documents)

    def are_positives(self, queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
        """Whether each document answers the query beside it; any shapes that broadcast."""
        keys = queries.astype(np.int64) * self.number_of_documents + documents
        places = np.minimum(np.searchsorted(self.pairs, keys), len(self.pairs) - 1)
        return self.pairs[places] == keys

    def are_related(self, queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
        """Whether each document answers the query beside it or is the same thing; any shapes that broadcast."""
        related = self.are_positives(queries, documents)
        if self.groups is not None:
            related |= self.groups[0][queries] == self.groups[1][documents]
        return related

    @cached_property
    def most_related(self) -> int:
        """The most documents that are related to one query."""
        largest_group = 0 if self.groups is None else int(np.bincount(self.groups[1]).max(initial=0))
        return max(int(self.positives.lengths.max(initial=0)), largest_group)
