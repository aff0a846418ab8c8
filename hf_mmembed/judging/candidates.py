"""What a judge is shown for each query: mined documents, or the hard negatives that the pairs bring along.

In: pairs. Out: `Pool`, each candidate once as it is stored, and places in it, ``(rows, most)``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from numpy.typing import NDArray

from hf_mmembed.data.pairs import document_of
from hf_mmembed.mining import ContentIds, content_ids
from hf_mmembed.mining.candidates import nearest_documents
from hf_mmembed.mining.digests import KEPT_DIGESTS
from hf_mmembed.mining.relations import Relations
from hf_mmembed.mining.store import Embedder, Embeddings, embed_contents
from hf_mmembed.only_run import only_run
from hf_mmembed.processes import world

__all__ = ["Pool", "mined", "of_pairs"]

logger = logging.getLogger(__name__)

_FOUND_AT_ONCE = 1 << 26  # documents of some queries, in memory at the same time


@dataclass(frozen=True)
class Pool:
    """Candidates.

    Attributes:
        items: Their ``pos_text``, ``pos_image`` and ``pos_instruction``, a row for each.
        places: ``(rows, most)``, int64: rows of `items` for each pair, best first, -1 beyond them.
    """

    items: Dataset
    places: NDArray[np.int64]

    def inputs(self, places: NDArray[np.int64]) -> list[dict[str, Any]]:
        """Some of them, as `MMEmbedder.encode` takes them."""
        return [document_of(row) for row in self.items.select(places.tolist())]


_ITEM = ["pos_text", "pos_image", "pos_instruction"]


def mined(
    pairs: Dataset,
    miner: Embedder,
    directory: Path,
    *,
    model: Mapping[str, Any],
    depth: int = 50,
    cap: float = 1.0,
    device: str | torch.device | None = None,
) -> Pool:
    """The documents of the whole dataset most similar to each query, but for its own.

    Under ``accelerate launch`` all processes embed; the first one searches, and all return the same.

    Args:
        pairs: What `read_pairs` returns.
        miner: Who retrieves.
        directory: For embeddings and the digests of pictures; resumable.
        model: What decides the embeddings; see `embed_contents`.
        depth: How many. Defaults to 50.
        cap: δ: what is more similar than this is passed over, however much it is; a query has fewer than `depth` only
            where no more are left. The paper does not give it. Defaults to 1, all.
        device: Where to search; the CPU for ``mps``. Defaults to the CPU.

    Raises:
        OSError: The directory cannot be written.
        ValueError: An input cannot be read or embedded, or another run writes to the directory.
    """
    with only_run(directory):
        ids = world().once(partial(content_ids, pairs, kept=directory / KEPT_DIGESTS))
        queries = embed_contents(pairs, ids, miner, directory, "queries", model=model)
        documents = embed_contents(pairs, ids, miner, directory, "documents", model=model)
    if skipped := {**queries.skipped, **documents.skipped}:
        raise ValueError(f"{len(skipped)} inputs cannot be embedded, the first: {next(iter(skipped.values()))}")
    places = world().once(partial(_nearest_others, ids, queries, documents, depth, cap, device))
    items = pairs.select(ids.document_rows.tolist()).select_columns(_ITEM)
    return Pool(items, places[ids.query_ids].astype(np.int64))


def _nearest_others(
    ids: ContentIds,
    queries: Embeddings,
    documents: Embeddings,
    depth: int,
    cap: float,
    device: str | torch.device | None,
) -> NDArray[np.int32]:
    """Document ids for each query id, best first, -1 beyond them."""
    device = torch.device(device or "cpu")
    if device.type == "mps":  # which has no float64
        device = torch.device("cpu")
    relations = Relations(ids.query_ids, ids.document_ids, len(ids.query_rows), len(ids.document_rows))
    vectors = [
        torch.from_numpy(side.take(np.arange(len(rows)))).to(device)
        for side, rows in ((queries, ids.query_rows), (documents, ids.document_rows))
    ]
    positives = relations.positives.lengths
    nearest = np.full((len(ids.query_rows), min(depth, len(ids.document_rows))), -1, np.int32)
    enough = np.minimum(depth + positives, len(ids.document_rows))  # of its nearest, for a query to see `depth` others
    searched, short = int(enough.min(initial=len(ids.document_rows))), np.arange(len(nearest))
    while len(short):
        at_once = max(1, _FOUND_AT_ONCE // searched)
        ready = short[enough[short] <= searched]  # or one query with many positives would have all searched that deep
        for start in range(0, len(ready), at_once):
            block = ready[start : start + at_once]
            found = nearest_documents(vectors[0][torch.from_numpy(block).to(device)], vectors[1], searched)
            wrong = relations.are_positives(block[:, None], found.documents) | (found.scores > cap)
            order = np.argsort(wrong, axis=1, kind="stable")[:, : nearest.shape[1]]
            best = np.take_along_axis(found.documents, order, 1)
            nearest[block] = np.where(np.take_along_axis(wrong, order, 1), np.int32(-1), best)
        if searched >= len(ids.document_rows):
            break
        # What is above the cap comes first, and there may be any number of it.
        short, searched = short[nearest[short, -1] < 0], 2 * searched
    if lost := int(((nearest < 0).all(1) & (positives < len(ids.document_rows))).sum()):
        logger.warning(
            "%d of %d queries have no candidate: all documents but their own are more similar to them than the cap, %g; "
            "raise it, or leave it out",
            lost,
            len(nearest),
            cap,
        )
    return nearest


def of_pairs(pairs: Dataset) -> Pool:
    """The hard negatives in ``neg_text`` and ``neg_image``.

    Raises:
        ValueError: There are none.
    """
    table = pairs.with_format("arrow")[:]
    there = [name for name in ("neg_text", "neg_image") if name in table.column_names]
    if not there:
        raise ValueError("these pairs bring no hard negatives along: name an embedder that mines some.")
    lengths = pc.fill_null(pc.list_value_length(table.column(there[0])), 0).to_numpy().astype(np.int64)
    total, most = int(lengths.sum()), int(lengths.max(initial=0))
    instructions = table.column("pos_instruction").take(pa.array(np.repeat(np.arange(len(lengths)), lengths)))
    columns = {"pos_text": pa.array([""] * total, pa.string()), "pos_instruction": instructions,
               "pos_image": pa.nulls(total, table.schema.field("pos_image").type)}  # fmt: skip
    columns |= {name.replace("neg", "pos"): pc.list_flatten(table.column(name)) for name in there}
    features = pairs.select_columns(_ITEM).features
    items = Dataset(pa.table({name: columns[name] for name in features}).cast(features.arrow_schema))
    starts = np.cumsum(lengths) - lengths
    numbers = np.arange(most)
    places = np.where(numbers < lengths[:, None], starts[:, None] + numbers, -1)
    given = np.array([bool({"text", "image"} & document_of(row).keys()) for row in items], bool)
    return Pool(items, np.where((places >= 0) & np.append(given, False)[places], places, -1))
