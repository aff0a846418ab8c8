"""`saha-paper` against the published greedy, written down once more with sets and dicts."""

from __future__ import annotations

import numpy as np
import pytest

from hf_mmembed.mining import mine
from tests.mining.corpora import corpus, one_to_one


def published(query_ids, document_ids, queries, documents, k, mult, label_subset):
    """The steps of the published program one by one, in the order of the data where it uses Python's sets."""
    queries, documents = queries.astype(np.float64), documents.astype(np.float64)
    keys = list(dict.fromkeys(query_ids.tolist()))
    owners = {}
    for query, document in zip(query_ids.tolist(), document_ids.tolist(), strict=True):
        if query not in owners.setdefault(document, []):
            owners[document].append(query)
    last_row = {query: row for row, query in enumerate(query_ids.tolist())}
    deepest = 2 * mult * k
    nearest = {}
    for query in keys:
        scores = (documents * queries[query]).sum(-1)
        nearest[query] = sorted(range(len(documents)), key=lambda d, s=scores: (-s[d], d))[:deepest]
    used, clusters = set(), []

    def one_pass(limit, redundant):
        reused = set()
        for row, anchor in enumerate(query_ids.tolist()):
            if anchor in used:
                continue
            candidates = []
            for document in nearest[anchor]:
                if document == document_ids[row]:
                    continue
                free = [o for o in owners.get(document, []) if o not in (reused if redundant else used)]
                if not free:
                    continue
                candidates.append(max(free, key=lambda o: (queries[anchor] * queries[o]).sum()))
                if len(candidates) == limit:
                    break
            if not candidates:
                continue
            used.add(anchor)
            if not label_subset:
                candidates.sort(key=lambda c: (queries[anchor] * queries[c]).sum())
            chosen = candidates[:k]
            clusters.append([row, *(last_row[c] for c in chosen)])
            used.update(chosen)
            if redundant:
                reused.update(chosen)

    one_pass(mult * k, False)
    one_pass(2 * mult * k, True)
    return clusters


def unpadded(clusters):
    return [[row for row in line if row >= 0] for line in clusters.rows.tolist()]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("label_subset", [False, True])
def test_equals_the_published_greedy(seed, label_subset):
    shape = [(60, 40, 30), (80, 80, 10), (50, 10, 50), (40, 200, 200)][seed % 4]
    rows, queries, documents = shape
    data = corpus(seed, rows=rows, queries=queries, documents=documents, ties=seed % 3 > 0)
    for k, mult in [(3, 2), (15, 3), (1, 1)]:
        found = mine(*data, strategy="saha-paper", k=k, mult=mult, label_subset=label_subset)
        assert unpadded(found) == published(*data, k, mult, label_subset)
        assert found.rows.shape[1] == k + 1


def test_only_this_strategy_has_short_clusters():
    data = one_to_one(20)
    sizes = mine(*data, strategy="saha-paper", k=5).sizes
    assert sizes.min() < 6 == sizes.max()
    assert (mine(*data, k=5).rows >= 0).all()
