"""The benchmark runs: its contenders embed the same, and every workload gets a line for each. Nothing is timed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hf_mmembed import tiny
from tests.benchmarks import encode


def test_contenders_agree_and_are_listed(tmp_path, capsys):
    options = {"items": 4, "largest_side": 64, "batch_size": 2, "repeats": 1, "seed": 0, "rate": 1e9}
    encode.run("tiny", tiny.generative_path(), **options)
    lines = capsys.readouterr().out.splitlines()[2:]  # below the title and the columns
    assert len(lines) == 1 + 4 * len(encode.workloads(4, 64, 0, tmp_path))
    assert all("1.00x" in line for line in lines if " ours " in line)


def test_products_and_attention_are_counted():
    def attend(inputs):
        query, key = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8)
        with torch.inference_mode():
            states = F.scaled_dot_product_attention(query, key, key, enable_gqa=True)
            return states.flatten(2) @ torch.randn(48, 3)

    attention, product = 2 * 2 * (2 * 4 * 6 * 6 * 8), 2 * (2 * 4 * 48 * 3)
    assert encode.arithmetic({"one": attend}, []) == {"one": attention + product}


def test_a_contender_that_embeds_something_else_is_found():
    texts = [{"text": "a red circle"}]
    contenders = {"one": lambda inputs: np.ones((1, 2)), "other": lambda inputs: np.zeros((1, 2))}
    with pytest.raises(ValueError, match="other embeds something else"):
        encode.measure(contenders, texts, repeats=1)
