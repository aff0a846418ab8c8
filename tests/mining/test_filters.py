"""The false-negative filter against its definition in float64, and on planted false negatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_mmembed.mining import FilterRules, filters, mine
from hf_mmembed.mining.filters import RULES, FalseNegativeFilter
from hf_mmembed.mining.relations import Relations
from tests.mining.corpora import corpus, unit


def marked(data, anchors, candidates, rules):
    """Sets of (anchor, candidate) per rule."""
    query_ids, document_ids, queries, documents = data
    relations = Relations(query_ids, document_ids, len(queries), len(documents))
    judge = FalseNegativeFilter(torch.from_numpy(queries), torch.from_numpy(documents), relations, rules)
    found = judge.suspicions(anchors, candidates)
    places = [np.argwhere(found >> bit & 1) for bit in range(len(RULES))]
    return {
        name: {(int(anchors[row]), int(candidates[row, column])) for row, column in place}
        for name, place in zip(RULES, places, strict=True)
    }


def by_definition(data, anchors, candidates, rules):
    """As `marked`, by the words of `FilterRules`."""
    query_ids, document_ids, queries, documents = data
    q, d = queries.astype(np.float64), documents.astype(np.float64)
    if rules.centre:
        q, d = q - q.mean(0), d - d.mean(0)
    q, d = (side / np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-12) for side in (q, d))
    positives, owners = {}, {}
    for query, document in zip(query_ids.tolist(), document_ids.tolist(), strict=True):
        positives.setdefault(query, set()).add(document)
        owners.setdefault(document, set()).add(query)
    found = {name: set() for name in RULES}
    for anchor, line in zip(anchors.tolist(), candidates.tolist(), strict=True):
        line = [document for document in line if document >= 0]
        similar = {document: max(q[anchor] @ q[owner] for owner in owners[document]) for document in line}
        by_rank = sorted(line, key=lambda c: -similar[c])  # stable: of equal owners the candidate further left
        for document in by_rank[: int(len(line) * rules.rank)]:
            found["rank"].add((anchor, document))
        own = positives[anchor]
        best = max(q[anchor] @ d[document] for document in own)
        for document in line:
            if similar[document] > rules.query_similarity:
                found["query_similarity"].add((anchor, document))
            if q[anchor] @ d[document] > best + rules.margin:
                found["margin"].add((anchor, document))
            if max(d[document] @ d[other] for other in own) > rules.document_similarity:
                found["document_similarity"].add((anchor, document))
    return found


@pytest.mark.parametrize("dense", [False, True])
@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(2, 60),
    queries=st.integers(2, 30),
    documents=st.integers(2, 30),
    centre=st.booleans(),
    block=st.sampled_from([1, 100, 1_000_000]),
    rows_at_once=st.sampled_from([1, 7, 1000]),
)
def test_equals_its_definition(dense, seed, rows, queries, documents, centre, block, rows_at_once):
    data = corpus(seed, rows=rows, queries=queries, documents=documents, dim=6, ties=False)
    query_ids, document_ids = data[:2]
    rng = np.random.default_rng(seed)
    anchors = np.unique(query_ids)
    relations = Relations(*data[:2], queries, documents)
    candidates = np.full((len(anchors), 7), -1)
    for line, anchor in zip(candidates, anchors, strict=True):
        others = np.setdiff1d(np.unique(document_ids), relations.positives[anchor])
        chosen = rng.permutation(others)[:7]
        line[: len(chosen)] = chosen
    rules = FilterRules(rank=0.4, query_similarity=0.3, margin=-0.1, document_similarity=0.2, centre=centre)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filters, "_FREQUENT", 0 if dense else 1e9)
        patch.setattr(filters, "_BLOCK_ROWS", rows_at_once)
        patch.setattr(filters, "_BLOCK_VALUES", block)
        assert marked(data, anchors, candidates, rules) == by_definition(data, anchors, candidates, rules)


def test_one_owner_of_a_frequent_and_of_a_rare_document_is_a_tie():
    """The rank rule suspects the candidate further left, whichever of the two it is."""
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(300, 33)) + 3).astype(np.float32)
    query_ids = np.array([*range(200), 0, *range(200, 300)])
    document_ids = np.array([0] * 200 + [1] + [*range(2, 102)])
    vectors[200:] = vectors[0] + 0.01 * rng.normal(size=(100, 33))  # query 0 is the owner most like them
    documents = rng.normal(size=(102, 33)).astype(np.float32)
    data = query_ids, document_ids, vectors, documents
    anchors = np.arange(200, 300)
    for candidates in ([0, 1], [1, 0]):
        found = marked(data, anchors, np.tile(candidates, (100, 1)), FilterRules(rank=0.5))
        assert found["rank"] == {(anchor, candidates[0]) for anchor in anchors.tolist()}


PLANTED = 500


@pytest.fixture(scope="module")
def planted():
    """500 pairs and for each a twin that says the same: as query and as document nearly equal, and not marked so."""
    rng = np.random.default_rng(0)
    documents = rng.normal(size=(PLANTED, 48)) + 3  # a narrow cone
    queries = documents + 0.5 * rng.normal(size=documents.shape)

    def twin(vectors):
        return vectors + 0.1 * rng.normal(size=vectors.shape)

    ids = np.arange(2 * PLANTED)
    sides = [unit(np.concatenate([side, twin(side)])).astype(np.float32) for side in (queries, documents)]
    return ids, ids, *sides


@pytest.mark.parametrize(
    ("rule", "value"), [("query_similarity", 0.9), ("document_similarity", 0.9), ("margin", -0.1), ("rank", 0.2)]
)
def test_every_planted_false_negative_is_caught_by_each_rule(planted, rule, value):
    rows = len(planted[0])
    twins = (planted[0] + PLANTED) % rows
    rng = np.random.default_rng(1)
    others = (planted[0][:, None] + rng.permutation(np.arange(1, PLANTED))[:9]) % rows
    candidates = np.concatenate([others, twins[:, None]], 1)
    found = marked(planted, planted[0], candidates, FilterRules(**{rule: value}))
    expected = set(zip(planted[0].tolist(), twins.tolist(), strict=True))
    assert found[rule] >= expected
    if rule != "rank":
        assert found[rule] == expected
    assert not any(found[other] for other in RULES if other != rule)


def test_saha_leaves_out_what_top_k_lets_in(planted):
    def together(strategy):
        rows = mine(*planted, strategy=strategy, k=7).rows % PLANTED
        return sum(len(cluster) - len(set(cluster)) for cluster in rows.tolist())

    assert together("saha") <= 0.1 * together("top-k")


def test_each_rule_has_its_own_count(planted):
    found = mine(*planted, rules=FilterRules(document_similarity=0.9), k=7)
    assert found.counts["suspect_document_similarity"] == 2 * PLANTED
    assert (
        found.counts["suspect_rank"] == found.counts["suspect_margin"] == found.counts["suspect_query_similarity"] == 0
    )
    assert found.diagnostics["pool"].tolist() == (found.diagnostics["candidates"] - 1).tolist()


def test_labels_are_not_filtered(planted):
    found = mine(*planted, label_subset=True, k=7)
    assert sum(found.counts[f"suspect_{rule}"] for rule in RULES) == 0
