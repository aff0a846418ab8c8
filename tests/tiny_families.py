"""Tiny random checkpoints of real multimodal families, built without any download.

Each has its family's own config and processor classes, a byte-level tokenizer with the family's special tokens, and a
chat template that writes what the family's own writes for a system and a user message.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast

from hf_mmembed.model.family_mmembed import image_only_processor

__all__ = ["FAMILIES", "NEWER", "Family", "build"]

_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% for c in m.content %}{% if c.type == 'image' %}IMAGE{% else %}{{ c.text }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_QWEN = _CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
# Qwen2-VL and Qwen2.5-VL write a system prompt of their own where none is given.
_QWEN2 = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    + _QWEN
)
_IDEFICS = (
    "<|im_start|>{% for m in messages %}{{ m.role | capitalize }}{{ ':' if m.content[0].type == 'image' else ': ' }}"
    "{% for c in m.content %}{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}{% endfor %}"
    "{{ '<end_of_utterance>\n' }}{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
_GEMMA = (
    "{{ bos_token }}{% set first = '' %}{% if messages[0].role == 'system' %}"
    "{% set first = messages[0].content[0].text + '\n\n' %}{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + m.role + '\n' + (first if loop.first else '') }}"
    "{% for c in m.content %}{% if c.type == 'image' %}<start_of_image>{% else %}{{ c.text | trim }}{% endif %}"
    "{% endfor %}{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
_LLAVA = (
    "{% for m in messages %}{% if m.role != 'system' %}{{ m.role | upper + ': ' }}{% endif %}"
    "{% for c in m.content if c.type == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for c in m.content if c.type == 'text' %}{{ c.text + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
_LLAVA_NEXT = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ '<<SYS>>\n' + m.content[0].text + '\n<</SYS>>\n\n' }}"
    "{% else %}{{ '[INST] ' }}{% for c in m.content if c.type == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for c in m.content if c.type == 'text' %}{{ c.text }}{% endfor %}{{ ' [/INST]' }}{% endif %}{% endfor %}"
)
_ONEVISION = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + ' ' }}"
    "{% for c in m.content if c.type == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for c in m.content if c.type == 'text' %}{{ '\n' + c.text }}{% endfor %}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_GEMMA4 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|turn>' + m.role + '\n' }}"
    "{% for c in m.content %}{% if c.type == 'image' %}<|image|>{% else %}{{ c.text | trim }}{% endif %}{% endfor %}"
    "{{ '<turn|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|turn>model\n' }}{% endif %}"
)

_TEXT: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 4096,
}  # fmt: skip
_MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
_HYBRID = {
    "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "head_dim": 16,
    "rope_parameters": {**_MROPE["rope_parameters"], "partial_rotary_factor": 0.5},
}  # fmt: skip
_SIGLIP = {
    "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "image_size": 32, "patch_size": 8,
}  # fmt: skip
_CLIP = {**_SIGLIP, "model_type": "clip_vision_model", "projection_dim": 32}
_QWEN_TOKENS = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
_QWEN_IDS = {
    "image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>",
}  # fmt: skip
_IDEFICS_TOKENS = ["<|im_start|>", "<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"]
_IDEFICS_TOKENS += [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]


@dataclass(frozen=True)
class Family:
    """What distinguishes a tiny checkpoint of one family.

    `config` builds the config from the ids of the tokens; `image_processor` names the class and its arguments.
    """

    config_class: str
    processor_class: str
    template: str
    special_tokens: list[str]
    token_fields: dict[str, str]
    text: dict[str, Any]
    vision: dict[str, Any]
    image_processor: tuple[str, dict[str, Any]]
    config: dict[str, Any] = field(default_factory=dict)
    named_tokens: dict[str, str] = field(default_factory=dict)
    processor: dict[str, Any] = field(default_factory=dict)
    bos: str | None = None


_QWEN_PIXELS = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
_QWEN_SIZE = {"size": {"shortest_edge": 16 * 16, "longest_edge": 48 * 48}}

FAMILIES: dict[str, Family] = {
    "qwen2_vl": Family(
        "Qwen2VLConfig", "Qwen2VLProcessor", _QWEN2, _QWEN_TOKENS, _QWEN_IDS,
        text={**_TEXT, **_MROPE},
        vision={"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2, "patch_size": 4},
        image_processor=("Qwen2VLImageProcessorPil", {**_QWEN_PIXELS, **_QWEN_SIZE}),
    ),
    "qwen2_5_vl": Family(
        "Qwen2_5_VLConfig", "Qwen2_5_VLProcessor", _QWEN2, _QWEN_TOKENS, _QWEN_IDS,
        text={**_TEXT, **_MROPE},
        vision={"depth": 2, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32, "num_heads": 4,
                "patch_size": 4, "window_size": 16, "fullatt_block_indexes": [1]},
        image_processor=("Qwen2VLImageProcessorPil", {**_QWEN_PIXELS, **_QWEN_SIZE}),
    ),
    "qwen3_vl": Family(
        "Qwen3VLConfig", "Qwen3VLProcessor", _QWEN, _QWEN_TOKENS, _QWEN_IDS,
        text={**_TEXT, **_MROPE, "head_dim": 8},
        vision={"depth": 2, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32, "num_heads": 4,
                "patch_size": 4, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
        image_processor=("Qwen2VLImageProcessorPil", {**_QWEN_PIXELS, **_QWEN_SIZE}),
    ),
    "qwen3_vl_moe": Family(
        "Qwen3VLMoeConfig", "Qwen3VLProcessor", _QWEN, _QWEN_TOKENS, _QWEN_IDS,
        text={**_TEXT, **_MROPE, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
        vision={"depth": 2, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32, "num_heads": 4,
                "patch_size": 4, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
        image_processor=("Qwen2VLImageProcessorPil", {**_QWEN_PIXELS, **_QWEN_SIZE}),
    ),
    "idefics3": Family(
        "Idefics3Config", "Idefics3Processor", _IDEFICS, _IDEFICS_TOKENS, {"image_token_id": "<image>"},
        text={**_TEXT, "model_type": "llama"},
        vision={**_SIGLIP, "model_type": "idefics3_vision"},
        image_processor=("Idefics3ImageProcessorPil",
                         {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}),
        config={"scale_factor": 2}, processor={"image_seq_len": 4},
    ),
    "smolvlm": Family(
        "SmolVLMConfig", "Idefics3Processor", _IDEFICS, _IDEFICS_TOKENS, {"image_token_id": "<image>"},
        text={**_TEXT, "model_type": "llama"},
        vision={**_SIGLIP, "model_type": "smolvlm_vision"},
        image_processor=("SmolVLMImageProcessorPil",
                         {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}),
        config={"scale_factor": 2}, processor={"image_seq_len": 4},
    ),
    "llava_onevision": Family(
        "LlavaOnevisionConfig", "LlavaOnevisionProcessor", _ONEVISION,
        ["<|im_start|>", "<|im_end|>", "<image>", "<video>"],
        {"image_token_id": "<image>", "video_token_id": "<video>"},
        text={**_TEXT, "model_type": "qwen2"}, vision=_SIGLIP,
        image_processor=("LlavaOnevisionImageProcessorPil",
                         {"size": {"height": 32, "width": 32}, "image_grid_pinpoints": [[32, 64], [64, 32], [64, 64]]}),
        config={"image_grid_pinpoints": [[32, 64], [64, 32], [64, 64]], "vision_feature_layer": -1,
                "vision_feature_select_strategy": "full"},
        processor={"num_image_tokens": 16, "vision_feature_select_strategy": "full"},
    ),
    "gemma3": Family(
        "Gemma3Config", "Gemma3Processor", _GEMMA,
        ["<bos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"],
        {"image_token_id": "<image_soft_token>", "boi_token_id": "<start_of_image>",
         "eoi_token_id": "<end_of_image>"},
        text={**_TEXT, "head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8,
              "layer_types": ["sliding_attention", "full_attention"]},
        vision={**_SIGLIP, "vision_use_head": False},
        image_processor=("Gemma3ImageProcessorPil", {"size": {"height": 32, "width": 32}}),
        config={"mm_tokens_per_image": 4}, processor={"image_seq_length": 4}, bos="<bos>",
        named_tokens={"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>",
                      "image_token": "<image_soft_token>"},
    ),
    "llava": Family(
        "LlavaConfig", "LlavaProcessor", _LLAVA, ["<s>", "<image>"], {"image_token_id": "<image>"},
        text={**_TEXT, "model_type": "llama"}, vision=_CLIP, bos="<s>",
        image_processor=("CLIPImageProcessorPil", {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}),
        config={"vision_feature_layer": -2, "vision_feature_select_strategy": "default"},
        processor={"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    ),
    "llava_next": Family(
        "LlavaNextConfig", "LlavaNextProcessor", _LLAVA_NEXT, ["<s>", "<image>"], {"image_token_id": "<image>"},
        text={**_TEXT, "model_type": "mistral", "sliding_window": None}, vision=_CLIP, bos="<s>",
        image_processor=("LlavaNextImageProcessorPil",
                         {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32},
                          "image_grid_pinpoints": [[32, 64], [64, 32], [64, 64]]}),
        config={"image_grid_pinpoints": [[32, 64], [64, 32], [64, 64]], "vision_feature_layer": -2,
                "vision_feature_select_strategy": "default"},
        processor={"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    ),
    "internvl": Family(
        "InternVLConfig", "InternVLProcessor", _CHATML.replace("IMAGE", "<IMG_CONTEXT>\n"),
        ["<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"], {"image_token_id": "<IMG_CONTEXT>"},
        text={**_TEXT, "model_type": "qwen2"},
        vision={"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                "image_size": [32, 32], "patch_size": [8, 8]},
        image_processor=("GotOcr2ImageProcessorPil", {"size": {"height": 32, "width": 32}, "max_patches": 4}),
        config={"image_seq_length": 4}, processor={"image_seq_length": 4},
        named_tokens={"start_image_token": "<img>", "end_image_token": "</img>",
                      "context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"},
    ),
}  # fmt: skip

_QWEN3_5: dict[str, Any] = {
    "template": _QWEN, "special_tokens": _QWEN_TOKENS, "token_fields": _QWEN_IDS,
    "vision": {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32, "num_heads": 4,
               "patch_size": 4, "num_position_embeddings": 64},
    "image_processor": ("Qwen2VLImageProcessorPil", {**_QWEN_PIXELS, **_QWEN_SIZE}),
}  # fmt: skip
# What only those tests ask that could show wrong vectors: the suite would become slow.
NEWER: dict[str, Family] = {
    "qwen3_5": Family("Qwen3_5Config", "Qwen3VLProcessor", text={**_TEXT, **_HYBRID}, **_QWEN3_5),
    "qwen3_5_moe": Family(
        "Qwen3_5MoeConfig", "Qwen3VLProcessor",
        text={**_TEXT, **_HYBRID, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
              "shared_expert_intermediate_size": 16},
        **_QWEN3_5,
    ),
    "gemma4": Family(
        "Gemma4Config", "Gemma4Processor", _GEMMA4,
        ["<bos>", "<|turn>", "<turn|>", "<|image|>", "<|image>", "<image|>", "<|audio|>", "<|audio>", "<audio|>", "<|video|>"],
        {"image_token_id": "<|image|>", "boi_token_id": "<|image>", "eoi_token_id": "<image|>", "video_token_id": "<|video|>",
         "audio_token_id": "<|audio|>", "boa_token_id": "<|audio>", "eoa_token_index": "<audio|>"},
        text={**_TEXT, "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2,
              "sliding_window": 16, "head_dim": 8, "global_head_dim": 16, "use_bidirectional_attention": "vision",
              "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 300},
        vision={"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                "num_key_value_heads": 4, "head_dim": 8, "patch_size": 4, "position_embedding_size": 256},
        image_processor=("Gemma4ImageProcessorPil", {"patch_size": 4, "max_soft_tokens": 70}),
        config={"audio_config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
                                 "subsampling_conv_channels": [8, 4], "output_proj_dims": 32}},
        bos="<bos>",
        named_tokens={"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>",
                      "audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>"},
    ),
}  # fmt: skip


def _tokenizer(family: Family) -> PreTrainedTokenizerFast:
    """Bytes, a few merges of English letter pairs, and the family's special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("i", "n"), ("e", "r"), ("Ġ", "t"), ("r", "e"), ("o", "n"), ("Ġ", "a")]
    words = ["<|endoftext|>", *alphabet, *(left + right for left, right in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        bos_token=family.bos,
        model_max_length=2048,
        extra_special_tokens=family.named_tokens or {f"special_{i}": t for i, t in enumerate(family.special_tokens)},
    )


def build(name: str, directory: Path, seed: int = 0) -> Path:
    """Write a random generative checkpoint of family `name`, under a million parameters, to `directory`."""
    family = {**FAMILIES, **NEWER}[name]
    tokenizer = _tokenizer(family)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": family.special_tokens}, replace_extra_special_tokens=False
    )
    ids = {key: tokenizer.convert_tokens_to_ids(token) for key, token in family.token_fields.items()}
    text = {**family.text, "vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 0}
    config = getattr(transformers, family.config_class)(
        text_config=text, vision_config=dict(family.vision), **family.config, **ids
    )
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config)
    # Initial weights are so small, and Gemma's image projection so zero, that every input would get the same vector.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.12)
    class_name, arguments = family.image_processor
    image_processor = getattr(transformers, class_name)(**arguments)
    processor: Callable[..., Any] = image_only_processor(family.processor_class)
    model.save_pretrained(directory)
    processor(
        image_processor=image_processor, tokenizer=tokenizer, chat_template=family.template, **family.processor
    ).save_pretrained(directory)
    return directory
