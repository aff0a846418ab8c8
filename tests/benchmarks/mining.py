"""How fast mining is: our search and clustering against the published loop of one query at a time.

The baseline is written here as the published program does it: for an anchor a flat FAISS index over all documents is
asked for that one query, and its cluster is made with Python sets. Every such step takes the same time, so it is timed
on random anchors; ours is timed whole. Two comparisons are printed. "Every query" is the work that the default strategy
does, done one query at a time. The published greedy itself does less, since whoever is a member is never an anchor: it
is compared with `saha-paper`, which makes the same clusters.

FAISS answers a single query with one thread; a matrix product uses all. Both the clock and the processor time are given,
and where the machine is shared only the second means something.

    python -m tests.benchmarks.mining                          # 20,000 x 1,536: under two minutes of processor time
    python -m tests.benchmarks.mining --rows 100000            # what the README quotes
    python -m tests.benchmarks.mining --rows 1000000 --dim 256 --sampled 2048

With ``--sampled`` only so many queries are really searched, among all documents; the candidates of the others are made
up from the topics they were drawn from, so that everything after the search does its full work in its full memory.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import faiss
import numpy as np
import torch

from hf_mmembed.mining import mine, paper, saha
from hf_mmembed.mining.candidates import Candidates, nearest_documents

K, MULT = 15, 3
PER_TOPIC = 50
TIMED = 64  # steps of the published loop


@dataclass
class Stopwatch:
    """Seconds by the clock and of the processor, summed over its uses."""

    clock: float = 0.0
    processor: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        clock, processor = time.perf_counter(), time.process_time()
        yield
        self.clock += time.perf_counter() - clock
        self.processor += time.process_time() - processor


@dataclass
class Corpus:
    """Unit vectors in a narrow cone, `PER_TOPIC` pairs per topic, queries near their documents."""

    queries: np.ndarray
    documents: np.ndarray
    topics: np.ndarray

    @classmethod
    def drawn(cls, rows: int, dim: int) -> Corpus:
        rng = np.random.default_rng(0)
        topics = rng.integers(0, max(1, rows // PER_TOPIC), rows)
        centres = 2 * rng.standard_normal((max(1, rows // PER_TOPIC), dim), np.float32)
        queries, documents = np.empty((rows, dim), np.float32), np.empty((rows, dim), np.float32)
        for start in range(0, rows, 16_384):  # in parts, so that the peak of memory is that of mining
            part = slice(start, start + 16_384)
            documents[part] = 2 + centres[topics[part]]
            documents[part] += rng.standard_normal(documents[part].shape, np.float32)
            queries[part] = documents[part] + 0.7 * rng.standard_normal(documents[part].shape, np.float32)
            for vectors in (queries[part], documents[part]):
                vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return cls(queries, documents, topics)


class Search:
    """Stands in for `nearest_documents` to time it, and to make up what is not to be searched."""

    def __init__(self, corpus: Corpus, sampled: int | None) -> None:
        self.watch = Stopwatch()
        self.products = self.searched = self.asked = self.unsettled = 0
        self._corpus = corpus
        self._sampled = sampled

    def __call__(self, queries: torch.Tensor, documents: torch.Tensor, depth: int) -> Candidates:
        own = queries if self._sampled is None else queries[: self._sampled]
        with self.watch.running():
            found = nearest_documents(own, documents, depth)
        self.products += 2 * len(own) * documents.numel()
        self.searched, self.asked = self.searched + len(own), self.asked + len(queries)
        self.unsettled += found.unsettled
        return found if len(own) == len(queries) else self._made_up(found, documents)

    def _made_up(self, found: Candidates, documents: torch.Tensor) -> Candidates:
        """Documents beside one's own in the order of topics; there are as many queries as documents, in pairs."""
        depth = found.documents.shape[1]
        keys = self._corpus.documents[:, :2].copy().view(np.int64)[:, 0]  # tells which of all documents these are
        order = np.argsort(keys)
        numbers = order[np.searchsorted(keys[order], documents[:, :2].numpy().copy().view(np.int64)[:, 0])]
        by_topic = np.argsort(self._corpus.topics[numbers], kind="stable").astype(np.int32)
        place = np.empty_like(by_topic)
        place[by_topic] = np.arange(len(by_topic))
        near = np.empty((len(documents), depth), np.int32)
        for column in range(depth):
            beside = (column + 1) // 2 * (-1) ** column
            near[:, column] = by_topic[(place + beside) % len(by_topic)]
        near[: len(found.documents)] = found.documents
        return Candidates(near, np.empty_like(near, np.float32), found.unsettled)


def published_loop(corpus: Corpus) -> Callable[[int], bool]:
    """The step of the published program for one anchor: search, owners not used yet, cluster."""
    queries = corpus.queries
    index = faiss.IndexFlatIP(queries.shape[1])
    index.add(corpus.documents)
    owners = {row: {row} for row in range(len(queries))}
    used: set[int] = set()

    def step(anchor: int) -> bool:
        if anchor in used:
            return False
        _, found = index.search(queries[anchor : anchor + 1], 2 * MULT * K)
        members: list[int] = []
        for document in found[0].tolist():
            if document in (anchor, -1):
                continue
            free = list(owners[document].difference(used))
            if not free:
                continue
            if len(free) > 1:
                free = [free[int(np.argmax(queries[free] @ queries[anchor]))]]
            members += free
            if len(members) == MULT * K:
                break
        if members:
            scores = (queries[members] @ queries[anchor]).tolist()
            members = [member for _, member in sorted(zip(scores, members, strict=True))][:K]
            used.add(anchor)
            used.update(members)
        return True

    return step


def product_rate(dim: int) -> Stopwatch:
    """Floating-point operations per second of a matrix product of the shapes of the search, the best of three."""
    left, right = torch.randn(1024, dim), torch.randn(32_768, dim)
    out = torch.empty(1024, 32_768)
    watches = [Stopwatch() for _ in range(3)]
    for watch in watches:
        with watch.running():
            torch.mm(left, right.T, out=out)
    operations = 2 * len(left) * right.numel()
    return Stopwatch(
        operations / min(watch.clock for watch in watches), operations / min(watch.processor for watch in watches)
    )


def peak_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=1536)
    parser.add_argument("--sampled", type=int, help="queries that are really searched (default: all)")
    options = parser.parse_args()
    rows, dim = options.rows, options.dim
    corpus, ids = Corpus.drawn(rows, dim), np.arange(rows)
    vectors = peak_memory()
    rate = product_rate(dim)

    def mined(strategy: str, sampled: int | None) -> tuple[Search, Stopwatch, int]:
        search, watch = Search(corpus, sampled), Stopwatch()
        with patch.object(saha, "nearest_documents", search), patch.object(paper, "nearest_documents", search):
            with watch.running():
                found = mine(ids, ids, corpus.queries, corpus.documents, strategy=strategy, k=K, mult=MULT)
        print(f"\n{strategy}: {len(found):,} clusters, {dict(found.counts)}")
        per_query = Stopwatch(search.watch.clock / search.searched, search.watch.processor / search.searched)
        share = search.products / search.watch.processor / rate.processor
        print(
            f"  queries searched   {search.searched:12,} of {search.asked:,} asked for, {search.unsettled:,} unsettled"
        )
        print(f"  search             {tell(search.watch)}, {100 * share:.0f} % of the matrix product's rate")
        if sampled is not None:
            rest = Stopwatch(watch.clock - search.watch.clock, watch.processor - search.watch.processor)
            print(f"  all but the search {tell(rest)}")
            watch = Stopwatch(
                rest.clock + per_query.clock * search.asked, rest.processor + per_query.processor * search.asked
            )
            print("  extrapolated to all queries, as if each round were as large as the first:")
        print(f"  search and clusters{tell(watch)}, {rows / watch.clock:,.0f} rows/s by the clock")
        print(f"  peak memory        {peak_memory():12.2f} GiB, of which vectors and libraries {vectors:.2f}")
        return search, watch, len(found)

    print(f"{rows:,} x {dim:,}, {torch.get_num_threads()} threads on {os.cpu_count()} cores, k={K}, mult={MULT}")
    print(
        f"matrix product       {rate.clock / 1e9:10.1f} GFLOP/s by the clock, {rate.processor / 1e9:.1f} per processor"
    )
    _, ours, _ = mined("saha", options.sampled)
    if options.sampled is not None:
        return
    _, paper_watch, clusters = mined("saha-paper", None)
    step, each, steps = published_loop(corpus), Stopwatch(), 0
    step(0)
    for anchor in np.random.default_rng(1).permutation(rows).tolist():
        with each.running():
            steps += step(anchor)
        if steps == TIMED:
            break
    print(f"\npublished loop, {steps} random anchors: {1000 * each.clock / steps:.1f} ms each by the clock")
    for name, times, watch in (
        ("every query, against saha", rows, ours),
        (f"its {clusters:,} anchors, against saha-paper", clusters, paper_watch),
        (f"its {clusters:,} anchors, against saha", clusters, ours),
    ):
        whole = Stopwatch(each.clock / steps * times, each.processor / steps * times)
        print(
            f"  {name:42} {tell(whole)}: {whole.clock / watch.clock:.1f} times by the clock, "
            f"{whole.processor / watch.processor:.1f} by processor time"
        )


def tell(watch: Stopwatch) -> str:
    return f"{watch.clock:10.1f} s by the clock, {watch.processor:9.1f} s of processor"


if __name__ == "__main__":
    main()
