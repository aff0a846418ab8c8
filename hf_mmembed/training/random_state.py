"""The state of the generators of random numbers, so that a step can be repeated with the same dropout.

In: nothing but the state that torch is in. Out: that state, of the CPU and of every GPU, and torch back in it; and
whether a model draws anything at all.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["has_dropout", "random_state", "set_random_state"]


def has_dropout(model: nn.Module) -> bool:
    """Whether a forward pass draws random numbers: some layer in training mode has a share of dropout above zero.

    Layers that are no `nn.Dropout` themselves, as attention is, keep the share under a name with "drop" in it.

    Example:

        >>> layers = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
        >>> has_dropout(layers), has_dropout(layers.eval())
        (True, False)
    """
    return any(
        isinstance(value, float)
        and value > 0
        and ("drop" in name or isinstance(module, nn.modules.dropout._DropoutNd))
        for module in model.modules()
        if module.training
        for name, value in vars(module).items()
    )


def random_state() -> tuple[Tensor, list[Tensor]]:
    """That of the CPU, and those of the GPUs."""
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def set_random_state(state: tuple[Tensor, list[Tensor]]) -> None:
    """Back to what `random_state` returned."""
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])
