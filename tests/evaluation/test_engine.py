"""Items are shared out among processes, whatever each of them has seen of the cache."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from hf_mmembed.evaluation import engine
from hf_mmembed.evaluation.cache import EmbeddingCache
from hf_mmembed.evaluation.items import Item, digest

ITEMS = [Item(text=f"text {number}") for number in range(20)]


def encode(items):
    return np.array([[1.0, float(item.text.split()[1])] for item in items], np.float32)


class TwoThreads:
    """A world of two processes that are threads."""

    size = 2

    def __init__(self, rank: int, barrier: threading.Barrier, told: queue.Queue) -> None:
        self.rank, self.main, self.barrier, self.told = rank, rank == 0, barrier, told

    def agree(self, failure):
        self.barrier.wait(timeout=20)
        return failure

    def share(self, value):
        if self.main:
            self.told.put(value)
            return value
        return self.told.get(timeout=20)


def two_processes(monkeypatch, items, encoders, caches, **options):
    barrier, told, here = threading.Barrier(2), queue.Queue(), threading.local()
    monkeypatch.setattr(engine, "world", lambda: here.world)

    def process(rank):
        here.world = TwoThreads(rank, barrier, told)
        return engine.embed_items(items, encoders[rank], caches[rank], name="test", **options)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(process, range(2)))


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_process_that_has_seen_more_of_the_cache_leaves_no_gap(tmp_path, monkeypatch, ahead):
    caches = [None, None]
    caches[1 - ahead] = EmbeddingCache(tmp_path)
    caches[1 - ahead].add([digest(item) for item in ITEMS[:5]], encode(ITEMS[:5]) / 10)
    caches[ahead] = EmbeddingCache(tmp_path)
    results = two_processes(monkeypatch, ITEMS, [encode, encode], caches, shard=2)
    expected = encode(ITEMS)
    for vectors, places in results:
        found = vectors[places]
        np.testing.assert_allclose(found[:, 1] / found[:, 0], expected[:, 1], rtol=1e-5)


def recorded():
    seen = []
    return seen, lambda items: seen.append(tuple(item.text for item in items)) or encode(items)


def test_a_small_data_set_is_work_for_many_processes(tmp_path, monkeypatch):
    items = [Item(text=f"text {number}") for number in range(1000)]
    (first, one), (second, other), (all_of_it, alone) = recorded(), recorded(), recorded()
    two_processes(monkeypatch, items, [one, other], [EmbeddingCache(tmp_path / "two") for _ in range(2)])
    assert len(first) == len(second) == 8
    monkeypatch.undo()
    engine.embed_items(items, alone, EmbeddingCache(tmp_path / "one"), name="test")
    assert sorted(first + second) == sorted(all_of_it) and max(map(len, all_of_it)) == 64
    # What a run that goes on makes is what it would have made.
    files = sorted((tmp_path / "one").iterdir())
    for file in files[::2]:
        file.unlink()
    again, resumed = recorded()
    engine.embed_items(items, resumed, EmbeddingCache(tmp_path / "one"), name="test")
    assert len(again) == len(files[::2]) and set(again) < set(all_of_it)


@pytest.mark.parametrize(("contents", "largest"), [(3000, 94), (9000, 256)])
def test_a_large_data_set_has_larger_shards(tmp_path, contents, largest):
    seen, encoder = recorded()
    items = [Item(text=f"text {number}") for number in range(contents)]
    engine.embed_items(items, encoder, EmbeddingCache(tmp_path), name="test")
    assert max(map(len, seen)) == largest
