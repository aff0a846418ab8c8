"""What holds of clusters whatever they are built from."""

from __future__ import annotations

import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_mmembed.mining import STRATEGIES, Clusters, FilterRules, mine
from hf_mmembed.mining.relations import Relations
from hf_mmembed.mining.saha import _Finder, _mutual
from tests.mining.corpora import conflicts, corpus, one_to_one

HARD = ("saha", "top-k", "margin", "mutual")
FIXED = tuple(strategy for strategy in STRATEGIES if strategy != "saha-paper")

corpora = st.builds(
    corpus,
    st.integers(0, 2**32 - 1),
    rows=st.integers(1, 90),
    queries=st.integers(1, 60),
    documents=st.integers(1, 60),
    ties=st.booleans(),
)


@settings(max_examples=100, deadline=None)
@given(data=corpora, strategy=st.sampled_from(FIXED), k=st.integers(1, 9), seed=st.integers(0, 9))
def test_clusters_are_full_disjoint_and_free_of_conflicts(data, strategy, k, seed):
    found = mine(*data, strategy=strategy, k=k, mult=2, seed=seed)
    rows = found.rows
    assert rows.dtype == np.int64 and rows.shape[1] == k + 1 and (rows >= 0).all()
    assert len(np.unique(rows)) == rows.size
    assert found.counts["left_over"] == len(data[0]) - rows.size
    if strategy in HARD:
        assert [conflicts(cluster, *data[:2]) for cluster in rows] == [0] * len(rows)
        assert found.counts["conflicts"] == 0
        origins = sum(found.diagnostics[name] for name in ("from_pool", "next_best", "at_random", "conflicts"))
        assert (origins == k).all()


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    counts=st.lists(st.integers(1, 8), min_size=1, max_size=40),
    strategy=st.sampled_from(HARD),
    k=st.integers(1, 9),
)
def test_every_row_that_can_be_placed_is(seed, counts, strategy, k):
    """With one document per query, the most that fits is known: no cluster holds two rows of one document."""
    document_ids = np.repeat(np.arange(len(counts)), counts)
    rng = np.random.default_rng(seed)
    rng.shuffle(document_ids)
    rows = len(document_ids)
    queries, documents = rng.normal(size=(rows, 4)), rng.normal(size=(len(counts), 4))
    found = mine(np.arange(rows), document_ids, queries, documents, strategy=strategy, k=k, mult=1, seed=seed % 7)
    most = max(n for n in range(rows + 1) if sum(min(count, n) for count in counts) >= n * (k + 1))
    assert len(found) == most


@settings(max_examples=100, deadline=None)
@given(data=corpora, k=st.integers(1, 9))
def test_labels_fill_every_cluster(data, k):
    found = mine(*data, label_subset=True, k=k)
    rows = len(data[0])
    assert len(found) == rows // (k + 1) and len(np.unique(found.rows)) == found.rows.size
    clashing = sum(conflicts(cluster, *data[:2]) > 0 for cluster in found.rows)
    assert clashing == (found.diagnostics["conflicts"] > 0).sum()


def test_binary_labels_alternate():
    rows = 64
    labels = np.arange(rows) % 2
    rng = np.random.default_rng(0)
    found = mine(np.arange(rows), labels, rng.normal(size=(rows, 4)), rng.normal(size=(2, 4)), label_subset=True, k=1)
    assert all(set(labels[cluster]) == {0, 1} for cluster in found.rows) and len(found) == 32


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_more_asked_for_than_there_is(strategy):
    found = mine(*one_to_one(1), strategy=strategy)
    assert found.rows.shape == (0, 16) and found.counts["left_over"] == 1
    assert mine(*one_to_one(15), strategy=strategy).counts["rows"] == 15
    assert mine(*one_to_one(0), strategy=strategy).rows.shape == (0, 16)


@pytest.mark.parametrize("strategy", HARD)
def test_rows_of_one_document_are_no_cluster(strategy):
    queries, _, vectors, documents = one_to_one(40)
    found = mine(queries, np.zeros(40, int), vectors, documents[:1], strategy=strategy, k=3)
    assert len(found) == 0 and found.counts["left_over"] == 40


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_vectors_that_are_all_alike_can_be_mined(strategy):
    ones = np.ones((40, 3), np.float32)
    found = mine(np.arange(40), np.arange(40), ones, ones, strategy=strategy, k=3)
    rows = found.rows[found.rows >= 0].tolist()
    if strategy == "saha-paper":  # as published, its second pass takes members again
        assert len(set(rows)) + found.counts["left_over"] == 40
    else:
        assert sorted(rows) == list(range(40))


def test_hard_clusters_are_harder_than_random_ones():
    data = one_to_one(480, 16)

    def hardness(rows):
        scores = data[2][rows] @ data[3][rows].transpose(0, 2, 1)
        return scores[:, ~np.eye(rows.shape[1], dtype=bool)].mean()

    found = {strategy: hardness(mine(*data, strategy=strategy, k=7).rows) for strategy in FIXED}
    assert found["random"] == pytest.approx(0, abs=0.02)
    assert all(found[strategy] > 0.15 for strategy in HARD)
    assert found["saha"] <= found["top-k"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_torch_and_numpy_give_the_same(strategy):
    data = one_to_one(100)
    ours = mine(*map(torch.from_numpy, data), strategy=strategy, k=4)
    assert ours.rows.tolist() == mine(*data, strategy=strategy, k=4).rows.tolist()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_embeddings_may_be_stored_in_any_way(strategy, tmp_path):
    *ids, queries, documents = one_to_one(100)
    expected = mine(*ids, queries, documents, strategy=strategy, k=4).rows.tolist()
    np.save(tmp_path / "documents.npy", documents)
    stored = [
        (torch.from_numpy(queries).requires_grad_(), torch.nn.Parameter(torch.from_numpy(documents))),
        (queries[::-1].copy()[::-1], documents.astype(">f4")),
        (np.asfortranarray(queries), np.load(tmp_path / "documents.npy", mmap_mode="r")),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for both in stored:
            assert mine(*ids, *both, strategy=strategy, k=4).rows.tolist() == expected


@pytest.mark.parametrize(("k", "mult"), [(1, 1), (2, 1), (1, 2)])
def test_recall_looks_as_deep_as_it_says(k, mult):
    query_ids, document_ids, queries, documents = one_to_one(60, 4, noise=1.0)
    scores = queries.astype(float) @ documents.T.astype(float)
    ranks = (scores > scores.diagonal()[:, None]).sum(1)
    found = mine(query_ids, document_ids, queries, documents, k=k, mult=mult).recall
    assert found == {f"recall@{depth}": pytest.approx(np.mean(ranks < depth)) for depth in (1, 5, 10)}
    assert found["recall@10"] > found["recall@5"]


def test_recall_is_that_of_rows():
    """A query weighs as much as it has rows."""
    query_ids, document_ids, queries, documents = corpus(0, rows=60, queries=15, documents=40, ties=False)
    present = np.unique(document_ids)
    order = present[np.argsort(-(queries.astype(float) @ documents[present].T.astype(float)), axis=1)]
    found = mine(query_ids, document_ids, queries, documents, strategy="top-k", k=3).recall
    for depth in (1, 5, 10):
        hits = [np.isin(order[query, :depth], document_ids[query_ids == query]).any() for query in query_ids]
        assert found[f"recall@{depth}"] == pytest.approx(np.mean(hits))


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 90),
    queries=st.integers(1, 20),
    documents=st.integers(1, 20),
)
def test_mutual_is_that_an_owner_has_a_document_of_the_anchor_near(seed, rows, queries, documents):
    """With unequal numbers of owners and of documents, against a loop over them."""
    rng = np.random.default_rng(seed)
    query_ids, document_ids = rng.integers(0, queries, rows), rng.integers(0, documents, rows)
    relations = Relations(query_ids, document_ids, queries, documents)
    asked = np.unique(query_ids)
    near = np.stack([rng.permutation(documents)[: 1 + documents // 4] for _ in asked])
    found = rng.integers(-1, documents, (len(asked), 3))
    near_of = dict(zip(asked.tolist(), near.tolist(), strict=True))
    expected = [
        [
            candidate >= 0
            and any(
                own in near_of[owner]
                for owner in relations.owners[candidate][:8].tolist()
                for own in relations.positives[query][:8].tolist()
            )
            for candidate in candidates
        ]
        for query, candidates in zip(asked.tolist(), found.tolist(), strict=True)
    ]
    assert _mutual(relations, asked, near, found).tolist() == expected


@pytest.mark.parametrize("strategy", HARD)
@pytest.mark.parametrize("own", [1, 60, 400])
def test_a_query_with_very_many_documents_finds_others(own, strategy):
    """However many of its own lie nearer, and whatever the other queries have."""
    _, _, queries, documents = one_to_one(200, 16)
    query_ids = np.concatenate([np.arange(200), np.zeros(own - 1, int)])
    documents = np.concatenate([documents, np.repeat(queries[:1], own - 1, 0)])
    relations = Relations(query_ids, np.arange(len(query_ids)), 200, len(documents))
    sides = torch.from_numpy(queries), torch.from_numpy(documents)
    finder = _Finder(relations, *sides, depth=6, rules=FilterRules(), strategy=strategy)
    found = finder(np.arange(200), np.arange(len(documents)))
    others = np.delete(np.arange(200), 0)
    nearest = others[np.argsort(-(documents[others] @ queries[0]), kind="stable")[:6]]
    assert set(found.documents[0].tolist()) == set(nearest.tolist())
    assert (finder.diagnostics["candidates"] == 6).all()
    if strategy == "mutual":  # what query 0 has near is seen from the other side too
        for other in nearest.tolist():
            of_query_0 = np.isin(found.documents[other], np.delete(np.arange(len(documents)), others))
            assert (np.flatnonzero(of_query_0) < found.kept[other]).all()


def test_fewer_queries_than_members_are_left_over():
    """No cluster holds two rows of one query, however many documents it has."""
    queries = np.eye(3, dtype=np.float32)
    found = mine(np.arange(300) % 3, np.arange(300), queries, queries[np.arange(300) % 3], k=3)
    assert len(found) == 0 and found.counts["left_over"] == 300


def test_the_seed_decides():
    data = one_to_one(64)
    assert mine(*data, k=3, seed=1).rows.tolist() != mine(*data, k=3, seed=2).rows.tolist()


def test_top_k_takes_the_nearest_documents():
    """On a line, the hardest neighbours of a point are those beside it."""
    angles = np.linspace(0, 1, 40)
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1)
    found = mine(np.arange(40), np.arange(40), vectors, vectors, strategy="top-k", k=3, mult=1)
    first = found.rows[0]
    assert np.ptp(first) <= 5
    assert Counter(found.rows.ravel().tolist()) == Counter(range(40))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy": "sahara"}, "strategy is 'sahara'; choose one of saha, saha-paper"),
        ({"k": 0}, "k and mult must be at least 1, got 0 and 3"),
        ({"query_ids": np.array([0, 1, 9])}, "query_ids: row 2 has the id 9, but there are 3 embeddings"),
        ({"document_ids": np.array([0, -1, 1])}, "document_ids: row 1 has the id -1"),
        ({"document_ids": np.array([0, 1])}, "3 query_ids for 2 document_ids"),
        ({"query_ids": np.ones(3)}, "query_ids must be integers"),
        ({"document_embeddings": np.ones((3, 5))}, "queries have 4 dimensions, documents 5"),
    ],
)
def test_wrong_arguments_are_named(changes, message):
    names = ("query_ids", "document_ids", "query_embeddings", "document_embeddings")
    arguments = dict(zip(names, one_to_one(3, 4), strict=True))
    with pytest.raises(ValueError, match=message):
        mine(**{**arguments, **changes})


def test_a_share_is_below_one():
    with pytest.raises(ValueError, match="rank is a share, at least 0 and below 1, got 1.5"):
        FilterRules(rank=1.5)


def test_what_is_saved_is_loaded(tmp_path):
    found = mine(*one_to_one(50), k=4)
    found.save(tmp_path)
    again = Clusters.load(tmp_path)
    assert again.rows.tolist() == found.rows.tolist()
    assert (again.strategy, again.settings, again.counts, again.recall) == (
        found.strategy,
        found.settings,
        found.counts,
        found.recall,
    )
    assert {name: values.tolist() for name, values in again.diagnostics.items()} == {
        name: values.tolist() for name, values in found.diagnostics.items()
    }
    (tmp_path / "clusters.arrow").write_bytes(b"cut")
    with pytest.raises(ValueError, match="cannot read the clusters in"):
        Clusters.load(tmp_path)
    with pytest.raises(ValueError, match="no clusters in"):
        Clusters.load(tmp_path / "elsewhere")


def test_where_there_is_no_float64_the_cpu_searches():
    data = one_to_one(64)
    assert mine(*data, k=3, device="mps").rows.tolist() == mine(*data, k=3).rows.tolist()


def test_candidates_that_are_not_mutual_are_suspect():
    data = one_to_one(200, 16)
    pools = {name: mine(*data, strategy=name, k=5).counts for name in ("top-k", "mutual")}
    assert pools["top-k"]["pool"] == pools["top-k"]["candidates"] == pools["mutual"]["candidates"]
    assert 0 < pools["mutual"]["pool"] < pools["mutual"]["candidates"]
