"""An untrained tiny model and its tokenizer, built once."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen2VLForConditionalGeneration

from hf_mmembed.tiny.architecture import build_model, build_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(conversations=1000)


@pytest.fixture(scope="session")
def model(tokenizer: PreTrainedTokenizerFast) -> Qwen2VLForConditionalGeneration:
    torch.manual_seed(0)
    return build_model(tokenizer).eval()
