"""Mines a whole dataset of pairs with a model's own embeddings, one subset after the other.

In: pairs and an embedder. Out: `Mined`, with the clusters of all subsets; on the disk, in one directory, the embeddings
(``embeddings/``), the clusters, ``skipped.jsonl`` and the digests of pictures.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from hf_mmembed.data.pairs import document_of
from hf_mmembed.files import write_atomically
from hf_mmembed.only_run import only_run
from hf_mmembed.processes import world

from .clusters import Clusters
from .digests import KEPT_DIGESTS
from .filters import FilterRules
from .groups import same_things
from .ids import ContentIds, content_ids
from .store import Embedder, Embeddings, embed_contents
from .strategies import Strategy, mine, shuffled

__all__ = ["LABEL_DOCUMENTS", "LABEL_ROWS", "Mined", "are_labels", "mine_pairs"]

logger = logging.getLogger(__name__)

LABEL_ROWS = 10
"""Rows per distinct document, on average, from which on the documents of a subset may be labels."""

LABEL_DOCUMENTS = 1000
"""Distinct documents up to which they may be: as many as ImageNet-1K has, the largest of the label sets that SaHa's
authors do not filter. Ten questions for each of many passages are as many rows per document."""


@dataclass(frozen=True)
class Mined:
    """What mining a dataset gave.

    Attributes:
        clusters: Clusters of all subsets; `settings` and `counts` tell subset by subset under ``"subsets"``.
        ids: Who is who.
        queries: Embeddings by query id.
        documents: Embeddings by document id.
        skipped: Why rows were left out, by row.
    """

    clusters: Clusters
    ids: ContentIds
    queries: Embeddings
    documents: Embeddings
    skipped: Mapping[int, str]


def are_labels(document_ids: np.ndarray) -> bool:
    """Whether the documents of a subset may be labels: few distinct ones, and few for its number of rows.

    Example:
        >>> are_labels(np.arange(100) % 5), are_labels(np.arange(100) % 20)
        (True, False)
    """
    distinct = len(np.unique(document_ids))
    return distinct <= LABEL_DOCUMENTS and len(document_ids) >= LABEL_ROWS * distinct


def mine_pairs(
    pairs: Dataset,
    embedder: Embedder,
    out: str | Path,
    *,
    model: Mapping[str, Any],
    strategy: Strategy = "saha",
    k: int = 15,
    mult: int = 3,
    seed: int = 0,
    rules: FilterRules | None = None,
    canonical_instruction: str | Mapping[str, str] | None = None,
    label_subsets: Mapping[str, bool] | None = None,
    batch_size: int = 32,
    shard_size: int = 2048,
    device: str | torch.device | None = None,
    ids: ContentIds | None = None,
) -> Mined:
    """Embeds the pairs as far as that is still to be done, mines each subset by itself and saves the clusters.

    Under ``accelerate launch`` all processes embed; the first one mines, and all return the same.

    Args:
        pairs: What `read_pairs` returns.
        embedder: The model that mines, as a rule the one to be trained.
        out: Directory for embeddings and clusters, and for the digests of pictures, which are read again only where
            they have changed.
        model: What decides the embeddings; see `embed_contents`.
        strategy: See `mine`. ``"random"`` mixes subsets, every other strategy keeps them apart.
        k: Members of a cluster beside the anchor. Defaults to 15.
        mult: ``mult · k`` candidates are looked at per query. Defaults to 3.
        seed: Decides everything random. Defaults to 0.
        rules: When a candidate is suspect. Defaults to those of the strategy.
        canonical_instruction: The instruction every query is embedded with, for all subsets or by subset. Defaults to
            the most frequent one of each subset.
        label_subsets: Whether the documents of a subset are labels. Defaults, subset by subset, to `are_labels`, and no where
            documents are pictures.
        batch_size: Inputs per forward pass, at most. Defaults to 32.
        shard_size: Contents per file of embeddings. Defaults to 2048.
        device: Where to search. Defaults to the CPU.
        ids: What `content_ids` says of the pairs with this `canonical_instruction`, if it has read them before.

    Raises:
        OSError: The clusters cannot be written.
        ValueError: An argument is out of range, a subset is not there, nothing can be embedded, or another run
            writes to the directory.
    """
    out = Path(out)
    with only_run(out):
        if ids is None:
            ids = world().once(
                partial(content_ids, pairs, canonical_instruction=canonical_instruction, kept=out / KEPT_DIGESTS)
            )
        if unknown := sorted(set(label_subsets or {}) - set(ids.subsets)):
            raise ValueError(
                f"no subset {unknown[0]!r} to take for labels or not; there are {', '.join(sorted(ids.subsets))}"
            )
        options: dict[str, Any] = {"model": model, "batch_size": batch_size, "shard_size": shard_size}
        queries = embed_contents(pairs, ids, embedder, out / "embeddings", "queries", **options)
        documents = embed_contents(pairs, ids, embedder, out / "embeddings", "documents", **options)
        skipped = {
            row: queries.skipped.get(query) or documents.skipped[document]
            for row, (query, document) in enumerate(
                zip(ids.query_ids.tolist(), ids.document_ids.tolist(), strict=True)
            )
            if query in queries.skipped or document in documents.skipped
        }

        def save_clusters() -> None:
            lines = [
                json.dumps({"row": row, "reason": why}, ensure_ascii=False) + "\n" for row, why in skipped.items()
            ]
            write_atomically(out / "skipped.jsonl", "".join(lines).encode("utf-8"))
            usable = np.setdiff1d(np.arange(len(pairs)), np.fromiter(skipped, np.int64, len(skipped)))
            if not len(usable):
                raise ValueError(f"none of {len(pairs)} rows has both sides embedded: see {out / 'skipped.jsonl'}")
            if strategy == "random":
                rows = usable[shuffled(len(usable), k, seed)]
                counts = {"rows": len(usable), "left_over": len(usable) - rows.size}
                clusters = Clusters(rows, strategy, {"k": k, "seed": seed}, counts)
            else:
                chosen = {"strategy": strategy, "k": k, "mult": mult, "seed": seed, "rules": rules, "device": device}
                of_subset = {name: usable[ids.subset_ids[usable] == subset] for subset, name in enumerate(ids.subsets)}
                told = label_subsets or {}
                labels = {
                    name: told[name] if name in told else _taken_for_labels(name, rows, pairs, ids)
                    for name, rows in of_subset.items()
                }
                telling = [rows for name, rows in of_subset.items() if not labels[name]]
                groups = same_things(ids, np.concatenate([usable[:0], *telling]))
                parts = {
                    name: _mine_subset(name, rows, ids, queries, documents, groups, labels[name], chosen)
                    for name, rows in of_subset.items()
                    if len(rows)
                }
                clusters = _joined(parts, strategy)
            if not len(clusters):
                logger.warning(
                    "no cluster of %d came of %d pairs, so batches will be random: k needs more pairs, or be smaller",
                    k + 1,
                    len(usable),
                )
            # A digest of its files says enough, without that of each.
            miner = {name: value for name, value in model.items() if name != "files"}
            settings = {**clusters.settings, "data": ids.fingerprint, "miner": miner}
            if canonical_instruction is not None:  # to which the digest of the data is blind
                settings["canonical_instruction"] = canonical_instruction
            replace(clusters, settings=settings).save(out)

        world().once(save_clusters)
        return Mined(Clusters.load(out), ids, queries, documents, skipped)


def _taken_for_labels(name: str, rows: np.ndarray, pairs: Dataset, ids: ContentIds) -> bool:
    """Whether the documents of a subset are taken for labels, which is logged."""
    # Pictures with ten captions each are no labels, however few there are.
    if not len(rows) or not are_labels(ids.document_ids[rows]) or "image" in document_of(pairs[int(rows[0])]):
        return False
    logger.info(
        "subset %s: its documents are taken for labels, %d distinct ones for %d rows, so none is dropped as a false "
        "negative; `--labels %s=no` (label_subsets) says that they are none",
        name,
        len(np.unique(ids.document_ids[rows])),
        len(rows),
        name,
    )
    return True


def _mine_subset(
    name: str,
    rows: np.ndarray,
    ids: ContentIds,
    queries: Embeddings,
    documents: Embeddings,
    groups: tuple[np.ndarray, np.ndarray],
    label_subset: bool,
    chosen: Mapping[str, Any],
) -> Clusters:
    """Clusters of one subset in row numbers of the dataset."""
    own_queries, query_ids = np.unique(ids.query_ids[rows], return_inverse=True)
    own_documents, document_ids = np.unique(ids.document_ids[rows], return_inverse=True)
    found = mine(
        query_ids,
        document_ids,
        queries.take(own_queries),
        documents.take(own_documents),
        label_subset=label_subset,
        groups=(groups[0][own_queries], groups[1][own_documents]),
        **chosen,
    )
    left_over = found.counts["left_over"]
    if left_over > chosen["k"]:
        logger.warning(
            "subset %s: %d of %d rows fit into no cluster of %d: too many of them share a query or a document (they have "
            "%d distinct queries and %d distinct documents)",
            name,
            left_over,
            len(rows),
            chosen["k"] + 1,
            len(own_queries),
            len(own_documents),
        )
    members = found.rows[:, 1:].size
    if 2 * found.counts.get("at_random", 0) > members and not label_subset:
        logger.warning(
            "subset %s: %d of the %d members beside an anchor were taken at random, as too few candidates were left for "
            "them: its %d queries found %d, of which no rule suspects %d",
            name,
            found.counts["at_random"],
            members,
            len(own_queries),
            found.counts["candidates"],
            found.counts["pool"],
        )
    return Clusters(
        np.where(found.rows >= 0, rows[found.rows], -1),
        found.strategy,
        found.settings,
        found.counts,
        found.diagnostics,
        found.recall,
    )


def _joined(parts: Mapping[str, Clusters], strategy: str) -> Clusters:
    """All subsets in one; counts are sums, recalls means over rows, and each subset keeps its own under its name."""
    # Those too small for a cluster were not searched and have nothing to tell.
    first = max(parts.values(), key=lambda part: len(part.diagnostics))
    searched = [part for part in parts.values() if part.diagnostics.keys() == first.diagnostics.keys()]
    total: Counter[str] = Counter()
    for part in parts.values():
        total.update(part.counts)
    rows = sum(part.counts["rows"] for part in searched)
    recall = {name: sum(part.recall[name] * part.counts["rows"] for part in searched) / rows for name in first.recall}
    diagnostics = {name: np.concatenate([part.diagnostics[name] for part in searched]) for name in first.diagnostics}
    settings = {name: value for name, value in first.settings.items() if name != "label_subset"}
    settings["subsets"] = {
        name: {
            "label_subset": part.settings.get("label_subset"),
            "clusters": len(part),
            "counts": dict(part.counts),
            "recall": dict(part.recall),
        }
        for name, part in parts.items()
    }
    clusters = np.concatenate([part.rows for part in searched])
    return Clusters(clusters, strategy, settings, dict(total), diagnostics, recall)
