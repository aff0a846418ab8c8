"""Whether pairs were thought about, told before the first step and not by the batch that meets what lacks a trace.

In: pairs, and who looks up their traces. Out: nothing, or an error that says how many lack one. No picture is read for
it: inputs without pictures are looked up, and of all there must be as many traces as there are different ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset
from tqdm import tqdm

from hf_mmembed.data.pair_schema import without_picture
from hf_mmembed.data.pairs import document_of, negatives_of, query_of
from hf_mmembed.inputs import as_messages
from hf_mmembed.mining.ids import ContentIds

if TYPE_CHECKING:
    from .traced import TracedCollator

__all__ = ["require_traces"]

_ROWS_AT_ONCE = 1000


def require_traces(pairs: Dataset, ids: ContentIds, collator: TracedCollator, clusters: np.ndarray | None) -> None:
    """Checks that what was thought about was thought about in all pairs.

    Args:
        pairs: To train on.
        ids: Of them.
        collator: Gives them their traces.
        clusters: Row numbers, -1 where a cluster is shorter: only these rows are trained on. None for all.

    Raises:
        ValueError: Traces are missing; the message says how many.
    """
    rows = np.arange(len(pairs))
    if clusters is not None and len(clusters):
        rows = np.unique(clusters[clusters >= 0])
        pairs = pairs.select(rows)
    for side in sorted(collator.sides, reverse=True):  # queries first
        what, command = collator.missing(side)
        how = f"make them with {command} from the same pairs"
        if missing := list(_without_trace(pairs, side, collator)):
            first = rows[missing[0]]
            raise ValueError(
                f"{len(missing)} of {len(rows)} pairs have no trace for their {what} (first: row {first}): {how}"
            )
        if side == "query":
            contents = ids.query_contents[ids.query_ids[rows]]
        else:
            contents = np.concatenate([ids.document_ids[rows], ids.negative_ids[rows].ravel()])
        different = len(np.unique(contents[contents >= 0]))
        there = sum(of == side for of, _ in collator.traces)
        if there < different:
            things = "queries" if side == "query" else "documents"
            raise ValueError(f"at least {different - there} of {different} different {things} have no trace: {how}")


def _without_trace(pairs: Dataset, side: str, collator: TracedCollator) -> Iterator[int]:
    """Rows that lack a trace on this side, of those without a picture there; negatives, where none has a picture."""
    kind = "query" if side == "query" else "pos"
    names = [f"{kind}_image", f"{kind}_instruction", *{f"{kind}_text", "pos_text"}]
    if "neg_text" in pairs.column_names and "neg_image" not in pairs.column_names:
        names.append("neg_text")
    start = 0
    with tqdm(total=len(pairs), unit=" rows", desc="looking up traces", delay=2, disable=None) as bar:
        for batch in pairs.select_columns(names).with_format("arrow").iter(_ROWS_AT_ONCE):
            alone = without_picture(batch.column(f"{kind}_image"))
            numbers = pc.indices_nonzero(alone).to_pylist()
            for number, row in zip(numbers, batch.filter(alone).to_pylist(), strict=True):
                items = [query_of(row)] if side == "query" else [document_of(row), *negatives_of(row)]
                if any(collator.trace_of(side, as_messages(item), row["pos_text"]) is None for item in items):
                    yield start + number
            start += len(batch)
            bar.update(len(batch))
