# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-mmembed[eval]"]
# ///
"""Measure an embedder on a benchmark.

In: an embedder and the benchmark's folder in its official layout. Out: a directory with the scores, query by query and
on average; a killed run goes on where it stopped.

Copy and run::

    hf download TIGER-Lab/MMEB-eval --repo-type dataset --local-dir MMEB-eval   # and unpack its images.zip
    uv run evaluate.py --model my-name/my-embedder --benchmark mmeb-v1 --data MMEB-eval --out results

On a laptop: a `retrieval` folder of your own, see `hf-mmembed evaluate run --help`.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]

logger = logging.getLogger("evaluate")


def main(args: Sequence[str] | None = None) -> Path:
    """Measure, save; returns the directory with the results."""
    from hf_mmembed.shipped import SHIPPED

    parser = argparse.ArgumentParser(description="Measure an embedder on a benchmark.")
    parser.add_argument("--model", default=SHIPPED, help="embedder: a directory, a Hub id, or mmembed-tiny")
    parser.add_argument(
        "--benchmark", required=True, choices=["mmeb-v1", "mmeb-v2", "sugarcrepe", "sugarcrepe-pp", "retrieval"]
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the benchmark")
    parser.add_argument("--subset", action="append", help="data set; may be repeated; default: all there are")
    parser.add_argument("--out", type=Path, default=Path("results"), help="directory to write")
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args(args)
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    from hf_mmembed import tiny
    from hf_mmembed.evaluation import evaluate

    model = str(tiny.checkpoint_path()) if options.model == SHIPPED else options.model
    results = evaluate(
        model, options.benchmark, options.data, subsets=options.subset, out=options.out, batch_size=options.batch_size
    )
    logger.info("%s\nresults: %s", results, options.out)
    if results.failed:
        raise SystemExit(f"{len(results.failed)} data sets failed: {', '.join(results.failed)}")
    return options.out


if __name__ == "__main__":
    main()
