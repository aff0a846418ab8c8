"""From rows of pairs to what a loss takes: both sides of a batch, and what is known about its items.

In: rows of a dataset of pairs with their row numbers. Out: `Side`s of distinct inputs, pictures still encoded, and
`Facts`. Nothing is tokenized or decoded here, so a batch is as small as its files. Runs in the workers of the loader.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from hf_mmembed.data.pairs import document_of, negatives_of, query_of
from hf_mmembed.duplicates import unique_inputs
from hf_mmembed.inputs import as_messages
from hf_mmembed.mining.ids import ContentIds

from .chunks import Facts, Side

__all__ = ["ROW", "PairCollator", "numbered"]

ROW = "row"
"""The column that holds the number of a row, by which its ids are found."""


def numbered(pairs: Dataset) -> Dataset:
    """Pairs with their row numbers in the column `ROW`, in place of any column of that name."""
    named = pairs.select_columns([name for name in pairs.column_names if name != ROW])
    return named.with_format(None).add_column(ROW, np.arange(len(pairs)))


class PairCollator:
    """Makes a batch of rows of a dataset of pairs.

    Args:
        ids: Of the whole dataset. Rows of a batch find theirs by the column `ROW`.

    Attributes:
        valid_label_columns: Asked for by the trainer of sentence-transformers; there are none.
    """

    valid_label_columns: Sequence[str] = ()

    def __init__(self, ids: ContentIds) -> None:
        self.ids = ids
        pairs = np.unique(np.stack([ids.query_ids, ids.document_ids], axis=1), axis=0)
        self._documents = pairs[:, 1]
        self._starts = np.searchsorted(pairs[:, 0], np.arange(pairs[-1, 0] + 2))

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The batch.

        Returns:
            ``sides``: queries, and documents (the positives in order, then the hard negatives); ``facts``.

        Raises:
            ValueError: A row cannot be embedded; the message names it.
        """
        numbers = [int(row[ROW]) for row in rows]
        queries = [query_of(row) for row in rows]
        documents = [document_of(row) for row in rows]
        negatives = [(number, item) for number, row in zip(numbers, rows, strict=True) for item in negatives_of(row)]
        of_negatives = self.ids.negative_ids[numbers]
        return {
            "sides": (
                _side(queries, numbers, "query"),
                _side(
                    documents + [item for _, item in negatives],
                    numbers + [number for number, _ in negatives],
                    "document",
                ),
            ),
            "facts": Facts(
                rows=torch.tensor(numbers),
                document_ids=torch.from_numpy(self.ids.document_ids[numbers]),
                positives=self._positives(self.ids.query_ids[numbers]),
                negative_ids=torch.from_numpy(of_negatives[of_negatives >= 0]),
                negative_rows=torch.tensor([number for number, _ in negatives], dtype=torch.int64),
            ),
        }

    def _positives(self, query_ids: np.ndarray) -> torch.Tensor:
        """``(n, most)``: ids of all documents that the dataset has for each query, -1 beyond them."""
        own = [self._documents[self._starts[query] : self._starts[query + 1]] for query in query_ids]
        table = np.full((len(own), max(map(len, own))), -1, dtype=np.int64)
        for row, documents in zip(table, own, strict=True):
            row[: len(documents)] = documents
        return torch.from_numpy(table)


def _side(items: Sequence[dict[str, Any]], rows: Sequence[int], task: str) -> Side:
    """The distinct ones among the items, since what is the same needs to be embedded only once."""
    messages = [as_messages(item, index=row) for item, row in zip(items, rows, strict=True)]
    firsts, places = unique_inputs(messages)
    return Side([messages[i] for i in firsts], [rows[i] for i in firsts], torch.tensor(places), task)
