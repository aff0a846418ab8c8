"""Batches that shrink where memory runs out."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_mmembed.batching import Lookahead
from hf_mmembed.memory import TokenBudget, run_batches

CUDA = torch.OutOfMemoryError("CUDA out of memory. Simulated.")


def run_in(memory: int, tokens: list[int], tried: list[list[int]], error: RuntimeError = CUDA, **options: Any):
    """All results of a device that takes so many tokens."""

    def run(batch: list[int]) -> list[int]:
        tried.append(batch)
        if len(batch) * max(tokens[place] for place in batch) > memory:
            raise error
        return [tokens[place] for place in batch]

    options = {"batch_size": 16, "batch_cost": 10_000, "lookahead": Lookahead(2, 2)} | options
    budget = TokenBudget()
    return list(run_batches(tokens, list, run, budget=budget, **options)), budget


@given(
    tokens=st.lists(st.integers(1, 100), max_size=40),
    memory=st.integers(100, 4_000),
    batch_size=st.integers(1, 16),
    lookahead=st.builds(Lookahead, st.integers(0, 3), st.integers(0, 3), st.booleans()),
)
def test_every_input_is_done_once_in_whatever_memory_one_fits(tokens, memory, batch_size, lookahead):
    results, _ = run_in(memory, tokens, [], batch_size=batch_size, lookahead=lookahead)
    done = [place for batch, _ in results for place in batch]
    assert sorted(done) == list(range(len(tokens)))
    assert all(result == [tokens[place] for place in batch] for batch, result in results)


def test_what_follows_is_as_small_from_the_start_and_finished_work_stays(caplog):
    tried: list[list[int]] = []
    results, budget = run_in(100, [10] * 64, tried)
    failed = [batch for batch in tried if len(batch) > 10]
    assert [len(batch) for batch in failed] == [16] and budget.tokens == 80
    assert len(tried) == 1 + len(results) == 9
    assert "out of memory with 16 inputs at once: batches now hold at most 80 tokens" in caplog.text


def test_a_budget_that_was_lowered_stays_so_for_the_next_call():
    budget, sizes = TokenBudget(50), []
    options = {"batch_size": 16, "batch_cost": 10_000, "lookahead": Lookahead(0, 0)}
    list(run_batches([10] * 12, list, lambda batch: sizes.append(len(batch)), budget=budget, **options))
    assert sizes == [5, 5, 2]


def test_one_input_that_does_not_fit_is_an_error():
    with pytest.raises(torch.OutOfMemoryError):
        run_in(50, [10, 60, 10], [])


@pytest.mark.parametrize(
    "message",
    [
        "MPS backend out of memory (MPS allocated: 8.00 GiB, other allocations: 1.00 GiB, max allowed: 9.07 GiB). "
        "Tried to allocate 1.00 GiB on private pool.",
        "Invalid buffer size: 19.45 GiB",
        "[enforce fail at alloc_cpu.cpp:127] data. DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.",
    ],
)
def test_bare_errors_of_other_devices_shrink_batches_too(message):
    results, budget = run_in(100, [10] * 64, [], RuntimeError(message))
    assert len(results) == 8 and budget.tokens == 80
    with pytest.raises(RuntimeError, match=message.split(" (")[0].split("] ")[-1]):
        run_in(50, [10, 60, 10], [], RuntimeError(message))


def test_what_this_torch_says_when_its_cpu_has_no_memory_left_shrinks_batches():
    try:
        torch.empty(1 << 60, dtype=torch.uint8)
    except RuntimeError as error:
        results, _ = run_in(100, [10] * 16, [], error)
    assert len(results) == 2


def test_the_cache_is_released_once_the_failed_batch_is_gone(monkeypatch):
    class States:
        pass

    def run(batch: list[int]) -> None:
        if len(batch) > 1:
            states = States()
            alive.add(states)
            raise torch.OutOfMemoryError("CUDA out of memory. Simulated.")

    alive: weakref.WeakSet[States] = weakref.WeakSet()
    released: list[int] = []
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("mps"))
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: released.append(len(alive)))
    options = {"batch_size": 2, "batch_cost": 9, "lookahead": Lookahead(0, 0)}
    list(run_batches([1, 2], list, run, budget=TokenBudget(), **options))
    assert released == [0]


def test_other_errors_are_the_caller_s():
    def run(batch: list[int]) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        list(
            run_batches([1, 2], list, run, budget=TokenBudget(), batch_size=2, batch_cost=9, lookahead=Lookahead(1, 1))
        )


@pytest.mark.parametrize("lookahead", [Lookahead(2, 2), Lookahead(2, 3, in_turns=True)])
def test_no_more_batches_are_in_memory_than_the_lookahead_says(lookahead):
    class Features:
        def __init__(self, batch: list[int]) -> None:
            alive.add(self)
            most.append(len(alive))

    alive, most = weakref.WeakSet(), []
    list(run_batches([1] * 12, Features, id, budget=TokenBudget(), batch_size=1, batch_cost=9, lookahead=lookahead))
    assert max(most) <= lookahead.items + 1


def test_a_thread_has_the_device_for_itself_while_a_batch_is_on_it():
    budget = TokenBudget(100)
    options = {"batch_size": 1, "batch_cost": 9, "lookahead": Lookahead(0, 0), "budget": budget}
    held = [
        (before, now)
        for _, (before, now) in run_batches(
            [1, 2], lambda batch: budget.turn.locked(), lambda before: (before, budget.turn.locked()), **options
        )
    ]
    assert held == [(False, True)] * 2 and not budget.turn.locked()


def test_a_copy_of_a_budget_has_a_lock_of_its_own():
    budget = TokenBudget(80)
    with budget.turn:
        copied = copy.deepcopy(budget)  # as it is pickled for another process
        assert copied == budget and not copied.turn.locked()
