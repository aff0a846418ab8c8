"""Matrix products in float32 on processors whose full vector width torch leaves unused.

In: a model. Out: the same model, whose linear layers have oneDNN multiply where that is faster, and the two products of
their gradients as well. torch hands float32 products to MKL, which computes with AVX2 on processors of AMD; Zen 5 does
twice as much at a time with AVX-512, which oneDNN uses. Names and values of weights do not change, and none is copied.
This file travels with the checkpoint.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["QuickLinear", "onednn_is_faster", "product", "quicken_products"]

# Below, the call takes longer than the product.
FEWEST_ROWS = 16
# oneDNN generates code for every number of rows and keeps it in memory: rows are filled up to one of this many numbers
# between a power of two and the next.
SIZES_PER_DOUBLING = 8
# Of AMD's processors, Zen 5 is the first that computes 512 bits at a time.
ZEN_5 = 26


def quicken_products(model: nn.Module) -> None:
    """Make the linear layers of a model multiply by [`product`], in place; on other processors, do nothing.

    `torch.backends.mkldnn.flags(enabled=False)` switches it off for a while, as it does all else that uses oneDNN.
    """
    if not onednn_is_faster():
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = QuickLinear


class QuickLinear(nn.Linear):
    """A linear layer that multiplies by [`product`]."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`(..., in_features)` → `(..., out_features)`."""
        return product(input, self.weight, self.bias)


def product(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`torch.nn.functional.linear`, by oneDNN where that is faster.

    Args:
        states (`torch.Tensor` of shape `(..., in_features)`): What is multiplied.
        weight (`torch.Tensor` of shape `(out_features, in_features)`): By what.
        bias (`torch.Tensor` of shape `(out_features,)`, *optional*): What is added.

    Returns:
        `torch.Tensor` of shape `(..., out_features)`.

    Example:

        >>> product(torch.ones(2, 3), torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([0.5]))
        tensor([[6.5000],
                [6.5000]])
    """
    if torch.compiler.is_compiling() or not onednn_is_faster() or _torch_computes(states, weight, bias):
        return F.linear(states, weight, bias)
    flat = states.reshape(-1, weight.shape[1])
    differentiable = torch.is_grad_enabled() and any(
        part is not None and part.requires_grad for part in (states, weight, bias)
    )
    multiplied = (_Product.apply if differentiable else _by_onednn)(flat, weight, bias)
    # No view, as what `linear` returns is none: it may be modified in place wherever that may.
    made: torch.Tensor = torch.ops.aten._unsafe_view(
        multiplied[: flat.shape[0]], [*states.shape[:-1], weight.shape[0]]
    )
    return made


@cache
def onednn_is_faster() -> bool:
    """Whether this machine's processor is one on which oneDNN multiplies faster than what torch calls by itself.

    On Zen 5 it is 2.2 times as fast (`python -m tests.benchmarks.encode`). Elsewhere MKL uses what there is, or
    nothing was measured.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
    except OSError:  # not Linux
        return False
    first = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return (
        first.get("vendor_id") == "AuthenticAMD"
        and int(first.get("cpu family", 0)) >= ZEN_5
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _torch_computes(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether a product is left to torch: it is small, wrong, or something that oneDNN's does not do."""
    return (
        torch.jit.is_tracing()
        or not states.device.type == weight.device.type == "cpu"
        or not states.dtype == weight.dtype == torch.float32
        or weight.dim() != 2
        or weight.numel() == 0
        or states.numel() < FEWEST_ROWS * weight.shape[1]
        or states.shape[-1] != weight.shape[1]
        or (bias is not None and bias.shape != weight.shape[:1])
        or type(weight) not in (torch.Tensor, nn.Parameter)  # some quantised ones say that they are float32
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        or torch.is_autocast_enabled("cpu")
        or not torch.backends.mkldnn.enabled
    )


class _Product(torch.autograd.Function):
    """A product by oneDNN whose gradients are products by [`product`] too, so they can be differentiated again."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """`(rows, in_features)` → `(rows filled up, out_features)`."""
        for_states, for_weight, _ = ctx.needs_input_grad
        # As they came, since others may keep them too, and filled up again when the time comes.
        ctx.save_for_backward(states if for_weight else None, weight if for_states else None)
        ctx.rows = states.shape[0]
        return _by_onednn(states, weight, bias)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """`(rows filled up, out_features)` → of each input."""
        states, weight = ctx.saved_tensors
        for_states, for_weight, for_bias = ctx.needs_input_grad
        return (
            product(upstream, weight.t())[: ctx.rows] if for_states else None,
            _product_over_rows(upstream, _filled_up(states)) if for_weight else None,
            upstream.sum(0) if for_bias else None,
        )


def _by_onednn(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`(rows, in_features)` → `(rows filled up, out_features)`."""
    bias = None if bias is None else bias.contiguous()
    multiplied: torch.Tensor = torch.ops.mkldnn._linear_pointwise(_filled_up(states), weight, bias, "none", [], "")
    return multiplied


def _product_over_rows(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """`left.T @ right`: `(rows, out_features)`, `(rows, in_features)` → `(out_features, in_features)`."""
    if left.shape[1] <= right.shape[1]:  # oneDNN copies the first factor, so let it be the narrower one
        return product(left.t(), right.t())
    return product(right.t(), left.t()).t()


def _filled_up(states: torch.Tensor) -> torch.Tensor:
    """`(rows, features)` → the same with zeros below, in one of the numbers of rows that oneDNN is asked for."""
    rows = states.shape[0]
    missing = _rounded_up(rows) - rows
    return F.pad(states, (0, 0, 0, missing)) if missing else states


def _rounded_up(rows: int) -> int:
    """The next number of those that rows are filled up to, at most an eighth more.

    Example:

        >>> [_rounded_up(rows) for rows in (16, 17, 100, 1000, 1025)]
        [16, 18, 104, 1024, 1152]
    """
    step = max(1, 2 ** ((rows - 1).bit_length() - 1) // SIZES_PER_DOUBLING)
    return -(-rows // step) * step
