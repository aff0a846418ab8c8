"""What is in one cluster together, for candidates that are made up."""

from __future__ import annotations

import numpy as np

from hf_mmembed.mining.cover import Pools, build_cover
from hf_mmembed.mining.relations import Relations


def test_no_document_is_suspect_to_another_member_whoever_is_the_anchor():
    """Two suspects each, few enough that clusters need not be filled up with them."""
    rows, suspects = 80, 2
    rng = np.random.default_rng(0)
    # Suspects last. Most suspicions are one-sided.
    candidates = np.stack([rng.permutation(np.delete(np.arange(rows), row)) for row in range(rows)])
    ids = np.arange(rows)

    def find(queries: np.ndarray, documents: np.ndarray) -> Pools:
        place = np.full(rows, -1)
        place[queries] = np.arange(len(queries))
        kept = np.full(len(queries), rows - 1 - suspects)
        return Pools(place, candidates[queries], kept, kept)

    clusters = build_cover(Relations(ids, ids, rows, rows), find, 3, seed=0).rows
    assert clusters.shape == (20, 4)
    assert not [
        (anchor, row)
        for cluster in clusters.tolist()
        for anchor in cluster
        for row in cluster
        if row in candidates[anchor, -suspects:]
    ]
