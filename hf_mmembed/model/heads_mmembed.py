"""Heads that read an embedding from the hidden states of a reasoner, which stays as it is.

In: `States`: the hidden states that enter one decoder layer, at all positions of prompt and trace. Out: one vector per
row, `(batch, hidden)`. The kinds are those that Think-Then-Embed (arXiv 2510.05014) compares. This file travels with
the checkpoint, so it imports nothing but torch and its neighbour.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .pooled_mmembed import last_real_token

__all__ = ["HEADS", "States", "default_layer", "join_masks", "make_head"]

HEADS = ("last_token", "mlp", "attention_pool", "latent_pool", "qformer", "self_init")

# Heads of their own capacity read from here, 8 layers before the end, where the paper found them best.
LAYERS_BEFORE_END = 8


@dataclass
class States:
    """What a head is given.

    Attributes:
        hidden: `(batch, seq_len, hidden)`.
        mask: `(batch, seq_len)`: 1 for the tokens up to the end of the trace, 0 for padding and what follows.
        calls: For each decoder layer from that one on, the arguments it was called with besides `hidden`.
    """

    hidden: torch.Tensor
    mask: torch.Tensor
    calls: list[dict[str, Any]] = field(default_factory=list)

    def last(self) -> torch.Tensor:
        """`(batch, hidden)`: the state of the last real token of each row."""
        rows = torch.arange(len(self.hidden), device=self.hidden.device)
        return self.hidden[rows, last_real_token(self.mask).to(self.hidden.device)]


def join_masks(masks: Sequence[torch.Tensor | None], lengths: Sequence[int]) -> torch.Tensor | None:
    """One attention mask from those of the steps of a generation.

    Args:
        masks: Of each step `(batch, 1, queries, keys)`, boolean or additive, its keys the last ones up to then; or
            None, which is causal. The `(batch, keys)` of flash attention, which grows, and of linear attention, which
            ends with the prompt, is returned with the tokens that followed, none of them padding.
        lengths: How many tokens each step adds.

    Returns:
        `(batch, 1, tokens, tokens)`, or None if there is nothing but causality to mask.

    Example:

        >>> join_masks([torch.tensor([[[[True]]]]), None], [1, 1])[0, 0].tolist()
        [[True, False], [True, True]]
    """
    known = [mask for mask in masks if mask is not None]
    if not known:
        return None
    if known[0].ndim == 2:
        return nn.functional.pad(known[-1], [0, sum(lengths) - known[-1].shape[1]], value=1)
    dtype, device, batch = known[0].dtype, known[0].device, max(mask.shape[0] for mask in known)
    shut: Any = False if dtype == torch.bool else torch.finfo(dtype).min
    open_: Any = True if dtype == torch.bool else 0
    total, end, rows = sum(lengths), 0, []
    for mask, queries in zip(masks, lengths, strict=True):
        end += queries
        if mask is None:
            causal = torch.ones(queries, end, dtype=torch.bool, device=device).tril(end - queries)
            mask = torch.full((1, 1, queries, end), shut, dtype=dtype, device=device).masked_fill(causal, open_)
        before, after = end - mask.shape[-1], total - end
        rows.append(nn.functional.pad(mask, [before, after], value=shut).expand(batch, -1, -1, -1))
    return torch.cat(rows, dim=2)


def default_layer(kind: str, layers: int, options: dict[str, Any]) -> int:
    """Which layer's input a head reads: `layers` stands for the states after the final norm.

    Raises:
        ValueError: If `self_init` is to copy more layers than there are.
    """
    if kind in ("last_token", "mlp"):
        return layers
    if kind == "self_init":
        copied = options.get("layers", min(LAYERS_BEFORE_END, layers))
        if not 1 <= copied <= layers:
            raise ValueError(
                f"self_init is to copy {copied} layers, but the reasoner has {layers}; use 1 to {layers}."
            )
        return layers - copied
    return max(layers - LAYERS_BEFORE_END, layers // 2)


def make_head(kind: str, decoder: nn.Module, layer: int, hidden_size: int, options: dict[str, Any]) -> nn.Module:
    """A head of one of `HEADS`.

    Args:
        kind (`str`): Which.
        decoder (`nn.Module`): The reasoner's, with its `layers` and `norm`.
        layer (`int`): Which layer's input it reads.
        hidden_size (`int`): Width of the states.
        options (`dict`): `queries` for `attention_pool` (4) and `qformer` (16), `depth` for `qformer` (2), `latents`
            for `latent_pool` (64).

    Raises:
        ValueError: If there is no such head.
    """
    if kind == "self_init":
        return SelfInitHead(decoder, layer)
    if kind == "last_token":
        return LastTokenHead(hidden_size)
    if kind == "mlp":
        return MLPHead(hidden_size)
    if kind == "attention_pool":
        return AttentionPool(hidden_size, options.get("queries", 4))
    if kind == "latent_pool":
        return LatentPool(hidden_size, options.get("latents", 64))
    if kind == "qformer":
        return QFormer(hidden_size, options.get("queries", 16), options.get("depth", 2))
    raise ValueError(f"there is no head {kind!r}; use one of {', '.join(map(repr, HEADS))}.")


class LastTokenHead(nn.Module):
    """A linear map of the last token's state, at first the identity."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.map = nn.Linear(hidden_size, hidden_size, bias=False)
        with torch.no_grad():
            self.map.weight.copy_(torch.eye(hidden_size))

    def forward(self, states: States) -> torch.Tensor:
        """`(batch, hidden)`."""
        return self.map(states.last())


class MLPHead(nn.Module):
    """Two layers beside the last token's state; at first they add nothing."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.into = nn.Linear(hidden_size, 4 * hidden_size)
        self.out = nn.Linear(4 * hidden_size, hidden_size)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, states: States) -> torch.Tensor:
        """`(batch, hidden)`."""
        last = states.last()
        return last + self.out(nn.functional.gelu(self.into(last)))


class AttentionPool(nn.Module):
    """Learned queries that attend to all tokens once; the mean of what they find."""

    def __init__(self, hidden_size: int, queries: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.queries = nn.Parameter(torch.randn(queries, hidden_size) * hidden_size**-0.5)
        self.attention = nn.MultiheadAttention(hidden_size, _heads(hidden_size), batch_first=True)

    def forward(self, states: States) -> torch.Tensor:
        """`(batch, hidden)`."""
        hidden = self.norm(states.hidden)
        queries = self.queries.expand(len(hidden), -1, -1)
        return self.attention(queries, hidden, hidden, states.mask == 0, need_weights=False)[0].mean(dim=1)


class LatentPool(nn.Module):
    """Every token attends to learned latents; the mean over tokens (NV-Embed, arXiv 2405.17428)."""

    def __init__(self, hidden_size: int, latents: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.latents = nn.Parameter(torch.randn(latents, hidden_size) * hidden_size**-0.5)
        self.attention = nn.MultiheadAttention(hidden_size, _heads(hidden_size), batch_first=True)
        self.mlp = nn.Sequential(
            nn.LayerNorm(hidden_size), nn.Linear(hidden_size, 4 * hidden_size), nn.GELU(),
            nn.Linear(4 * hidden_size, hidden_size),
        )  # fmt: skip

    def forward(self, states: States) -> torch.Tensor:
        """`(batch, hidden)`."""
        hidden = self.norm(states.hidden)
        latents = self.latents.expand(len(hidden), -1, -1)
        found = hidden + self.attention(hidden, latents, latents, need_weights=False)[0]
        found = found + self.mlp(found)
        weights = states.mask.unsqueeze(-1).to(found.dtype)
        return (found * weights).sum(dim=1) / weights.sum(dim=1)


class QFormer(nn.Module):
    """Learned queries through several layers of attention to each other and to all tokens; their mean."""

    def __init__(self, hidden_size: int, queries: int, depth: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.queries = nn.Parameter(torch.randn(queries, hidden_size) * hidden_size**-0.5)
        layer = nn.TransformerDecoderLayer(
            hidden_size, _heads(hidden_size), 4 * hidden_size, dropout=0.0, activation="gelu", batch_first=True,
            norm_first=True,
        )  # fmt: skip
        self.layers = nn.TransformerDecoder(layer, depth, nn.LayerNorm(hidden_size))

    def forward(self, states: States) -> torch.Tensor:
        """`(batch, hidden)`."""
        hidden = self.norm(states.hidden)
        queries = self.queries.expand(len(hidden), -1, -1)
        return self.layers(queries, hidden, memory_key_padding_mask=states.mask == 0).mean(dim=1)


class SelfInitHead(nn.Module):
    """A copy of the reasoner's own last layers and final norm: at first, its last hidden state."""

    def __init__(self, decoder: nn.Module, layer: int) -> None:
        super().__init__()
        blocks: Any = decoder.layers
        norm: Any = decoder.norm
        self.layers = nn.ModuleList(copy.deepcopy(block) for block in blocks[layer:])
        self.norm = copy.deepcopy(norm)

    def forward(self, states: States) -> torch.Tensor:
        """`(batch, hidden)`."""
        hidden = states.hidden
        for layer, call in zip(self.layers, states.calls, strict=True):
            output = layer(hidden, **call)
            hidden = output[0] if isinstance(output, tuple) else output
        return self.norm(States(hidden, states.mask).last())


def _heads(hidden_size: int) -> int:
    """Attention heads of 64 dimensions, or as near to that as the width allows."""
    return next(count for count in range(max(1, hidden_size // 64), 0, -1) if hidden_size % count == 0)
