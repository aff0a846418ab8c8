"""Language models as an embedder runs them on a CPU: the weights and numbers of transformers, computed in less time.

In: a backbone of transformers. Out: the same backbone, whose attention reads keys and values where they are instead of
copying them for each query of their group, and whose norms and feed-forwards pass over memory less often. Where only the
pooled token is asked for, all blocks but the last leave out the padding, and the last one's attention has one query per
row. Where gradients are wanted, and on other devices, the modules compute as they always did. This file travels with
the checkpoint.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation

from .lean_mmembed import is_plain, library_name, rotated
from .overlay_mmembed import Overlay, lay_over
from .pooled_mmembed import pack, packing, pooled_output, unpack

__all__ = ["GatedInPlace", "GroupedAttention", "OnePassNorm", "blocks_without_padding", "lean_language"]

# Classes that have the same parts and do the same, by family.
ATTENTIONS = frozenset(
    {
        "LlamaAttention",
        "MistralAttention",
        "Qwen2Attention",
        "Qwen2VLAttention",
        "Qwen2_5_VLAttention",
        "Qwen3Attention",
        "Qwen3VLMoeTextAttention",
        "Qwen3VLTextAttention",
    }
)
BLOCKS = frozenset(
    {
        "LlamaDecoderLayer",
        "MistralDecoderLayer",
        "Qwen2DecoderLayer",
        "Qwen2VLDecoderLayer",
        "Qwen2_5_VLDecoderLayer",
        "Qwen3DecoderLayer",
        "Qwen3VLTextDecoderLayer",
    }
)
FEED_FORWARDS = frozenset(
    {
        "LlamaMLP",
        "MistralMLP",
        "Qwen2MLP",
        "Qwen2_5_VLMLP",
        "Qwen3MLP",
        "Qwen3VLTextMLP",
        "Qwen3_5MLP",
        "Qwen3_5MoeMLP",
    }
)
NORMS = frozenset(
    {
        "LlamaRMSNorm",
        "MistralRMSNorm",
        "Qwen2RMSNorm",
        "Qwen2VLRMSNorm",
        "Qwen2_5_VLRMSNorm",
        "Qwen3RMSNorm",
        "Qwen3VLMoeTextRMSNorm",
        "Qwen3VLTextRMSNorm",
    }
)
READ = frozenset({"attention_mask", "past_key_values", "position_embeddings"})
# What attention is told that changes nothing here: angles and cache were made with it already.
HARMLESS = frozenset({"position_ids", "use_cache"})


def lean_language(backbone: nn.Module) -> None:
    """Make the modules of a backbone's language model compute in the ways below, in place."""
    for module in backbone.modules():
        name = library_name(module)
        if name in ATTENTIONS:
            lay_over(module, GroupedAttention)
        elif name in NORMS:
            lay_over(module, OnePassNorm)
        elif name in FEED_FORWARDS:
            lay_over(module, GatedInPlace)


def blocks_without_padding(backbone: PreTrainedModel) -> None:
    """Make the blocks of a lean language model but the last leave out the padding, where [`only_pooled`] asks for it."""
    for block in list(getattr(backbone.get_decoder(), "layers", ()))[:-1]:
        if library_name(block) in BLOCKS and _leave_out_padding not in block._forward_pre_hooks.values():
            block.register_forward_pre_hook(_leave_out_padding, with_kwargs=True)
            block.register_forward_hook(_put_padding_back)


def _as_the_family(states: torch.Tensor) -> bool:
    # A compiler fuses the family's passes over memory by itself, in fewer and larger graphs than ours.
    return torch.is_grad_enabled() or torch.compiler.is_compiling() or states.device.type != "cpu"


class OnePassNorm(Overlay, nn.Module):
    """An RMSNorm whose squares are never written to memory."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(..., dim)` → `(..., dim)`."""
        norm: Any = self
        if _as_the_family(hidden_states) or not hidden_states.dtype == norm.weight.dtype == torch.float32:
            return super().forward(hidden_states)
        length = torch.linalg.vector_norm(hidden_states, dim=-1, keepdim=True)
        scale = length.square_().div_(hidden_states.shape[-1]).add_(norm.variance_epsilon).rsqrt_()
        return (hidden_states * scale).mul_(norm.weight)


class GatedInPlace(Overlay, nn.Module):
    """A gated feed-forward, whose gate is opened where it stands."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """`(..., dim)` → `(..., dim)`."""
        mlp: Any = self
        silu = type(mlp.act_fn) in (nn.SiLU, SiLUActivation) and not mlp.act_fn._forward_hooks
        # Who listens to the gate's output gets it as it was.
        if _as_the_family(states) or not silu or not is_plain(mlp.gate_proj):
            return super().forward(states)
        return mlp.down_proj(F.silu(mlp.gate_proj(states), inplace=True).mul_(mlp.up_proj(states)))


class GroupedAttention(Overlay, nn.Module):
    """Attention whose queries share keys and values in groups, without a copy of these for each query."""

    q_proj: nn.Module

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One forward pass.

        Args:
            hidden_states (`torch.Tensor` of shape `(batch, seq_len, hidden)`): Of the tokens that are read now; or of
                those that are no padding, one after the other, `(1, real, hidden)`.
            position_embeddings (`tuple[torch.Tensor, torch.Tensor]`): Cosine and sine, `(batch or 1, seq_len,
                head_dim)` each.
            attention_mask (`torch.Tensor` of shape `(batch or 1, 1, seq_len, keys)`, *optional*): Boolean or additive.
                Without one, attention is causal.
            past_key_values (`Cache`, *optional*): Keys and values of tokens read before.
            **kwargs: What else the module takes.

        Returns:
            `tuple[torch.Tensor, None]`: States of the shape of `hidden_states`, and no weights of attention.
        """
        attention: Any = self
        real = packing()
        if real is None and not _applies(attention, hidden_states, kwargs):
            return super().forward(
                hidden_states,
                position_embeddings=position_embeddings,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                **kwargs,
            )
        batch, length = hidden_states.shape[:2] if real is None else real.stand_ins.shape
        query, key, value = (
            projection(hidden_states).unflatten(-1, (-1, attention.head_dim))
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        angles = [part.expand(batch, -1, -1) for part in position_embeddings]
        if real is not None:
            angles = [real.pick(part).unsqueeze(0) for part in angles]
        query_angles = angles
        pooled = pooled_output(attention.q_proj)
        if pooled is not None:
            query, *query_angles = (pooled.pick(part).unsqueeze(1) for part in (query, *angles))
            if attention_mask is not None:
                by_token = attention_mask.expand(batch, -1, -1, -1).transpose(1, 2)
                attention_mask = pooled.pick(by_token).unsqueeze(2)
        if hasattr(attention, "q_norm"):
            query, key = attention.q_norm(query), attention.k_norm(key)
        query_angles, angles = ([part.unsqueeze(-2) for part in parts] for parts in (query_angles, angles))
        states = [rotated(query, *query_angles), rotated(key, *angles), value]
        if real is not None:
            states = [real.fill(part.squeeze(0)) for part in states]
        query, key, value = (part.transpose(1, 2) for part in states)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, attention.layer_idx)
        causal = attention_mask is None and query.shape[2] > 1
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=attention.scaling, is_causal=causal, enable_gqa=True
        )
        mixed = mixed.transpose(1, 2).flatten(2)
        # Where `o_proj` is told to read the pooled token, it picks it out of a row again.
        mixed = mixed.expand(batch, length, -1) if real is None else real.pick(mixed).unsqueeze(0)
        return attention.o_proj(mixed), None


def _applies(attention: Any, states: torch.Tensor, others: dict[str, Any]) -> bool:
    """Whether attention of this kind computes what the family's would."""
    return (
        not _as_the_family(states)
        and attention.config._attn_implementation == "sdpa"
        and not attention.training  # dropout
        and attention.is_causal
        and all(value is None or value is False for name, value in others.items() if name not in HARMLESS)
    )


# Hooks are functions of this file, by whose names a model is pickled for other processes.
def _leave_out_padding(block: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
    if named.get("attention_mask") is None or len(inputs) != 1:
        return None
    others = {name: value for name, value in named.items() if name not in READ}
    if not _reads_packed(block.self_attn, inputs[0], others):
        return None
    packed = pack(inputs[0])
    return None if packed is None else ((packed,), named)


def _reads_packed(attention: Any, states: torch.Tensor, others: dict[str, Any]) -> bool:
    return (
        isinstance(attention, GroupedAttention)
        and "forward" not in vars(attention)  # offloading gives a module one, which can be the family's
        and pooled_output(attention.q_proj) is None  # the last block, also of a backbone cut and wrapped again
        and _applies(attention, states, others)
    )


def _put_padding_back(block: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
    return unpack(output)
