"""Batches as large as the memory of the device takes.

In: inputs of known length, how to prepare a batch of them, and how to run the model on it. Out: the result of each
batch; where memory runs out, batches of half the size, for the rest of the work too.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch

from .batching import TOKEN_BUDGET, Lookahead, plan_batches, prefetch

__all__ = ["TokenBudget", "run_batches"]

logger = logging.getLogger(__name__)

# Where torch raises a bare `RuntimeError` instead of its `OutOfMemoryError`, only the words tell.
_OUT_OF_MEMORY = (
    "MPS backend out of memory",
    "Invalid buffer size",  # Metal: one tensor is larger than any may be
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",  # Windows
)

Features = TypeVar("Features")
Result = TypeVar("Result")


@dataclass
class TokenBudget:
    """How many tokens a batch may have; `run_batches` lowers it where memory runs out.

    Attributes:
        tokens: Text and visual, padding included. Defaults to 16,384.
        turn: Held while a batch is on the device. Of threads that encode with one model, only one needs memory there.
    """

    tokens: int = TOKEN_BUDGET
    turn: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def __reduce__(self) -> tuple[type[TokenBudget], tuple[int]]:
        """A copy of a model, or one in another process, has a lock of its own."""
        return TokenBudget, (self.tokens,)


def run_batches(
    tokens: Sequence[int],
    prepare: Callable[[list[int]], Features],
    run: Callable[[Features], Result],
    *,
    batch_size: int,
    budget: TokenBudget,
    batch_cost: int,
    lookahead: Lookahead,
) -> Generator[tuple[list[int], Result], None, None]:
    """Yield each batch of `plan_batches` and what ``run(prepare(batch))`` gives for it.

    Args:
        tokens: Estimated tokens of each input.
        prepare: Makes features of a batch.
        run: Runs the model on them. What it has begun with a batch that does not fit is thrown away.
        batch_size: At most this many inputs in a batch.
        budget: Of tokens in a batch.
        batch_cost: As for `plan_batches`.
        lookahead: How many threads prepare, and how far ahead of the model.

    Raises:
        torch.OutOfMemoryError: A single input does not fit. On a CPU and on Apple's GPUs: `RuntimeError`, as torch has it.

    Example:
        >>> options = {"batch_size": 8, "budget": TokenBudget(), "batch_cost": 9, "lookahead": Lookahead(1, 1)}
        >>> list(run_batches([5, 9], len, str, **options))
        [([1, 0], '2')]
    """
    left = list(range(len(tokens)))
    while left:
        plan = plan_batches(
            [tokens[place] for place in left], batch_size=batch_size, token_budget=budget.tokens, batch_cost=batch_cost
        )
        batches = [[left[place] for place in batch] for batch in plan]
        ahead = lookahead if len(batches) > 1 else replace(lookahead, threads=0)
        done: set[int] = set()
        with closing(prefetch(prepare, batches, ahead)) as prepared:
            for batch, features in prepared:
                try:
                    with budget.turn:
                        result = run(features)
                except RuntimeError as error:
                    if len(batch) == 1 or not _ran_out_of_memory(error):
                        raise
                    budget.tokens = max(1, len(batch) * max(tokens[place] for place in batch) // 2)
                    logger.warning(
                        "out of memory with %d inputs at once: batches now hold at most %d tokens",
                        len(batch),
                        budget.tokens,
                    )
                    break
                finally:
                    del features  # the next ones may be in the making before this name is theirs
                done.update(batch)
                yield batch, result
        left = [place for place in left if place not in done]
        if left:  # only now: a traceback keeps the failed batch's tensors alive until its `except` has ended
            _release_cache()


def _ran_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY)


def _release_cache() -> None:
    """Give back the memory that the accelerator's allocator keeps in pieces of sizes no longer wanted."""
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is not None:
        torch.get_device_module(device).empty_cache()
