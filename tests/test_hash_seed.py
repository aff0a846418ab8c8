"""Drawn pairs, clusters and batches are the same in every process, whatever the seed of its hashes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from hf_mmembed.mining import STRATEGIES, mine
from hf_mmembed.tiny.pairs import draw_pairs
from hf_mmembed.training.sampler import SaHaBatchSampler
from tests.mining.corpora import corpus


def orders() -> dict[str, list]:
    """What must not depend on the order of a set."""
    pairs = draw_pairs(0, families=4, pixels=16).pairs
    data = corpus(3, rows=80, queries=50, documents=40)
    return {
        "pairs": [pairs["query_text"][:], pairs["pos_text"][:]],
        "clusters": [mine(*data, strategy=strategy, k=3, seed=5).rows.tolist() for strategy in STRATEGIES],
        "batches": list(SaHaBatchSampler(range(30), 6, clusters=np.arange(30).reshape(10, 3), seed=3)),
    }


def test_the_seed_decides_and_no_order_of_a_process(fresh_interpreter):
    code = "import json\nfrom tests.test_hash_seed import orders\nprint(json.dumps(orders()))"
    assert json.loads(fresh_interpreter(code, cwd=Path(__file__).parents[1]).splitlines()[-1]) == orders()
