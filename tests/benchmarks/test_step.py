"""The benchmark runs: its contenders compute the same loss, and every kind of pairs gets a line for each."""

from __future__ import annotations

import pytest
import torch

from hf_mmembed import tiny
from tests.benchmarks import step


def test_contenders_agree_and_are_listed(capsys):
    step.run("tiny", tiny.generative_path(), number=4, chunk=2, largest_side=64, repeats=1, seed=0)
    lines = capsys.readouterr().out.splitlines()[2:]  # below the title and the columns
    assert len(lines) == 1 + 2 * 3
    assert [line.split()[0] for line in lines[1:]] == ["texts"] * 3 + ["pictures"] * 3
    assert all("1.00x" in line for line in lines if " ours  " in line)


def test_a_contender_that_computes_something_else_is_found():
    with pytest.raises(ValueError, match="something else"):
        step.measure({"one": lambda: 1.0, "other": lambda: 2.0}, [torch.nn.Linear(1, 1)], repeats=1)
