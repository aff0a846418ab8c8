"""The state of the generators of random numbers, so that a step can be repeated with the same dropout.

In: nothing but the state that torch is in. Out: that state, of the CPU and of every GPU, and torch back in it.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["random_state", "set_random_state"]


def random_state() -> tuple[Tensor, list[Tensor]]:
    """That of the CPU, and those of the GPUs."""
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def set_random_state(state: tuple[Tensor, list[Tensor]]) -> None:
    """Back to what `random_state` returned."""
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])
