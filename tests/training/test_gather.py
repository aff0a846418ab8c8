"""Rows of all processes come in the order of the ranks, as many as there are, and gradients go back where they belong."""

from __future__ import annotations

import torch

from hf_mmembed.training.gather import any_process, gather_numbers, gather_rows
from tests.forks import in_processes

CPU = torch.device("cpu")
ROWS = [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])]


def _gathered(rank):
    rows = ROWS[rank].clone().requires_grad_()
    whole = gather_rows(rows.T.contiguous().T, [1, 3])  # as a transposed view lies in memory
    whole[:2].sum().backward()
    return {
        "numbers": gather_numbers([rank, 7], CPU),
        "any": [any_process(fact, CPU) for fact in (rank == 1, False)],
        "rows": whole.tolist(),
        "integers": gather_rows(ROWS[rank].long(), [1, 3]).tolist(),
        "none of one": gather_rows(ROWS[rank][: 2 * rank], [0, 2]).tolist(),
        "none at all": gather_rows(ROWS[rank][:0], [0, 0]).shape,
        "gradient": rows.grad.tolist(),
    }


def test_unequal_rows_of_two_processes(tmp_path):
    first, second = in_processes(_gathered, store=tmp_path / "store")
    of_first, of_second = first.pop("gradient"), second.pop("gradient")
    assert of_first == [[2.0, 2.0]] and of_second == [[2.0, 2.0], [0.0, 0.0], [0.0, 0.0]]  # both processes ask for it
    assert first == second
    assert first == {
        "numbers": [[0, 7], [1, 7]],
        "any": [True, False],
        "rows": torch.cat(ROWS).tolist(),
        "integers": torch.cat(ROWS).long().tolist(),
        "none of one": ROWS[1][:2].tolist(),
        "none at all": (0, 2),
    }


def test_one_process_has_what_it_has():
    assert gather_numbers([3, 4], CPU) == [[3, 4]] and gather_rows(ROWS[1], [3]) is ROWS[1]
    assert [any_process(fact, CPU) for fact in (True, False)] == [True, False]
