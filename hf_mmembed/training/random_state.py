"""The state of the generators of random numbers, so that a step can be repeated with the same dropout.

In: nothing but the state that torch is in. Out: that state, of the CPU and of every GPU, and torch back in it; and
whether a model draws anything at all.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["draws_at_random", "random_state", "set_random_state"]

_RANDOM = ("drop", "jitter", "noise")


def draws_at_random(model: nn.Module) -> bool:
    """Whether a forward pass in training mode draws random numbers, as dropout, jitter of a router and NEFTune do.

    Such layers, or their configurations, keep the share or strength under a name that says so; where it is zero,
    nothing is drawn. A configuration may name what its layers do not use: then the answer errs towards True.

    Example:

        >>> layers = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
        >>> draws_at_random(layers), draws_at_random(layers.eval())
        (True, False)
    """
    training = [module for module in model.modules() if module.training]
    configs = {id(config): config for module in training if (config := getattr(module, "config", None)) is not None}
    return any(isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0 for module in training) or any(
        isinstance(value, (int, float)) and value > 0 and any(word in name for word in _RANDOM)
        for holder in (*training, *configs.values())
        for name, value in vars(holder).items()
    )


def random_state() -> tuple[Tensor, list[Tensor]]:
    """That of the CPU, and those of the GPUs."""
    if torch.cuda.is_available():
        return torch.get_rng_state(), torch.cuda.get_rng_state_all()
    return torch.get_rng_state(), [torch.mps.get_rng_state()] if torch.backends.mps.is_available() else []


def set_random_state(state: tuple[Tensor, list[Tensor]]) -> None:
    """Back to what `random_state` returned."""
    cpu, gpus = state
    torch.set_rng_state(cpu)
    if gpus and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(gpus)
    elif gpus:
        torch.mps.set_rng_state(gpus[0])
