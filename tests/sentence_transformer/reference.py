"""What a vector should be, from the processor and the model alone."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from hf_mmembed import MMEmbedder

__all__ = ["assert_same", "directly", "noise"]

TOLERANCE = 1e-5


def noise(seed: int, width: int = 40, height: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@torch.no_grad()
def directly(model: MMEmbedder, *, task=None, instruction=None, text=None, images=None) -> np.ndarray:
    """The vector by processor and model alone, without sentence-transformers and without the embedder."""
    batch = model.processor(text=[text], images=[images], task=task, instruction=instruction, return_tensors="pt")
    return model.transformers_model(**batch).embeddings[0].numpy()


def assert_same(left, right, tolerance=TOLERANCE):
    np.testing.assert_allclose(np.asarray(left), np.asarray(right), rtol=0, atol=tolerance)
