"""What is the same thing by the pairs of all subsets, and that clusters keep it apart."""

from __future__ import annotations

import numpy as np
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_mmembed.data.pairs import read_pairs
from hf_mmembed.mining import FilterRules, content_ids, mine, mine_pairs
from hf_mmembed.mining.groups import LARGEST_GROUP, same_things
from tests.index.fake_embedder import FakeEmbedder
from tests.mining.corpora import corpus


def pairs_of(joined, subsets=None):
    table = {"query_text": [f"thing {a}" for a, _ in joined], "pos_text": [f"thing {b}" for _, b in joined]}
    return read_pairs(Dataset.from_dict({**table, "subset": subsets or ["s"] * len(joined)}))


def components(joined):
    """Sets of contents that hang together, by walking."""
    things = {name: {name} for pair in joined for name in pair}
    for one, other in joined:
        if things[one] is not things[other]:
            things[one] |= things[other]
            for name in things[other]:
                things[name] = things[one]
    return things


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=30))
def test_groups_are_what_hangs_together(joined):
    pairs = pairs_of(joined)
    ids = content_ids(pairs)
    queries, documents = same_things(ids, np.arange(len(pairs)))
    together = components(joined)
    for row, (asked, _) in enumerate(joined):
        for other, (_, answer) in enumerate(joined):
            same = queries[ids.query_ids[row]] == documents[ids.document_ids[other]]
            assert same == (answer in together[asked])


def test_what_hangs_together_by_the_hundred_is_not_one_thing():
    chain = [(i, i + 1) for i in range(LARGEST_GROUP)]  # one content more than a group may have
    for joined, number in ((chain[1:], 1), (chain, LARGEST_GROUP + 1)):
        ids = content_ids(pairs_of(joined))
        queries, documents = same_things(ids, np.arange(len(joined)))
        assert len(np.unique(np.concatenate([queries, documents]))) == number


def test_rows_that_do_not_tell_make_no_edges():
    ids = content_ids(pairs_of([(0, 1), (2, 1)]))
    queries, documents = same_things(ids, np.arange(1))
    assert queries[0] == documents[0] != queries[1]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), things=st.integers(20, 40), k=st.integers(1, 4))
def test_a_thing_comes_twice_in_a_cluster_only_among_the_last_rows(seed, things, k):
    data = corpus(seed, rows=60, queries=60, documents=60)
    ids = np.arange(60)
    groups = np.random.default_rng(seed).integers(0, things, 60)
    rows = mine(ids, ids, *data[2:], k=k, seed=seed, groups=(groups, groups)).rows
    assert len(rows) == 60 // (k + 1)
    assert sum(len(set(groups[cluster])) <= k for cluster in rows) <= len(rows) / 3
    top = mine(ids, ids, *data[2:], k=k, seed=seed, groups=(groups, groups), strategy="top-k").rows
    assert np.array_equal(top, mine(ids, ids, *data[2:], k=k, seed=seed, strategy="top-k").rows)


def test_a_picture_and_its_captions_are_one_thing_across_subsets(tmp_path):
    """Each of 12 pictures has a caption to find it by and another that it is the query of; embeddings are all alike."""
    there = [(i, 100 + i) for i in range(12)]  # caption -> picture
    back = [(100 + i, 200 + i) for i in range(12)] + [(100 + i, 300 + i) for i in range(12)]  # picture -> captions
    pairs = pairs_of(there + back, ["there"] * 12 + ["back"] * 24)
    clusters = mine_pairs(pairs, FakeEmbedder(), tmp_path, model={"name": "fake"}, k=3, rules=FilterRules()).clusters
    assert len(clusters) >= 8
    for cluster in clusters.rows.tolist():
        assert len({row % 12 for row in cluster}) == 4
