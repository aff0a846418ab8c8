"""Rows per second of an evaluation beside embedding row by row, as evaluation scripts usually do.

``python -m tests.benchmarks.evaluation`` draws data sets whose candidates are shared by many queries and prints, for
each, how fast `evaluate` goes and how fast the same rows go one candidate list after the other (measured on some rows).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from hf_mmembed import MMEmbedder, tiny
from hf_mmembed.evaluation import SentenceEncoder, evaluate
from hf_mmembed.evaluation.mmeb_image import read_v1
from hf_mmembed.tiny.benchmark import DRAWN_SUBSETS, draw_benchmark


def row_by_row(encoder: SentenceEncoder, root: Path, name: str, rows: int) -> float:
    """Rows per second when each row's query and candidates are embedded as they come."""
    [subset] = [subset for subset in DRAWN_SUBSETS if subset.name == name]
    task = read_v1(root, subset, "user")
    started = time.perf_counter()
    for query, pool in list(zip(task.queries, task.pools or (), strict=True))[:rows]:
        encoder([query])
        encoder([task.candidates[place] for place in pool])
    return rows / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100, help="queries of each data set")
    parser.add_argument("--slow-rows", type=int, default=3, help="rows measured one by one")
    parser.add_argument(
        "--subsets", nargs="+", default=["DrawnShape", "DrawnVQA", "Drawn_t2i", "Drawn_i2t", "DrawnCrop"]
    )
    arguments = parser.parse_args()
    encoder = SentenceEncoder(MMEmbedder(tiny.checkpoint_path(), device="cpu"), "mmembed-tiny")
    with tempfile.TemporaryDirectory() as folder:
        draw_benchmark(Path(folder), rows=arguments.rows)
        root = Path(folder, "mmeb-v1")
        print("| data set | evaluate, rows/s | row by row, rows/s | ratio |\n|---|---:|---:|---:|")
        for name in arguments.subsets:
            started = time.perf_counter()
            evaluate(encoder, "mmeb-v1", root, subsets=[name], out=Path(folder, name))
            fast = arguments.rows / (time.perf_counter() - started)
            slow = row_by_row(encoder, root, name, arguments.slow_rows)
            print(f"| {name} | {fast:.2f} | {slow:.2f} | {fast / slow:.1f}× |", flush=True)


if __name__ == "__main__":
    main()
