"""Vision towers as an embedder runs them: the weights and numbers of transformers' modules, computed in less time.

In: a backbone of transformers. Out: the same backbone, whose patch embedding is a matrix product, whose pictures of
equal size attend in one call instead of one call each, and whose activations pass over memory less often. Names and
shapes of weights do not change, and where gradients are wanted the modules compute as they always did. This file
travels with the checkpoint.
"""

from __future__ import annotations

from functools import cache
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import QuickGELUActivation

__all__ = ["AttentionByLength", "InPlaceQuickGELU", "LinearPatchConv", "OnePassFeedForward", "run_lean"]

# Vision attentions that have the same parts and take the same arguments.
QWEN_ATTENTIONS = frozenset(
    {"VisionAttention", "Qwen2_5_VLVisionAttention", "Qwen3VLVisionAttention", "Qwen3VLMoeVisionAttention"}
)


def run_lean(backbone: nn.Module) -> None:
    """Make the modules of a backbone compute in the ways below, in place.

    Their classes change, rather than the `forward` of each: a replica of a module then computes with its own weights.
    """
    for module in backbone.modules():
        kind: Any = type(module)
        if kind is nn.Conv3d and module.stride == module.kernel_size and module.padding == (0, 0, 0):
            module.__class__ = LinearPatchConv
        elif kind is QuickGELUActivation:
            module.__class__ = InPlaceQuickGELU
        elif kind.__name__ == "VisionMlp" and type(module.act) in (QuickGELUActivation, InPlaceQuickGELU):
            module.__class__ = _lean(OnePassFeedForward, kind)
        elif kind.__name__ in QWEN_ATTENTIONS:
            module.__class__ = _lean(AttentionByLength, kind)


@cache
def _lean(way: type, kind: type) -> Any:
    """The class `kind` of a family, computing in our way."""
    return type(f"Lean{kind.__name__}", (way, kind), {})


def _blank(way: type, kind: type) -> nn.Module:
    lean = _lean(way, kind)
    return lean.__new__(lean)


class _Lean(nn.Module):
    """A class that `_lean` makes is in no file, so its modules are pickled and copied by what it is made of."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _blank, type(self).__bases__, self.__dict__


class LinearPatchConv(nn.Conv3d):
    """A patch embedding's `Conv3d`, computed as the matrix product that it is when each input is one patch.

    Several torch/GPU pairs run this convolution 10 to 50,000 times slower than the product (pytorch#174051,
    transformers#45750), and the product is faster on CPUs too.
    """

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """`(patches, channels, time, height, width)` → `(patches, dim, 1, 1, 1)`."""
        if patches.shape[2:] != self.weight.shape[2:]:
            return super().forward(patches)
        product = F.linear(patches.flatten(1), self.weight.flatten(1), self.bias)
        return product.view(-1, self.out_channels, 1, 1, 1)


class InPlaceQuickGELU(QuickGELUActivation):
    """`x * sigmoid(1.702 * x)` with one new tensor instead of three."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Any shape → the same shape."""
        if torch.is_grad_enabled():
            return super().forward(input)
        return (1.702 * input).sigmoid_().mul_(input)


class OnePassFeedForward(_Lean):
    """Qwen2-VL's `VisionMlp`, whose activation passes over its input once instead of three times.

    `x * sigmoid(1.702 * x)` is `silu(1.702 * x) / 1.702`; the matrix products before and after it take the factors.
    """

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """`(patches, dim)` → `(patches, dim)`."""
        first: Any = self.fc1
        second: Any = self.fc2
        if torch.is_grad_enabled() or not (_is_plain(first) and _is_plain(second)):
            return super().forward(states)
        wide = torch.addmm(first.bias, states, first.weight.t(), beta=1.702, alpha=1.702)
        return torch.addmm(second.bias, F.silu(wide, inplace=True), second.weight.t(), alpha=1 / 1.702)


def _is_plain(layer: nn.Module) -> bool:
    """Whether a call of the layer is its matrix product: it has no adapter, and no hook, as offloaded layers have."""
    hooked = "forward" in vars(layer) or layer._forward_pre_hooks or layer._forward_hooks
    return type(layer) is nn.Linear and not hooked


class AttentionByLength(_Lean):
    """A Qwen vision attention in which neighbouring segments of equal length attend in one call.

    A segment is a picture, or a window of one; transformers runs a loop over them wherever flash attention is absent.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        cu_seqlens: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        **kwargs: Any,
    ) -> torch.Tensor:
        """One forward pass.

        Args:
            hidden_states (`torch.Tensor` of shape `(patches, dim)`): All segments, one after the other.
            cu_seqlens (`torch.Tensor` of shape `(segments + 1,)`): Where each begins, and where the last one ends.
            position_embeddings (`tuple[torch.Tensor, torch.Tensor]`): Cosine and sine, `(patches, head_dim)` each.
            **kwargs: What else the module takes, which does not concern attention of this kind.

        Returns:
            `torch.Tensor` of shape `(patches, dim)`.
        """
        attention: Any = self
        implementation = attention.config._attn_implementation
        if implementation != "sdpa" or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return super().forward(
                hidden_states, cu_seqlens=cu_seqlens, position_embeddings=position_embeddings, **kwargs
            )
        patches = hidden_states.shape[0]
        parts = attention.qkv(hidden_states).view(patches, 3, attention.num_heads, -1)
        cosine, sine = (angles[:, None, None] for angles in position_embeddings)
        query, key = _rotated(parts[:, :2], cosine, sine).unbind(1)
        outputs, start = [], 0
        for length, segments in groupby((cu_seqlens[1:] - cu_seqlens[:-1]).tolist()):
            stop = start + length * len(list(segments))
            q, k, v = (
                part[start:stop].unflatten(0, (-1, length)).transpose(1, 2) for part in (query, key, parts[:, 2])
            )
            mixed = F.scaled_dot_product_attention(q, k, v, scale=attention.scaling)
            outputs.append(mixed.transpose(1, 2).reshape(stop - start, -1))
            start = stop
        return attention.proj(outputs[0] if len(outputs) == 1 else torch.cat(outputs))


def _rotated(states: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding in float32, as the families compute it, without its temporary tensors."""
    exact = states.float()
    left, right = exact.chunk(2, dim=-1)
    left_sine, right_sine = sine.float().chunk(2, dim=-1)
    turned = exact * cosine.float()
    turned_left, turned_right = turned.chunk(2, dim=-1)
    turned_left.addcmul_(right, left_sine, value=-1)
    turned_right.addcmul_(left, right_sine)
    return turned.to(states.dtype)
