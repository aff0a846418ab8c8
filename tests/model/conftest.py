"""Processors of the tiny checkpoints, opened once."""

from __future__ import annotations

import pytest

from hf_mmembed.model import MMEmbedProcessor


@pytest.fixture(scope="session")
def processors(embedder):
    loaded = {}

    def processor(family="qwen2_vl", prompt="saha"):
        if (family, prompt) not in loaded:
            loaded[family, prompt] = MMEmbedProcessor.from_pretrained(embedder(family, prompt=prompt))
        return loaded[family, prompt]

    return processor


@pytest.fixture
def processor(processors):
    return processors()
