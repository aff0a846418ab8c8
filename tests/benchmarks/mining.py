"""How fast mining is: our search and clustering against the published loop of one query at a time.

The baseline is written here as the published program does it: a flat FAISS index is asked for one query after the other,
and the clusters are made row by row with Python sets. Both sides run on the same vectors with the same threads. The
baseline is timed on its first queries, because each of them takes the same time; ours is timed whole.

    python -m tests.benchmarks.mining                          # 20,000 x 1,536, about two minutes
    python -m tests.benchmarks.mining --rows 100000            # what the README quotes
    python -m tests.benchmarks.mining --rows 1000000 --dim 256 --no-baseline
"""

from __future__ import annotations

import argparse
import os
import resource
import time

import faiss
import numpy as np
import torch

from hf_mmembed.mining import mine
from hf_mmembed.mining.candidates import nearest_documents

K, MULT = 15, 3


def topics(rows: int, dim: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors in a narrow cone with 50 pairs per topic, queries near their documents."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(1, rows // 50), dim), np.float32)
    documents = 2 * centres[rng.integers(0, len(centres), rows)]
    documents += 2 + rng.standard_normal((rows, dim), np.float32)
    queries = documents + 0.7 * rng.standard_normal((rows, dim), np.float32)
    for vectors in (queries, documents):
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return queries, documents


def published_loop(queries: np.ndarray, documents: np.ndarray, timed: int) -> float:
    """Seconds per query of the published program's first pass."""
    index = faiss.IndexFlatIP(documents.shape[1])
    index.add(documents)
    owners = {row: {row} for row in range(len(documents))}
    used: set[int] = set()
    start, asked = time.perf_counter(), 0
    for anchor in range(len(queries)):
        if asked == timed:
            break
        asked += 1
        # Used-up anchors are skipped there too, but only after this loop has made use of their candidates.
        _, found = index.search(queries[anchor : anchor + 1], 2 * MULT * K)
        candidates = []
        for document in found[0].tolist():
            if document in (anchor, -1):
                continue
            free = owners[document] - used
            if not free:
                continue
            candidates.append(max(free, key=lambda owner, a=anchor: float(queries[a] @ queries[owner])))
            if len(candidates) == MULT * K:
                break
        if anchor in used or not candidates:
            continue
        used.add(anchor)
        candidates.sort(key=lambda owner, a=anchor: float(queries[a] @ queries[owner]))
        used |= set(candidates[:K])
    return (time.perf_counter() - start) / asked


def gemm_rate(dim: int) -> float:
    """Floating-point operations per second of a matrix product of the shapes of the search, the best of three."""
    left, right = torch.randn(4096, dim), torch.randn(16_384, dim)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        left @ right.T
        best = min(best, time.perf_counter() - start)
    return 2 * 4096 * 16_384 * dim / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=1536)
    parser.add_argument("--timed", type=int, default=100, help="queries of the baseline that are timed")
    parser.add_argument("--no-baseline", action="store_true")
    options = parser.parse_args()
    faiss.omp_set_num_threads(torch.get_num_threads())
    queries, documents = topics(options.rows, options.dim, 0)
    vectors = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rate = gemm_rate(options.dim)

    start, busy = time.perf_counter(), time.process_time()
    nearest = nearest_documents(torch.from_numpy(queries), torch.from_numpy(documents), 2 * MULT * K + 1)
    search, search_busy = time.perf_counter() - start, time.process_time() - busy
    start, busy = time.perf_counter(), time.process_time()
    ids = np.arange(options.rows)
    clusters = mine(ids, ids, queries, documents, k=K, mult=MULT)
    whole, whole_busy = time.perf_counter() - start, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    share = 2 * options.rows**2 * options.dim / search / rate
    print(
        f"{options.rows:,} x {options.dim:,}, {torch.get_num_threads()} threads, {os.cpu_count()} cores, k={K}, mult={MULT}"
    )
    print(f"matrix product        {rate / 1e9:8.1f} GFLOP/s")
    print(
        f"search                {search:8.1f} s  {options.rows / search:10,.0f} queries/s  {100 * share:.0f} % of the matrix product"
    )
    print(f"search and clusters   {whole:8.1f} s  {options.rows / whole:10,.0f} rows/s")
    print(f"processor time        {search_busy:8.1f} s search, {whole_busy:.1f} s search and clusters")
    print(f"unsettled rows        {nearest.unsettled:8,}")
    print(f"peak memory           {peak:8.1f} GiB, of which vectors and libraries {vectors:.1f}")
    print(f"clusters              {len(clusters):8,}  members: {dict(clusters.counts)}")
    if not options.no_baseline:
        start, busy = time.perf_counter(), time.process_time()
        each = published_loop(queries, documents, options.timed)
        each_busy = (time.process_time() - busy) / options.timed
        print(
            f"published loop        {each * options.rows:8.1f} s  {1 / each:10,.0f} rows/s  (from {options.timed} queries)"
        )
        print(
            f"ratio                 {each * options.rows / whole:8.1f}  by the clock, {each_busy * options.rows / whole_busy:.1f} by processor time"
        )


if __name__ == "__main__":
    main()
