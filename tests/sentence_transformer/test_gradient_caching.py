"""sentence-transformers' cached losses cut a batch into pieces, and every picture stays with its text."""

from __future__ import annotations

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)

from tests.sentence_transformer.reference import noise


# Tiles in one stack, tiles by image, tiles by row, and patches.
@pytest.mark.parametrize("family", ["internvl", "llava_onevision", "idefics3", "qwen2_vl"])
def test_gradients_of_pieces_are_those_of_the_whole(embedder, family):
    model = SentenceTransformer(str(embedder(family)), device="cpu")
    columns = [
        ["a", {"text": "b", "image": noise(1, 64, 30)}, noise(2, 30, 90)],
        [{"image": [noise(3, 32, 32), noise(4, 70, 32)]}, "c", {"text": "d d", "image": noise(5)}],
    ]

    def loss_and_gradient(loss):
        model.zero_grad()
        value = loss([model.preprocess(column) for column in columns], torch.empty(0))
        value.backward()
        return value.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    whole, gradient = loss_and_gradient(MultipleNegativesRankingLoss(model))
    assert gradient.abs().max() > 0
    for size in (1, 2):
        pieces, of_pieces = loss_and_gradient(CachedMultipleNegativesRankingLoss(model, mini_batch_size=size))
        assert pieces == pytest.approx(whole, abs=1e-5)
        assert torch.allclose(of_pieces, gradient, rtol=0, atol=2e-5 * gradient.abs().max().item())
