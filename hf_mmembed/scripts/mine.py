# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-mmembed[train]"]
# ///
"""Mine clusters of hard negatives from your own pairs, without training.

In: pairs and an embedder. Out: a directory with `clusters.arrow`, which `hf-mmembed train --clusters` takes, and the
embeddings; a killed run goes on where it stopped.

Copy and run::

    uv run mine.py --model my-name/my-embedder --data my-name/my-captions --out clusters

On a laptop, with the shipped model and drawn pictures::

    hf-mmembed tiny draw pictures --number 200
    python -m hf_mmembed.scripts.mine --data pictures --k 7
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]

logger = logging.getLogger("mine")


def main(args: Sequence[str] | None = None) -> Path:
    """Embed, mine, save; returns the directory."""
    from hf_mmembed.shipped import SHIPPED

    parser = argparse.ArgumentParser(description="Mine clusters of hard negatives from your own pairs.")
    parser.add_argument("--model", default=SHIPPED, help="embedder: a directory, a Hub id, or mmembed-tiny")
    parser.add_argument("--data", required=True, help="pairs: a folder, a table, or the id of a data set")
    parser.add_argument("--column", action="append", default=[], metavar="OURS=THEIRS", help="query_text=caption, ...")
    parser.add_argument("--out", type=Path, default=Path("clusters"), help="directory to write")
    parser.add_argument("--strategy", default="saha", help="saha, saha-paper, top-k, margin, mutual, random")
    parser.add_argument("--k", type=int, default=15, help="members of a cluster beside the anchor")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(args)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    columns = [column.partition("=") for column in options.column]
    if wrong := [ours for ours, equals, _ in columns if not equals]:
        parser.error(f"--column takes OURS=THEIRS, not {wrong[0]!r}")

    from hf_mmembed import tiny
    from hf_mmembed.data.pairs import read_pairs
    from hf_mmembed.identity import open_identified
    from hf_mmembed.mining import mine_pairs

    embedder, identity = open_identified(tiny.checkpoint_path() if options.model == SHIPPED else options.model)
    pairs = read_pairs(options.data, columns={ours: theirs for ours, _, theirs in columns} or None)
    mined = mine_pairs(
        pairs,
        embedder,
        options.out,
        model=identity.as_dict(),
        strategy=options.strategy,
        k=options.k,
        seed=options.seed,
    )
    recall = ", ".join(f"{name} {value:.3f}" for name, value in mined.clusters.recall.items())
    logger.info("%d clusters of %d pairs in %s (%s)", len(mined.clusters), options.k + 1, options.out, recall)
    return options.out


if __name__ == "__main__":
    main()
