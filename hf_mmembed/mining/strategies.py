"""From ids and embeddings to clusters, without any model: the function under ``hf-mmembed mine``.

In: arrays. Out: `Clusters`. Everything here is one subset; `hf_mmembed.mining.dataset` goes over the subsets of a
dataset.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal, get_args

import numpy as np
import torch

from .candidates import as_matrix
from .clusters import Clusters
from .filters import FilterRules
from .paper import mine_as_published
from .relations import Relations
from .saha import DEFAULT_RULES, mine_filtered

__all__ = ["STRATEGIES", "Strategy", "mine"]

Strategy = Literal["saha", "saha-paper", "random", "same-subset", "top-k", "margin", "mutual"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)


def mine(
    query_ids: np.ndarray | torch.Tensor,
    document_ids: np.ndarray | torch.Tensor,
    query_embeddings: np.ndarray | torch.Tensor,
    document_embeddings: np.ndarray | torch.Tensor,
    *,
    strategy: Strategy = "saha",
    k: int = 15,
    mult: int = 3,
    label_subset: bool = False,
    seed: int = 0,
    rules: FilterRules | None = None,
    groups: tuple[np.ndarray, np.ndarray] | None = None,
    device: str | torch.device | None = None,
) -> Clusters:
    """Groups pairs into clusters in which every document is a hard negative for every other query.

    No row is in two clusters, and but for ``saha-paper`` (which repeats what was published) all clusters have k + 1
    members. Rows that fit into no cluster any more (``rows % (k + 1)``, and more where many rows share one document)
    are counted as ``left_over``. With ``saha``, ``top-k``, ``margin`` and ``mutual`` no two members share an answer,
    unless `label_subset` says that there is no other way.

    Args:
        query_ids: ``(rows,)``, integers: row r is the pair of query ``query_ids[r]`` and document ``document_ids[r]``.
        document_ids: ``(rows,)``, integers.
        query_embeddings: ``(queries, dim)``, floats; as a rule unit vectors.
        document_embeddings: ``(documents, dim)``, floats.
        strategy: ``"saha"`` (default), ``"saha-paper"``, ``"random"``, ``"same-subset"`` (the same as random for one
            subset), ``"top-k"``, ``"margin"`` or ``"mutual"``; see `hf_mmembed.mining.saha`.
        k: Members beside the anchor. Defaults to 15.
        mult: ``mult · k`` candidates are looked at per query. Defaults to 3.
        label_subset: The documents are labels, so no candidate can be a false negative. Defaults to False.
        seed: Decides everything random. Defaults to 0.
        rules: When a candidate is suspect. Defaults to those of the strategy, `DEFAULT_RULES`.
        groups: ``(queries,)`` and ``(documents,)``, integers: with ``saha``, equal numbers on either side mean the same
            thing and are never negatives of one another; see `hf_mmembed.mining.groups`. Defaults to None: only the
            rows tell.
        device: Where to compute; the CPU for ``mps``. Defaults to where the query embeddings are.

    Raises:
        ValueError: An argument is out of range, an id has no embedding, or an embedding is not finite; the message
            names it.

    Example:
        >>> vectors = np.eye(6, dtype=np.float32) + 0.1
        >>> clusters = mine(np.arange(6), np.arange(6), vectors, vectors, k=2)
        >>> clusters.rows.shape, sorted(clusters.rows.ravel().tolist())
        ((2, 3), [0, 1, 2, 3, 4, 5])
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy is {strategy!r}; choose one of {', '.join(STRATEGIES)}")
    if k < 1 or mult < 1:
        raise ValueError(f"k and mult must be at least 1, got {k} and {mult}")
    queries = as_matrix(query_embeddings, "query_embeddings")
    documents = as_matrix(document_embeddings, "document_embeddings")
    if queries.shape[1] != documents.shape[1]:
        raise ValueError(
            f"queries have {queries.shape[1]} dimensions, documents {documents.shape[1]}: one model, please"
        )
    query_ids = _checked_ids(query_ids, len(queries), "query_ids")
    document_ids = _checked_ids(document_ids, len(documents), "document_ids")
    if query_ids.shape != document_ids.shape:
        raise ValueError(
            f"{len(query_ids)} query_ids for {len(document_ids)} document_ids; there is one of each per row"
        )
    device = queries.device if device is None else torch.device(device)
    if device.type == "mps":  # which has no float64
        device = torch.device("cpu")
    dtype = torch.promote_types(queries.dtype, documents.dtype)
    queries, documents = queries.to(device, dtype), documents.to(device, dtype)
    settings: dict[str, Any] = {"k": k, "mult": mult, "label_subset": label_subset, "seed": seed}
    if strategy in ("random", "same-subset"):
        rows = shuffled(len(query_ids), k, seed)
        counts = {"rows": len(query_ids), "left_over": len(query_ids) - rows.size}
        return Clusters(rows, strategy, settings, counts)
    groups = groups if strategy == "saha" and not label_subset else None
    relations = Relations(query_ids, document_ids, len(queries), len(documents), groups)
    if strategy == "saha-paper":
        found = mine_as_published(relations, queries, documents, k=k, mult=mult, label_subset=label_subset)
    else:
        rules = rules or DEFAULT_RULES[strategy]
        settings["rules"] = asdict(rules)
        found = mine_filtered(
            relations,
            queries,
            documents,
            strategy=strategy,
            k=k,
            mult=mult,
            rules=rules,
            label_subset=label_subset,
            seed=seed,
        )
    return Clusters(found.rows, strategy, settings, found.counts, found.diagnostics, found.recall)


def shuffled(rows: int, k: int, seed: int) -> np.ndarray:
    """Row numbers from 0 in random clusters, ``(rows // (k + 1), k + 1)``."""
    order = np.random.default_rng(seed).permutation(rows)
    return order[: rows - rows % (k + 1)].reshape(-1, k + 1)


def _checked_ids(ids: np.ndarray | torch.Tensor, number: int, name: str) -> np.ndarray:
    checked = np.asarray(ids)
    if checked.ndim != 1 or not np.issubdtype(checked.dtype, np.integer):
        raise ValueError(f"{name} must be integers of shape (rows,), not {checked.dtype} {checked.shape}")
    wrong = np.flatnonzero((checked < 0) | (checked >= number))
    if len(wrong):
        raise ValueError(f"{name}: row {wrong[0]} has the id {checked[wrong[0]]}, but there are {number} embeddings")
    return checked.astype(np.int64)
