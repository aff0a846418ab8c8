"""What an evaluation costs beside embedding row by row, as evaluation scripts usually do.

``python -m tests.benchmarks.evaluation`` draws data sets whose candidates are shared by many queries and prints, for
each, the CPU time per row of `evaluate` and of the same rows embedded one candidate list after the other (measured on
some rows). CPU time of this process, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from hf_mmembed import MMEmbedder, tiny
from hf_mmembed.evaluation import SentenceEncoder, evaluate
from hf_mmembed.evaluation.mmeb_image import read_v1
from hf_mmembed.evaluation.tasks import Ranking
from hf_mmembed.tiny.benchmark import DRAWN_SUBSETS, draw_benchmark


def row_by_row(encoder: SentenceEncoder, task: Ranking, rows: int) -> float:
    """CPU seconds per row when each row's query and candidates are embedded as they come."""
    started = time.process_time()
    for query, pool in list(zip(task.queries, task.pools or (), strict=True))[:rows]:
        encoder([query])
        encoder([task.candidates[place] for place in pool])
    return (time.process_time() - started) / rows


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
        root = Path(folder, "mmeb-v1")
        draw_benchmark(Path(folder), rows=arguments.rows)
        tasks = {
            subset.name: read_v1(root, subset, "user") for subset in DRAWN_SUBSETS if subset.name in arguments.subsets
        }
        encoder(next(iter(tasks.values())).queries[:2])  # the first call is slower
        print(
            "| data set | candidates of a row | distinct ones | evaluate, CPU ms/row | row by row, CPU ms/row | ratio |"
        )
        print("|---|---:|---:|---:|---:|---:|")
        for name, task in tasks.items():
            started = time.process_time()
            evaluate(encoder, "mmeb-v1", root, subsets=[name], out=Path(folder, name))
            fast = (time.process_time() - started) / arguments.rows
            slow = row_by_row(encoder, task, arguments.slow_rows)
            counts = max(map(len, task.pools or ())), len(task.candidates)
            cells = (name, *counts, f"{1000 * fast:.0f}", f"{1000 * slow:.0f}", f"{slow / fast:.1f}×")
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
