"""Corpora for mining: ids and embeddings, small and seeded, with every kind of trouble."""

from __future__ import annotations

import numpy as np

__all__ = ["conflicts", "corpus", "one_to_one"]


def one_to_one(rows: int, dim: int = 8, *, noise: float = 0.3, seed: int = 0):
    """As many queries as documents, row r the pair (r, r), each query near its document."""
    rng = np.random.default_rng(seed)
    documents = rng.normal(size=(rows, dim)).astype(np.float32)
    queries = documents + noise * rng.normal(size=documents.shape).astype(np.float32)
    return np.arange(rows), np.arange(rows), unit(queries), unit(documents)


def corpus(seed: int, *, rows: int, queries: int, documents: int, dim: int = 4, ties: bool = True):
    """Random pairs: queries with several documents, documents with several queries, repeated rows, equal vectors."""
    rng = np.random.default_rng(seed)
    draw = (
        (lambda n: rng.integers(-1, 2, (n, dim)).astype(np.float32)) if ties else (lambda n: rng.normal(size=(n, dim)))
    )
    query_ids, document_ids = rng.integers(0, queries, rows), rng.integers(0, documents, rows)
    return query_ids, document_ids, draw(queries).astype(np.float32), draw(documents).astype(np.float32)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def conflicts(cluster, query_ids, document_ids) -> int:
    """Pairs of members of which one's document answers the other's query, straight from the definition."""
    answers = {}
    for query, document in zip(query_ids.tolist(), document_ids.tolist(), strict=True):
        answers.setdefault(query, set()).add(document)
    members = [int(row) for row in cluster if row >= 0]
    found = 0
    for i, one in enumerate(members):
        for other in members[i + 1 :]:
            a, b = int(query_ids[one]), int(query_ids[other])
            found += a == b or bool(answers[a] & answers[b])
    return found
