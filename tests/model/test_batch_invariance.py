"""An input's vector does not depend on its batch: not on order, company, batch size or padding side."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoModel, AutoProcessor

from tests.tiny_families import FAMILIES, NEWER

TOLERANCE = 2e-5


def picture(height, width, seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


PICTURES = [picture(40, 60, 0), picture(64, 32, 1), picture(20, 20, 2), picture(8, 90, 3)]
INPUTS = [
    ("a red circle", None),
    ("", None),
    ("a long story about " + "a wall and " * 12, None),
    ("ünïcödé 漢字 🙂", None),
    (None, PICTURES[0]),
    (None, PICTURES[3]),
    ("what is left of the wall?", PICTURES[1]),
    (None, PICTURES[:3]),
    ("two of them", [PICTURES[2], PICTURES[2]]),
    (None, picture(1, 1, 4)),
    (None, picture(200, 1, 5)),
]


@pytest.fixture(scope="module")
def alone(embedder):
    """`alone(family)`: its model, its processor, and the vectors of `INPUTS` embedded one at a time."""
    known = {}

    def one_at_a_time(family):
        if family not in known:
            path = embedder(family)
            model, processor = AutoModel.from_pretrained(path), AutoProcessor.from_pretrained(path)
            vectors = torch.cat([embed(model, processor, [i]) for i in range(len(INPUTS))])
            known[family] = model, processor, vectors
        return known[family]

    return one_at_a_time


def embed(model, processor, indices):
    texts, images = zip(*(INPUTS[i] for i in indices), strict=True)
    batch = processor(text=list(texts), images=list(images), task="query", return_tensors="pt")
    with torch.no_grad():
        return model(**batch).embeddings


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    indices=st.lists(st.integers(0, len(INPUTS) - 1), min_size=2, max_size=7),
    side=st.sampled_from(["left", "right"]),
)
def test_vectors_do_not_depend_on_the_batch(alone, family, indices, side):
    model, processor, vectors = alone(family)
    processor.tokenizer.padding_side = side
    together = embed(model, processor, indices)
    assert (together - vectors[indices]).abs().max() <= TOLERANCE


@pytest.mark.parametrize("family", [*FAMILIES, *NEWER])
def test_the_whole_mixture_in_one_batch_both_ways(alone, family):
    model, processor, vectors = alone(family)
    assert torch.isfinite(vectors).all()
    assert torch.allclose(vectors.norm(dim=1), torch.ones(len(INPUTS)), atol=1e-6)
    # Different inputs have different vectors, or equality would show nothing.
    distances = torch.cdist(vectors, vectors) + torch.eye(len(INPUTS))
    assert distances.min() > 1e-3
    for side in ("left", "right"):
        processor.tokenizer.padding_side = side
        for order in (list(range(len(INPUTS))), list(reversed(range(len(INPUTS))))):
            together = embed(model, processor, order)
            assert (together - vectors[order]).abs().max() <= TOLERANCE


@pytest.mark.parametrize("choices", [{"pooling": "mean"}, {"readout": "pre_mlp"}, {"embedding_dim": 8}], ids=str)
def test_so_it_is_for_every_way_to_read_out(embedder, choices):
    path = embedder("qwen2_vl", **choices)
    model, processor = AutoModel.from_pretrained(path), AutoProcessor.from_pretrained(path)
    vectors = torch.cat([embed(model, processor, [i]) for i in range(len(INPUTS))])
    for side in ("left", "right"):
        processor.tokenizer.padding_side = side
        together = embed(model, processor, list(range(len(INPUTS))))
        assert (together - vectors).abs().max() <= TOLERANCE


@pytest.mark.parametrize("family", [*FAMILIES, *NEWER])
def test_splitting_a_batch_by_its_number_of_images_loses_nothing(alone, family):
    """sentence-transformers says how many images each row has, also for parts that have none (gradient caching)."""
    model, processor, vectors = alone(family)
    indices = [0, 4, 6, 8]
    counts = torch.tensor([0, 1, 1, 2])
    texts, images = zip(*(INPUTS[i] for i in indices), strict=True)
    batch = processor(text=list(texts), images=list(images), task="query", return_tensors="pt")
    with torch.no_grad():
        together = model(**batch, num_images_per_sample=counts).embeddings
        head = {key: value[:1] for key, value in batch.items() if key in ("input_ids", "attention_mask")}
        head |= {key: value[:1] for key, value in batch.items() if key in ("mm_token_type_ids", "token_type_ids")}
        empty = {key: batch[key][:0] for key in batch.keys() - head.keys()}
        part = model(**head, **empty, num_images_per_sample=counts[:1]).embeddings
    assert (together - vectors[indices]).abs().max() <= TOLERANCE
    assert (part - vectors[:1]).abs().max() <= TOLERANCE
    with pytest.raises(ValueError, match=r"hold image tokens, but num_images_per_sample is \[0, 0, 0, 0\]"):
        model(batch["input_ids"], batch["attention_mask"], num_images_per_sample=torch.zeros(4, dtype=torch.long))
