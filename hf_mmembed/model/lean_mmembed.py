"""Modules of transformers that compute the same numbers in another way, under the names that their weights have.

In: a module of a backbone, and a class with a `forward` of ours. Out: the same module with its class changed, which
reads: our way, on top of the class of the family. Our way falls back on the family's where it does not apply. This file
travels with the checkpoint.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

__all__ = ["Lean", "is_plain", "library_name", "make_lean", "rotated"]


class Lean(nn.Module):
    """What our ways of computing derive from.

    The classes that [`make_lean`] makes are in no file, so their modules are pickled and copied by what they are made
    of.
    """

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _blank, type(self).__bases__, self.__dict__


def make_lean(module: nn.Module, way: type[Lean]) -> None:
    """Make a module compute in our way, in place.

    Its class changes, rather than its `forward`: a replica of the module then computes with its own weights.
    """
    kinds: tuple[Any, Any] = way, type(module)
    module.__class__ = _lean(*kinds)


@cache
def _lean(way: type, kind: type) -> Any:
    return type(f"Lean{kind.__name__}", (way, kind), {})


def _blank(way: type, kind: type) -> nn.Module:
    lean = _lean(way, kind)
    return lean.__new__(lean)


def library_name(module: nn.Module) -> str:
    """The name of the class of a module where that is one of transformers' own, else an empty string."""
    kind = type(module)
    return kind.__name__ if kind.__module__.startswith("transformers.") else ""


def is_plain(layer: nn.Module) -> bool:
    """Whether a call of the layer is its matrix product: it has no adapter, and no hook, as offloaded layers have."""
    hooked = "forward" in vars(layer) or layer._forward_pre_hooks or layer._forward_hooks
    return type(layer) is nn.Linear and not hooked


def rotated(states: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding, without its temporary tensors.

    Args:
        states (`torch.Tensor` of shape `(..., head_dim)`): Queries or keys.
        cosine (`torch.Tensor`): Of the angles, in a shape that broadcasts to that of `states`.
        sine (`torch.Tensor`): Likewise.

    Returns:
        `torch.Tensor` of the shape of `states`.

    Example:

        >>> rotated(torch.tensor([[2.0, 3.0]]), torch.zeros(1, 2), torch.ones(1, 2))
        tensor([[-3.,  2.]])
    """
    left, right = states.chunk(2, dim=-1)
    left_sine, right_sine = sine.chunk(2, dim=-1)
    turned = states * cosine
    turned_left, turned_right = turned.chunk(2, dim=-1)
    turned_left.addcmul_(right, left_sine, value=-1)
    turned_right.addcmul_(left, right_sine)
    return turned
