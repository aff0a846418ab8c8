"""Vision towers as an embedder runs them: the weights and numbers of transformers' modules, computed in less time.

In: a backbone of transformers. Out: the same backbone, whose patch embedding is a matrix product, whose pictures of
equal size attend in one call instead of one call each, and whose activations pass over memory less often. Names and
shapes of weights do not change, and where gradients flow the modules compute as they always did; through a frozen tower
none flow, also in training. This file travels with the checkpoint.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import QuickGELUActivation

from .lean_mmembed import is_plain, library_name, rotated
from .overlay_mmembed import Overlay, lay_over
from .product_mmembed import product

__all__ = ["AttentionByLength", "InPlaceQuickGELU", "LinearPatchConv", "OnePassFeedForward", "lean_vision"]

# Vision attentions that have the same parts and take the same arguments.
QWEN_ATTENTIONS = frozenset(
    {
        "VisionAttention",
        "Qwen2_5_VLVisionAttention",
        "Qwen3VLVisionAttention",
        "Qwen3VLMoeVisionAttention",
        "Qwen3_5VisionAttention",
        "Qwen3_5MoeVisionAttention",
    }
)


def lean_vision(backbone: nn.Module) -> None:
    """Make the modules of a backbone's vision tower compute in the ways below, in place."""
    for module in backbone.modules():
        kind: Any = type(module)
        if kind is nn.Conv3d and module.stride == module.kernel_size and module.padding == (0, 0, 0):
            module.__class__ = LinearPatchConv
        elif kind is QuickGELUActivation:
            module.__class__ = InPlaceQuickGELU
        elif library_name(module) == "VisionMlp" and type(module.act) in (QuickGELUActivation, InPlaceQuickGELU):
            lay_over(module, OnePassFeedForward)
        elif library_name(module) in QWEN_ATTENTIONS:
            lay_over(module, AttentionByLength)


class LinearPatchConv(nn.Conv3d):
    """A patch embedding's `Conv3d`, computed as the matrix product that it is when each input is one patch.

    Several torch/GPU pairs run this convolution 10 to 50,000 times slower than the product (pytorch#174051,
    transformers#45750), and the product is faster on CPUs too.
    """

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """`(patches, channels, time, height, width)` → `(patches, dim, 1, 1, 1)`."""
        if patches.shape[2:] != self.weight.shape[2:]:
            return super().forward(patches)
        states = product(patches.flatten(1), self.weight.flatten(1), self.bias)
        return states.view(-1, self.out_channels, 1, 1, 1)


class InPlaceQuickGELU(QuickGELUActivation):
    """`x * sigmoid(1.702 * x)` with one new tensor instead of three."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Any shape → the same shape."""
        if _gradients_flow(self, input):
            return super().forward(input)
        return (1.702 * input).sigmoid_().mul_(input)


class OnePassFeedForward(Overlay, nn.Module):
    """Qwen2-VL's `VisionMlp`, whose activation passes over its input once instead of three times.

    `x * sigmoid(1.702 * x)` is `silu(1.702 * x) / 1.702`; the narrow states before and after take the factors.
    """

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """`(patches, dim)` → `(patches, dim)`."""
        first: Any = self.fc1
        second: Any = self.fc2
        if _gradients_flow(self, states) or not (is_plain(first) and is_plain(second)):
            return super().forward(states)
        wide = product(1.702 * states, first.weight, 1.702 * first.bias)
        return torch.add(second.bias, product(F.silu(wide, inplace=True), second.weight), alpha=1 / 1.702)


class AttentionByLength(Overlay, nn.Module):
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
        if implementation != "sdpa" or torch.compiler.is_compiling() or _gradients_flow(self, hidden_states):
            return super().forward(
                hidden_states, cu_seqlens=cu_seqlens, position_embeddings=position_embeddings, **kwargs
            )
        patches = hidden_states.shape[0]
        parts = attention.qkv(hidden_states).view(patches, 3, attention.num_heads, -1)
        # In float32, as the families do it.
        cosine, sine = (angles[:, None, None].float() for angles in position_embeddings)
        turn = _turned if parts.device.type == "cpu" else rotated  # not every device multiplies complex numbers
        query, key = turn(parts[:, :2].float(), cosine, sine).to(parts.dtype).unbind(1)
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


def _gradients_flow(module: nn.Module, states: torch.Tensor) -> bool:
    """Whether anything that a module computes from `states` will be differentiated."""
    return torch.is_grad_enabled() and (
        states.requires_grad or any(weight.requires_grad for weight in module.parameters())
    )


def _turned(states: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding in one product of complex numbers.

    Dimensions come out in another order, the same for queries and keys, whose dot products stay what they are. The two
    halves of the angles are equal: each turns a pair of dimensions.
    """
    left, right = states.chunk(2, dim=-1)
    angles = torch.complex(*(part[..., : left.shape[-1]] for part in (cosine, sine)))
    return torch.view_as_real(torch.complex(left, right).mul_(angles)).flatten(-2)
