"""The forward pass of a Qwen2-VL for training on a CPU: the library's own weights and modules, called faster.

Exact (to rounding) for what this project trains on: pictures of one fixed size, rows of packed conversations. Three
things are done differently from the stock forward, which on a CPU spends most of its time elsewhere than in matrix
products: attention is two plain batched products (the fused kernel's backward is slow on CPUs), all pictures of a
batch attend in one product instead of a loop, and the patch embedding is a linear layer instead of a 3-D convolution.
Tests hold it against the stock forward. It runs wherever the weights lie.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.models.qwen2_vl.modeling_qwen2_vl import rotate_half

from hf_mmembed.model.product_mmembed import product
from hf_mmembed.tiny.architecture import IMAGE_PIXELS, MERGE, PATCH_PIXELS
from hf_mmembed.tiny.batches import TextBatch

__all__ = ["hidden_states", "merge_patches", "to_patches", "vision_features", "vision_tokens"]

PATCHES = (IMAGE_PIXELS // PATCH_PIXELS) ** 2
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


def to_patches(pixels: Tensor) -> Tensor:
    """(images, 64, 64, 3) uint8 to (images * 64, 384): flattened patches in the order Qwen2-VL merges them."""
    side, p, m = IMAGE_PIXELS // PATCH_PIXELS // MERGE, PATCH_PIXELS, MERGE
    mean, std = torch.tensor((_MEAN, _STD), device=pixels.device)
    scaled = (pixels.float() / 255 - mean) / std
    cells = scaled.reshape(-1, side, m, p, side, m, p, 3)
    patches = cells.permute(0, 1, 4, 2, 5, 7, 3, 6)  # image, row, column, row and column in cell, channel, y, x
    twice = patches.unsqueeze(6).expand(*patches.shape[:6], 2, p, p)  # a still picture is two equal frames
    return twice.reshape(-1, 3 * 2 * p * p)


def vision_features(visual: Any, patches: Tensor) -> Tensor:
    """(images * 64, 384) patches to (images * 64, 192) features of the vision tower before its merger."""
    weight = visual.patch_embed.proj.weight
    states = product(patches, weight.view(weight.shape[0], -1))
    cos, sin = _vision_rope(visual.blocks[0].attn.head_dim, patches.device)
    for block in visual.blocks:
        states = _vision_block(block, states, cos, sin)
    return states


def merge_patches(visual: Any, features: Tensor) -> Tensor:
    """(images * 64, 192) features to (images * 16, 256) visual tokens."""
    return visual.merger(features)


def vision_tokens(visual: Any, patches: Tensor) -> Tensor:
    """(images * 64, 384) patches to (images * 16, 256) visual tokens."""
    return merge_patches(visual, vision_features(visual, patches))


def hidden_states(model: Any, batch: TextBatch, visual_tokens: Tensor) -> Tensor:
    """Final-norm states (rows, 128, hidden) of packed rows; their pictures are the first of `visual_tokens` (m, hidden)."""
    language = model.model.language_model
    ids, positions, conversation, slots = (
        torch.from_numpy(array).to(visual_tokens.device)
        for array in (batch.ids, batch.positions, batch.conversation, batch.image_slots.reshape(-1))
    )
    embeddings = language.embed_tokens(ids)
    flat = embeddings.view(-1, embeddings.shape[-1])
    states = flat.index_copy(0, slots, visual_tokens[: len(slots)]).view_as(embeddings)
    same = conversation.unsqueeze(2) == conversation.unsqueeze(1)
    causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril()
    mask = torch.zeros(same.shape, device=ids.device).masked_fill(~(same & causal), float("-inf")).unsqueeze(1)
    cos, sin = _language_rope(model, positions)
    for layer in language.layers:
        states = _decoder_layer(layer, states, cos, sin, mask)
    return language.norm(states)


def _vision_block(block: Any, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    attention = block.attn
    heads, width = attention.num_heads, attention.head_dim
    qkv = attention.qkv(block.norm1(states)).view(-1, PATCHES, 3, heads, width)
    query, key, value = (part.transpose(1, 2) for part in qkv.unbind(2))
    query, key = query * cos + rotate_half(query) * sin, key * cos + rotate_half(key) * sin
    weights = (query @ key.transpose(2, 3) * width**-0.5).softmax(-1)
    mixed = (weights @ value).transpose(1, 2).reshape(states.shape)
    states = states + attention.proj(mixed)
    return states + block.mlp(block.norm2(states))


def _decoder_layer(layer: Any, states: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
    attention = layer.self_attn
    rows, length, _ = states.shape
    width = attention.head_dim
    normed = layer.input_layernorm(states)
    query, key, value = (
        project(normed).view(rows, length, -1, width).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    query, key = query * cos + rotate_half(query) * sin, key * cos + rotate_half(key) * sin
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    weights = (query @ key.transpose(2, 3) * width**-0.5 + mask).softmax(-1)
    states = states + attention.o_proj((weights @ value).transpose(1, 2).reshape(rows, length, -1))
    return states + layer.mlp(layer.post_attention_layernorm(states))


def _language_rope(model: Any, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos, sin (rows, 1, 128, head_dim): each section of the channels turns by its own of the three positions."""
    config = model.config.text_config
    width = config.hidden_size // config.num_attention_heads
    theta = config.rope_parameters["rope_theta"]
    section = torch.repeat_interleave(torch.arange(3), torch.tensor(config.rope_parameters["mrope_section"]))
    frequency = (theta ** -(torch.arange(0, width, 2).float() / width)).to(positions.device)
    angles = positions.float()[section.to(positions.device)].permute(1, 2, 0) * frequency
    angles = torch.cat([angles, angles], -1).unsqueeze(1)
    return angles.cos(), angles.sin()


def _vision_rope(width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos, sin (64, head_dim) of one picture: half of the channels turn by row, half by column, in merge order."""
    side = IMAGE_PIXELS // PATCH_PIXELS
    places = torch.arange(side * side).view(side // MERGE, MERGE, side // MERGE, MERGE).transpose(1, 2).reshape(-1)
    frequency = 10_000.0 ** -(torch.arange(0, width // 2, 2).float() / (width // 2))
    angles = torch.cat([(places // side)[:, None] * frequency, (places % side)[:, None] * frequency], -1)
    angles = torch.cat([angles, angles], -1)
    return angles.cos().to(device), angles.sin().to(device)
