from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard, SkipBatchSampler
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.base.sampler import DefaultBatchSampler
from torch.utils.data import DataLoader

from hf_mmembed.training.sampler import SaHaBatchSampler

WORLDS = (1, 2, 3, 8)


@st.composite
def samplers(draw, world=None):
    """A sampler over ragged clusters, with the clusters as sets of rows and the subset of each row."""
    size = draw(st.integers(1, 5))
    sizes = draw(st.lists(st.integers(1, size), min_size=40, max_size=60))
    rows = np.full((len(sizes), size), -1)
    numbers = np.random.default_rng(draw(st.integers(0, 9))).permutation(sum(sizes) + 3)
    start = 0
    for cluster, length in enumerate(sizes):
        rows[cluster, :length] = numbers[start : start + length]
        start += length
    subsets = np.zeros(len(numbers), dtype=int)
    for cluster in rows:
        subsets[cluster[cluster >= 0]] = draw(st.integers(0, 2))
    per_batch = draw(st.sampled_from([None, 1, 2]))
    sampler = SaHaBatchSampler(
        range(len(numbers)),
        draw(st.integers(10, 16)),
        seed=draw(st.integers(0, 3)),
        clusters=rows,
        world_size=world or draw(st.sampled_from(WORLDS[:2])),
        subset_ids=subsets,
        subsets_per_batch=per_batch,
    )
    sampler.set_epoch(draw(st.integers(0, 3)))
    return sampler, [frozenset(cluster[cluster >= 0].tolist()) for cluster in rows], subsets


def steps_of(sampler):
    batches = list(sampler)
    world = sampler.world_size
    return [batches[i : i + world] for i in range(0, len(batches), world)]


@settings(max_examples=80, deadline=None)
@given(samplers())
def test_invariants(drawn):
    sampler, clusters, subsets = drawn
    steps = steps_of(sampler)
    assert len(sampler) == sum(map(len, steps)) == len(steps) * sampler.world_size
    seen = [row for step in steps for batch in step for row in batch]
    assert len(seen) == len(set(seen)), "a pair comes twice"
    whole = 0
    for step in steps:
        assert len({len(batch) for batch in step}) == 1, "processes differ in length"
        assert len(step[0]) <= sampler.pairs_per_batch
        pairs = {row for batch in step for row in batch}
        inside = [cluster for cluster in clusters if cluster & pairs]
        assert all(cluster <= pairs for cluster in inside), "a cluster is split over steps"
        whole += len(inside)
        if sampler.subsets_per_batch is not None:
            assert len(set(subsets[list(pairs)])) <= sampler.subsets_per_batch
    assert whole == len(clusters) - sampler.left_out


@settings(max_examples=15, deadline=None)
@given(samplers(), st.integers(4, 9))
def test_every_epoch_has_as_many_steps_in_another_order(drawn, epoch):
    sampler, _, _ = drawn
    before = list(sampler)
    assert before == list(sampler)
    sampler.set_epoch(epoch)
    after = list(sampler)
    assert len(after) == len(before) == len(sampler)
    assert after != before


@pytest.mark.parametrize("world", WORLDS)
def test_each_pair_exactly_once_with_one_cluster_size(world):
    rows = np.random.default_rng(0).permutation(48 * 4).reshape(48, 4)
    sampler = SaHaBatchSampler(range(192), 8, clusters=rows, world_size=world)
    assert sampler.left_out == 0
    assert sorted(row for batch in sampler for row in batch) == list(range(192))
    for batch in sampler:
        assert {frozenset(cluster) for cluster in rows if set(cluster) & set(batch)} == {
            frozenset(cluster) for cluster in rows if set(cluster) <= set(batch)
        }


def test_left_out_clusters_change_with_the_epoch():
    sampler = SaHaBatchSampler(range(40), 4, clusters=np.arange(40).reshape(10, 4), world_size=3)
    assert sampler.left_out == 1
    missing = set()
    for epoch in range(8):
        sampler.set_epoch(epoch)
        missing |= set(range(40)) - {row for batch in sampler for row in batch}
    assert len(missing) > 4


@pytest.mark.parametrize(("world", "never"), [(2, 0), (3, 2), (4, 5)])
def test_clusters_of_which_there_are_too_few_are_told_of(world, never, caplog):
    """Ten clusters of 3, three of 2, two of 1."""
    rows = np.arange(45).reshape(15, 3)
    rows[10:, 2] = rows[13:, 1] = -1
    sampler = SaHaBatchSampler(range(45), 6, clusters=rows, world_size=world)
    seen = set()
    for epoch in range(40):
        sampler.set_epoch(epoch)
        seen |= {row for batch in sampler for row in batch}
    assert (rows[:, 0][~np.isin(rows[:, 0], list(seen))] >= 0).sum() == never
    assert (f"{never} of 15 clusters are never trained" in caplog.text) == bool(never) == bool(caplog.text)


def test_global_batches_do_not_depend_on_the_number_of_processes():
    rows = np.arange(96).reshape(24, 4)
    batches = []
    for world, per_process in ((1, 16), (2, 8), (4, 4)):
        sampler = SaHaBatchSampler(range(96), per_process, clusters=rows, world_size=world, seed=5)
        batches.append([{row for batch in step for row in batch} for step in steps_of(sampler)])
    assert batches[0] == batches[1] == batches[2]


@pytest.mark.parametrize("world", WORLDS)
def test_accelerate_deals_out_what_the_sampler_means(world):
    sampler = SaHaBatchSampler(range(100), 7, clusters=np.arange(100).reshape(50, 2), world_size=world)
    steps = steps_of(sampler)
    for rank in range(world):
        shard = BatchSamplerShard(sampler, world, rank, even_batches=False)
        assert list(shard) == [step[rank] for step in steps]
        assert len(shard) == len(steps)
        for done in range(len(steps)):
            assert list(SkipBatchSampler(shard, done)) == [step[rank] for step in steps[done:]]


@pytest.mark.parametrize(
    ("options", "pairs"),
    [
        ({"clusters": np.arange(64).reshape(16, 4), "world_size": 2}, 16),
        ({"clusters": np.arange(12).reshape(3, 4)}, 8),
        ({"clusters": [[0, 1, 2], [3, -1, -1]]}, 4),
        (
            {
                "clusters": [[0, 1], [2, 3], [4, 5], [6, 7], [16, 17]],
                "subset_ids": np.arange(64) // 16,
                "subsets_per_batch": 2,
            },
            8,
        ),
    ],
)
def test_it_tells_how_many_pairs_its_fullest_step_holds(options, pairs):
    """Ten pairs are room for two clusters of 4; half of ten, which is what one of two subsets has, for two of 2."""
    sampler = SaHaBatchSampler(range(64), 10, **options)
    assert sampler.most_pairs == pairs
    steps = []
    for epoch in range(6):
        sampler.set_epoch(epoch)
        steps += steps_of(sampler)
    assert max(sum(map(len, step)) for step in steps) == pairs


def test_members_change_places_within_a_cluster():
    sampler = SaHaBatchSampler(range(16), 16, clusters=np.arange(16)[None])
    orders = set()
    for epoch in range(3):
        sampler.set_epoch(epoch)
        orders.add(tuple(next(iter(sampler))))
    assert len(orders) == 3


def test_no_clusters_is_random_batching():
    sampler = SaHaBatchSampler(range(10), 4, seed=1)
    batches = list(sampler)
    assert sorted(map(len, batches)) == [2, 4, 4]
    assert sorted(sum(batches, [])) == list(range(10)) != sum(batches, [])


@pytest.mark.parametrize("empty", [np.empty((0, 16), dtype=np.int64), []])
def test_clusters_without_rows_are_no_clusters(empty):
    batches = list(SaHaBatchSampler(range(10), 4, seed=1))
    sampler = SaHaBatchSampler(range(10), 4, seed=1, clusters=empty)
    assert list(sampler) == batches
    sampler.set_clusters(empty)
    assert list(sampler) == batches


def test_drop_last_keeps_full_batches_only():
    sampler = SaHaBatchSampler(range(10), 4, True)
    assert [len(batch) for batch in sampler] == [4, 4]


def test_a_last_batch_that_is_full_is_not_dropped():
    clusters = np.arange(8).reshape(4, 2)
    assert [len(batch) for batch in SaHaBatchSampler(range(8), 4, True, clusters=clusters)] == [4, 4]
    # Four pairs and one more cluster would be too many for a batch of 5.
    assert [len(batch) for batch in SaHaBatchSampler(range(8), 5, True, clusters=clusters)] == [4, 4]


def test_order_is_independent_of_the_workers():
    sampler = SaHaBatchSampler(range(30), 6, clusters=np.arange(30).reshape(10, 3), seed=3)
    for workers in (0, 2):
        loader = DataLoader(range(30), batch_sampler=sampler, num_workers=workers, collate_fn=list)
        assert list(loader) == list(sampler)


def test_a_million_rows_are_set_up_in_a_gigabyte():
    rows = np.random.default_rng(0).permutation(1_000_000).reshape(-1, 16)
    subsets = np.empty(1_000_000, dtype=np.int64)
    subsets[rows] = np.sort(np.arange(len(rows)) % 20)[:, None]
    tracemalloc.start()
    sampler = SaHaBatchSampler(
        range(1_000_000), 256, clusters=rows, world_size=8, subset_ids=subsets, subsets_per_batch=4
    )
    iterator = iter(sampler)
    first = next(iterator)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(first) <= 256 and peak < 1e9, peak


def test_is_a_sampler_of_sentence_transformers():
    assert issubclass(SaHaBatchSampler, DefaultBatchSampler)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clusters": [[0, 9]]}, "row numbers 0 to 9, but the dataset has 8"),
        ({"clusters": [[0, 1], [-1, -1]]}, "cluster 1 has no rows"),
        ({"clusters": [[0, 1, 2, 3, 4]]}, "a cluster has 5 pairs, but a batch takes 4"),
        ({"clusters": [[0, 1]], "world_size": 2}, "too few for one step of 2 processes"),
        ({"clusters": [0, 1]}, "must be integers"),
        ({"clusters": [[0.5, 1.0]]}, "must be integers"),
        ({"subsets_per_batch": 1}, "needs subset_ids"),
        (
            {"clusters": [[0, 2], [1, -1], [0, 1]], "subset_ids": np.arange(8) % 2, "subsets_per_batch": 1},
            "1 of 3 clusters mix subsets, cluster 2 first.*a strategy other than 'random'",
        ),
    ],
)
def test_errors_say_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        SaHaBatchSampler(range(8), 4, **options)


@pytest.mark.parametrize(("number", "message"), [(2, "come twice"), (7, "sit the epoch out")])
def test_new_clusters_keep_the_number_of_steps(number, message, caplog):
    sampler = SaHaBatchSampler(range(32), 4, clusters=np.arange(16).reshape(4, 4))
    sampler.set_clusters(np.arange(16)[::-1].reshape(4, 4))
    assert not caplog.text
    sampler.set_clusters(np.arange(4 * number).reshape(number, 4))
    assert message in caplog.text
    assert len(list(sampler)) == len(sampler) == 4


def test_fewer_clusters_of_several_subsets_fill_the_same_steps():
    options = {"subset_ids": np.arange(32) // 16, "subsets_per_batch": 2}
    sampler = SaHaBatchSampler(range(32), 8, clusters=np.arange(32).reshape(8, 4), **options)
    assert len(sampler) == 4
    sampler.set_clusters(np.arange(32).reshape(8, 4)[[0, 1, 2, 4, 5, 6]])
    assert [len(batch) for batch in sampler] == [8] * 4


def test_subsets_may_mix_where_nothing_is_asked_of_them():
    mixed = np.arange(16).reshape(2, 8).T.reshape(4, 4)
    sampler = SaHaBatchSampler(range(16), 4, clusters=mixed, subset_ids=np.arange(16) // 8)
    assert sorted(map(sorted, sampler)) == sorted(map(sorted, mixed.tolist()))
