"""The models that the speed commands measure, written as generative checkpoints.

In: nothing. Out: a directory with a Qwen2-VL generative checkpoint. Weights are random where they are not the shipped
ones: speed does not depend on their values.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from hf_mmembed.tiny.architecture import build_tokenizer

__all__ = ["write_random_qwen2_vl"]

# As many head parameters per body parameter as in Qwen2-VL-2B (0.18), so that the cost of the logits is in proportion.
VOCABULARY = 14_336


def write_random_qwen2_vl(out: Path, seed: int) -> Path:
    """Write a Qwen2-VL of about 60 million random parameters, with 28 x 28 pixels per visual token as in the original.

    Args:
        out: Directory to write.
        seed: Seed of the weights.
    """
    tokenizer = build_tokenizer(conversations=2_000, seed=seed)
    index = tokenizer.convert_tokens_to_ids
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": 512,
            "intermediate_size": 1408,
            "num_hidden_layers": 14,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [8, 12, 12]},
            "bos_token_id": index("<|endoftext|>"),
            "eos_token_id": index("<|im_end|>"),
            "pad_token_id": index("<|endoftext|>"),
        },
        vision_config={"depth": 8, "embed_dim": 320, "hidden_size": 512, "num_heads": 5, "patch_size": 14},
        image_token_id=index("<|image_pad|>"),
        video_token_id=index("<|video_pad|>"),
        vision_start_token_id=index("<|vision_start|>"),
        vision_end_token_id=index("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    Qwen2VLForConditionalGeneration(config).save_pretrained(out)
    tokenizer.model_max_length = 4096
    tokenizer.save_pretrained(out)
    Qwen2VLImageProcessorPil(size={"shortest_edge": 4 * 28 * 28, "longest_edge": 256 * 28 * 28}).save_pretrained(out)
    return out
