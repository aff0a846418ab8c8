"""The system prompt, which every row of a batch begins with, computed once per batch instead of once per row.

In: a batch `(batch, seq_len)` whose rows begin with the same tokens. Out: the same last hidden states as without
sharing, up to rounding. In a causal language model the states of a prefix do not depend on what follows, so its keys
and values are computed for one row and handed to all. The hierarchical prompt makes this worth while: its system
prompt is longer than most queries. This file travels with the checkpoint.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from .pooled_mmembed import only_pooled

__all__ = ["PrefixMemory", "shared_prefix_length", "states_with_shared_prefix"]

# Families whose text tokens attend strictly to what lies before them. Gemma 3 and PaliGemma look both ways in images.
CAUSAL_FAMILIES = frozenset(
    {
        "idefics3",
        "internvl",
        "llava",
        "llava_next",
        "llava_onevision",
        "qwen2_5_vl",
        "qwen2_vl",
        "qwen3_5",
        "qwen3_5_moe",
        "qwen3_vl",
        "qwen3_vl_moe",
        "smolvlm",
    }
)
# Positions of these are three-dimensional and follow from the whole row.
MULTIMODAL_ROPE = frozenset({"qwen2_5_vl", "qwen2_vl", "qwen3_5", "qwen3_5_moe", "qwen3_vl", "qwen3_vl_moe"})
# The attention implementations in which queries that are fewer than the keys were tested.
ATTENTION = frozenset({"eager", "sdpa"})
# Arguments that name parts of a row, and those that are about images and stay whole.
ROW_ARGUMENTS = frozenset({"mm_token_type_ids", "token_type_ids"})
IMAGE_ARGUMENTS = frozenset(
    {
        "pixel_values",
        "pixel_attention_mask",
        "image_sizes",
        "image_grid_thw",
        "batch_num_images",
        "return_dict",
        "use_cache",
    }
)
# The additional pass over the prefix costs the launch of every kernel once more, which only a GPU feels.
LEAST_SAVED_TOKENS = {"cpu": 1}
LEAST_SAVED_TOKENS_ELSEWHERE = 2048
LEAST_SAVED_SHARE = 0.05
# A remembered prefix is used, shortened if need be, when it covers this much of what the rows have in common.
LEAST_REMEMBERED_SHARE = 0.75


@dataclass
class PrefixMemory:
    """The prefix of the batches so far, for a series of batches through the same unchanged weights.

    Whoever runs the series makes one and hands it to every forward pass. It must not outlive a change of the weights.

    Args:
        known (`tuple`, *optional*): Its tokens `(prefix,)`, its last hidden states `(1, prefix, hidden)` and its keys and
            values, for one row; none before the first batch.
    """

    known: tuple[torch.Tensor, torch.Tensor, DynamicCache] | None = None

    def prefix(self, backbone: PreTrainedModel, ids: torch.Tensor) -> tuple[torch.Tensor, DynamicCache]:
        """States and keys and values of `ids`, or of their beginning where that is remembered and the rest is short.

        What is remembered is shortened to what fits, but not where linear attention keeps no state but the last.

        Args:
            backbone (`PreTrainedModel`): The inner model.
            ids (`torch.Tensor` of shape `(prefix,)`): What the rows of a batch have in common.

        Returns:
            `tuple[torch.Tensor, DynamicCache]`: States `(1, remembered, hidden)`, and a cache of the caller's own.
        """
        length = 0
        if self.known is not None:
            length = min(len(self.known[0]), len(ids))
            length = int((self.known[0][:length] == ids[:length]).cumprod(dim=0).sum())
            if length < len(self.known[0]) and _is_recurrent(backbone):
                length = 0
        if self.known is None or length < LEAST_REMEMBERED_SHARE * len(ids):
            length = len(ids)
            self.known = ids.clone(), *read_prefix(backbone, ids)
        _, states, cache = self.known
        own = DynamicCache(config=backbone.config.get_text_config(decoder=True))
        for index, layer in enumerate(cache.layers):
            if isinstance(layer, LinearAttentionCacheLayerMixin):
                own.layers[index] = copy.deepcopy(layer)
            elif layer.is_initialized:  # the config may count blocks that were cut off
                own.update(layer.keys[..., :length, :], layer.values[..., :length, :], index)
        return states[:, :length], own


def read_prefix(backbone: PreTrainedModel, ids: torch.Tensor) -> tuple[torch.Tensor, DynamicCache]:
    """The backbone's states `(1, prefix, hidden)` of the tokens `(prefix,)`, and their keys and values."""
    cache = DynamicCache(config=backbone.config.get_text_config(decoder=True))
    output = backbone.get_decoder()(input_ids=ids[None], past_key_values=cache, use_cache=True)
    return output.last_hidden_state, cache


def shared_prefix_length(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, image_token_id: int | None = None
) -> tuple[int, torch.Tensor]:
    """How many tokens all rows begin with, and where each row begins.

    At least one token of every row is left over, and images are never part of the prefix.

    Args:
        input_ids (`torch.Tensor` of shape `(batch, seq_len)`): Padded on either side.
        attention_mask (`torch.Tensor` of shape `(batch, seq_len)`): 1 for real tokens, 0 for padding.
        image_token_id (`int`, *optional*): The prefix ends before the first such token.

    Returns:
        `tuple[int, torch.Tensor]`: The length, and the first real column of each row, `(batch,)`.

    Example:

        >>> ids = torch.tensor([[0, 7, 8, 3], [7, 8, 4, 5]])
        >>> shared_prefix_length(ids, (ids > 0).long())
        (2, tensor([1, 0]))
    """
    starts = attention_mask.int().argmax(dim=1)  # of booleans there is no argmax
    shortest = int(attention_mask.sum(dim=1).min())
    columns = starts[:, None] + torch.arange(max(shortest - 1, 0), device=input_ids.device)  # a row may be all padding
    heads = input_ids.gather(1, columns)
    same = (heads == heads[0]).all(dim=0)
    if image_token_id is not None:
        same &= heads[0] != image_token_id
    return int(same.cumprod(dim=0).sum()), starts


def states_with_shared_prefix(
    backbone: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    memory: PrefixMemory | None = None,
    whole: bool = True,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The backbone's last hidden states, with the common prefix of the rows computed once.

    Args:
        backbone (`PreTrainedModel`): The inner model.
        input_ids (`torch.Tensor` of shape `(batch, seq_len)`): Padded on one side.
        attention_mask (`torch.Tensor` of shape `(batch, seq_len)`, *optional*): 1 for real tokens, 0 for padding.
        memory ([`PrefixMemory`], *optional*): Shared by a series of batches, whose prefix is then computed once for all.
        whole (`bool`, defaults to `True`): Return the states of whole rows. Otherwise those of what follows the prefix,
            of which only that of each row's last real token is right.
        **kwargs: What else the backbone takes.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: The states `(batch, seq_len, hidden)`, zero where there is padding, and
        their mask `(batch, seq_len)`, where `seq_len` lacks the prefix unless `whole`; or None where sharing is not
        possible (gradient checkpointing, a family that is not causal, its first block cut off, unknown arguments, linear
        attention with gradients or with padding on the left) or saves too little.
    """
    kwargs = {name: value for name, value in kwargs.items() if value is not None}
    if attention_mask is None or not _possible(backbone, input_ids, attention_mask, kwargs):
        return None
    batch, length = input_ids.shape
    config = backbone.config
    image_token = getattr(config, "image_token_id", None)
    prefix, starts = shared_prefix_length(input_ids, attention_mask, image_token)
    saved = (batch - 1) * prefix
    least = LEAST_SAVED_TOKENS.get(input_ids.device.type, LEAST_SAVED_TOKENS_ELSEWHERE)
    if saved < max(least, LEAST_SAVED_SHARE * batch * length):
        return None
    padded_left, padded_right = bool(starts.any()), not bool(attention_mask[:, -1].all())
    # Linear attention would read the padding between the prefix and the rest of a row.
    if padded_left and (padded_right or _is_recurrent(backbone)):
        return None
    prefix_ids = input_ids[0, int(starts[0]) :][:prefix]
    if torch.is_grad_enabled():  # the keys and values are part of this graph, and nobody else's
        prefix_states, cache = read_prefix(backbone, prefix_ids)
    else:
        prefix_states, cache = (memory or PrefixMemory()).prefix(backbone, prefix_ids)
    if not cache.get_seq_length():  # transformers asks the first block's, which may have been cut off
        return None
    cache.reorder_cache(torch.zeros(batch, dtype=torch.long, device=input_ids.device))  # the only row, for each
    prefix = prefix_states.shape[1]
    # What follows the prefix begins `prefix` columns further right, in rows with padding on the left too.
    rest_mask = attention_mask[:, prefix:] if padded_right else attention_mask[:, : length - prefix]
    if config.model_type in MULTIMODAL_ROPE and "image_grid_thw" in kwargs:
        positions = _grid_positions(
            backbone, input_ids, attention_mask, kwargs["mm_token_type_ids"], kwargs["image_grid_thw"]
        )[..., prefix:]
    else:
        positions = prefix + rest_mask.cumsum(dim=1) - 1
    kwargs = {name: value[:, prefix:] if name in ROW_ARGUMENTS else value for name, value in kwargs.items()}
    kwargs["use_cache"] = True
    with nullcontext() if whole else only_pooled(rest_mask):
        rest_states = backbone(
            input_ids=input_ids[:, prefix:],
            attention_mask=torch.cat([attention_mask.new_ones(batch, prefix), rest_mask], dim=1),
            position_ids=positions,
            past_key_values=cache,
            **kwargs,
        ).last_hidden_state
    if not whole:
        return rest_states, rest_mask

    states = rest_states.new_zeros(batch, length, rest_states.shape[-1])
    # The last block may be on another device than the mask.
    states[:, prefix:] = rest_states * rest_mask.unsqueeze(-1).to(rest_states)
    columns = starts.to(states.device)[:, None] + torch.arange(prefix, device=states.device)
    states[torch.arange(batch, device=states.device)[:, None], columns] = prefix_states
    return states, attention_mask


def _grid_positions(
    backbone: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, types: torch.Tensor, grids: torch.Tensor
) -> torch.Tensor:
    """The backbone's own three-dimensional positions `(3, batch, seq_len)`, asked for once per layout of a row.

    Transformers goes through rows and images one by one, and pictures of one size come in numbers.
    """
    real, mask, shapes = ((types * attention_mask).cpu().numpy(), attention_mask.cpu().numpy(), grids.cpu().numpy())
    images = (np.diff(real, axis=1, prepend=0) > 0).sum(axis=1)
    own_shapes = np.split(shapes, images.cumsum()[:-1])
    places: dict[tuple[bytes, ...], int] = {}
    layouts = [tuple(part.tobytes() for part in parts) for parts in zip(real, mask, own_shapes, strict=True)]
    rows = [places.setdefault(layout, len(places)) for layout in layouts]
    firsts = [rows.index(place) for place in range(len(places))]
    positions, _ = backbone.get_rope_index(
        input_ids[firsts],
        mm_token_type_ids=types[firsts],
        image_grid_thw=grids.new_tensor(np.concatenate([own_shapes[row] for row in firsts])),
        attention_mask=attention_mask[firsts],
    )
    return positions[:, rows]


def _possible(
    backbone: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor, kwargs: dict[str, Any]
) -> bool:
    config, text_config = backbone.config, backbone.config.get_text_config(decoder=True)
    window = getattr(text_config, "sliding_window", None)
    positions_need_types = config.model_type in MULTIMODAL_ROPE and "image_grid_thw" in kwargs
    return (
        not (torch.is_grad_enabled() and (backbone.is_activation_checkpointing or _is_recurrent(backbone)))
        and attention_mask.dim() == 2
        and input_ids.shape[0] > 1
        and config.model_type in CAUSAL_FAMILIES
        and text_config._attn_implementation in ATTENTION
        and (window is None or input_ids.shape[1] <= window)
        and kwargs.keys() <= ROW_ARGUMENTS | IMAGE_ARGUMENTS
        and all(kwargs[name].shape == input_ids.shape for name in ROW_ARGUMENTS & kwargs.keys())
        and not (positions_need_types and "mm_token_type_ids" not in kwargs)
    )


def _is_recurrent(backbone: PreTrainedModel) -> bool:
    """Whether some blocks have linear attention, whose one state per row every token that is read changes in place."""
    return "linear_attention" in (getattr(backbone.config.get_text_config(decoder=True), "layer_types", None) or ())
