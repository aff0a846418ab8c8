"""Which inputs share a batch, and getting the next batch ready while the model runs.

In: an estimated number of tokens per input. Out: batches of indices that hold a bounded number of tokens after
padding (`plan_batches`), and their prepared features one after the other (`prefetch`), as far ahead as `Lookahead` says.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["TOKEN_BUDGET", "Lookahead", "plan_batches", "prefetch", "text_tokens", "usable_cores"]

TOKEN_BUDGET = 16_384
"""Tokens in a batch unless someone asks for another number, text and visual, padding included."""

BYTES_PER_TOKEN = 4

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Lookahead:
    """How `prefetch` works ahead of its consumer.

    Attributes:
        threads: That prepare; with 0, each item is prepared when it is asked for, in the consumer's own thread.
        items: How many results may wait or be in the making beyond the one being consumed; bounds the memory.
        in_turns: Threads and consumer take turns: nothing is in the making while the consumer has an item, and then
            ``items + 1`` are made at once. Faster where the consumer keeps all cores busy by itself.
    """

    threads: int
    items: int
    in_turns: bool = False


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def text_tokens(text: str) -> int:
    """Estimated number of tokens of a text: one per four bytes of UTF-8, near the truth for most scripts.

    Example:
        >>> text_tokens("a red circle on the left"), text_tokens("红色的圆圈")
        (6, 4)
    """
    return -(-len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN)


def plan_batches(tokens: Sequence[int], *, batch_size: int, token_budget: int, batch_cost: int) -> list[list[int]]:
    """Group inputs of similar length into batches, the longest first.

    Longest first, so that a batch too large for the memory fails at once and not after an hour. Sorting keeps padding
    low; the budget counts what the model sees, the longest input of the batch times the number of inputs.

    Args:
        tokens: Estimated tokens of each input, text and visual together.
        batch_size: At most this many inputs in a batch.
        token_budget: At most this many tokens in a batch, padding included. An input longer than the budget gets a
            batch of its own.
        batch_cost: What one more batch costs, in the time of that many tokens; a batch ends before its padding costs
            more.

    Returns:
        Indices into ``tokens``, each exactly once.

    Raises:
        ValueError: ``batch_size`` or ``token_budget`` is not positive.

    Example:
        >>> plan_batches([10, 300, 12, 9], batch_size=8, token_budget=40, batch_cost=128)
        [[1], [2, 0, 3]]
    """
    if batch_size <= 0 or token_budget <= 0:
        raise ValueError(
            f"batch_size and token_budget must be positive integers, got {batch_size!r} and {token_budget!r}."
        )
    batches: list[list[int]] = []
    capacity = longest = padding = 0
    for index in sorted(range(len(tokens)), key=lambda i: -tokens[i]):
        padding += longest - tokens[index]
        if not batches or len(batches[-1]) >= capacity or padding > batch_cost:
            batches.append([])
            longest, padding = tokens[index], 0
            capacity = min(batch_size, max(1, token_budget // max(1, longest)))
        batches[-1].append(index)
    return batches


def prefetch(
    prepare: Callable[[Item], Result], items: Iterable[Item], lookahead: Lookahead
) -> Generator[tuple[Item, Result], None, None]:
    """Yield ``(item, prepare(item))`` in order, prepared in threads ahead of the consumer.

    An exception of ``prepare`` is raised here, at the item it belongs to. When the consumer stops early, by an
    exception of its own, Ctrl-C or a closed generator, nothing more is started and the threads end.

    Args:
        prepare: Called in a worker thread.
        items: What to prepare; taken as needed, so it may be a generator.
        lookahead: How many threads, how far they are ahead, and whether they work while the consumer does.

    Example:
        >>> list(prefetch(str.upper, ["a", "b"], Lookahead(threads=2, items=1)))
        [('a', 'A'), ('b', 'B')]
    """
    if lookahead.threads == 0:
        yield from ((item, prepare(item)) for item in items)
        return
    pending: deque[tuple[Item, Future[Result]]] = deque()

    def finished(left: int) -> Generator[tuple[Item, Result], None, None]:
        if lookahead.in_turns:
            wait([future for _, future in pending])
        while len(pending) > left:
            done, future = pending.popleft()
            yield done, future.result()

    with ThreadPoolExecutor(max_workers=lookahead.threads, thread_name_prefix="hf_mmembed-prefetch") as pool:
        try:
            for item in items:
                pending.append((item, pool.submit(prepare, item)))
                if len(pending) > lookahead.items:
                    yield from finished(left=0 if lookahead.in_turns else lookahead.items)
            yield from finished(left=0)
        finally:
            for _, future in pending:
                future.cancel()
