"""What the quicker modules of vision towers and language models have in common.

In: a module of a backbone, which may be transformers' own, and may have hooks and adapters. Out: what it is; and rotary
position embeddings. This file travels with the checkpoint.
"""

from __future__ import annotations

import torch
from torch import nn

from .product_mmembed import QuickLinear

__all__ = ["is_plain", "library_name", "rotated"]


def library_name(module: nn.Module) -> str:
    """The name of the class of a module where that is one of transformers' own, else an empty string."""
    kind = type(module)
    return kind.__name__ if kind.__module__.startswith("transformers.") else ""


def is_plain(layer: nn.Module) -> bool:
    """Whether a call of the layer is its matrix product: it has no adapter, and no hook, as offloaded layers have."""
    hooked = "forward" in vars(layer) or layer._forward_pre_hooks or layer._forward_hooks
    return type(layer) in (nn.Linear, QuickLinear) and not hooked


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
