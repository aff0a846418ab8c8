from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_mmembed.batching import Lookahead, plan_batches, prefetch, text_tokens


@given(
    tokens=st.lists(st.integers(0, 500), max_size=60),
    batch_size=st.integers(1, 20),
    token_budget=st.integers(1, 2000),
    batch_cost=st.integers(0, 1000),
)
def test_plan_covers_each_input_once_within_its_bounds(tokens, batch_size, token_budget, batch_cost):
    batches = plan_batches(tokens, batch_size=batch_size, token_budget=token_budget, batch_cost=batch_cost)
    assert sorted(index for batch in batches for index in batch) == list(range(len(tokens)))
    for batch in batches:
        longest = max(tokens[index] for index in batch)
        assert len(batch) == 1 or (len(batch) <= batch_size and longest * len(batch) <= token_budget)
        assert sum(longest - tokens[index] for index in batch) <= batch_cost
    order = [tokens[index] for batch in batches for index in batch]
    assert order == sorted(order, reverse=True)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=60), st.integers(1, 20), st.integers(1, 2000))
def test_plan_fills_batches_where_padding_is_free(tokens, batch_size, token_budget):
    batches = plan_batches(tokens, batch_size=batch_size, token_budget=token_budget, batch_cost=500 * 60)
    for batch in batches[:-1]:
        assert len(batch) == batch_size or tokens[batch[0]] * (len(batch) + 1) > token_budget


@pytest.mark.parametrize("bad", [{"batch_size": 0, "token_budget": 1}, {"batch_size": 1, "token_budget": -1}])
def test_plan_refuses_bounds_that_are_not_positive(bad):
    with pytest.raises(ValueError, match="positive"):
        plan_batches([1], batch_cost=0, **bad)


def test_text_tokens_takes_any_string():
    assert text_tokens("") == 0
    assert text_tokens("\ud800 lone surrogate") > 0


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("ahead", [0, 1, 5])
@pytest.mark.parametrize("in_turns", [False, True])
def test_prefetch_keeps_the_order(workers, ahead, in_turns):
    squares = prefetch(lambda x: x * x, range(20), Lookahead(workers, ahead, in_turns))
    assert list(squares) == [(x, x * x) for x in range(20)]


@pytest.mark.parametrize("in_turns", [False, True])
def test_prefetch_prepares_no_more_than_asked_ahead(in_turns):
    started = []
    results = prefetch(lambda x: started.append(x), range(100), Lookahead(4, 3, in_turns))
    for consumed, _ in enumerate(results, start=1):
        assert len(started) <= consumed + 3
        if consumed == 10:
            break
    results.close()
    assert len(started) <= 13


def test_prefetch_prepares_while_the_consumer_works():
    prepared = threading.Event()

    def prepare(item: int) -> int:
        if item == 1:
            prepared.set()
        return item

    with_the_first_in_hand = prefetch(prepare, [0, 1], Lookahead(threads=1, items=1))
    next(with_the_first_in_hand)
    assert prepared.wait(timeout=10)
    assert list(with_the_first_in_hand) == [(1, 1)]


def test_prefetch_in_turns_prepares_together_and_never_while_the_consumer_works():
    together, making = threading.Barrier(3), []

    def prepare(item: int) -> int:
        making.append(item)
        together.wait(timeout=10)
        if item % 3:  # the first of three is ready before the others
            threading.Event().wait(timeout=0.02)
        making.remove(item)
        return item

    for _ in prefetch(prepare, range(9), Lookahead(threads=3, items=2, in_turns=True)):
        assert not making


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("in_turns", [False, True])
def test_prefetch_raises_at_the_item_it_belongs_to(workers, in_turns):
    def prepare(item: int) -> int:
        if item == 3:
            raise OSError("picture 3 is broken")
        return item

    seen = []
    with pytest.raises(OSError, match="picture 3"):
        for item, _ in prefetch(prepare, range(10), Lookahead(workers, 2, in_turns)):
            seen.append(item)
    assert seen == [0, 1, 2]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("in_turns", [False, True])
def test_prefetch_ends_its_threads_when_the_consumer_stops(error, in_turns):
    started = []
    results = prefetch(lambda x: started.append(x), range(1000), Lookahead(2, 2, in_turns))
    with pytest.raises(error):
        try:
            for item, _ in results:
                if item == 5:
                    raise error
        finally:
            results.close()
    assert not [thread for thread in threading.enumerate() if "prefetch" in thread.name]
    assert len(started) <= 9


def test_what_waits_is_not_prepared_when_the_consumer_stops():
    closing, started = threading.Event(), []

    def prepare(item: int) -> None:
        started.append(item)
        if item:
            closing.wait(timeout=10)
            threading.Event().wait(timeout=0.01)  # the others are called off meanwhile

    results = prefetch(prepare, range(200), Lookahead(threads=1, items=100))
    next(results)
    closing.set()
    results.close()
    assert len(started) < 50
