"""The last block computes what is pooled, and nothing about the result changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

from tests.tiny_families import FAMILIES


@pytest.fixture(scope="module")
def loaded(embedder):
    def load(family: str, **choices: str):
        folder = embedder(family, **choices)
        return AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)

    return load


def mixture(processor):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    text = ["a red circle", None, "a much longer text about a blue star"]
    return processor(text=text, images=[None, Image.fromarray(pixels), None], return_tensors="pt")


@pytest.mark.parametrize("share_prefix", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_are_the_same(family, side, share_prefix, loaded, monkeypatch):
    model, processor = loaded(family)
    processor.tokenizer.padding_side = side
    batch = mixture(processor)
    last = model.backbone.get_decoder().layers[-1]
    read = {}
    linear = torch.nn.Linear.forward
    monkeypatch.setattr(
        torch.nn.Linear, "forward", lambda layer, x: read.update({layer: tuple(x.shape[:-1])}) or linear(layer, x)
    )
    with torch.no_grad():
        whole = model(**batch, share_prefix=share_prefix)
        assert len(read[last.self_attn.q_proj]) == 2
        pooled = model(**batch, share_prefix=share_prefix, whole_states=False)
    assert torch.allclose(pooled.embeddings, whole.embeddings, rtol=0, atol=2e-6)
    assert pooled.last_hidden_state is None and pooled.pooler_output is pooled.embeddings
    attention, mlp = last.self_attn, last.mlp
    assert {read[part] for part in (attention.q_proj, attention.o_proj, mlp.gate_proj, mlp.down_proj)} == {(3,)}
    assert len(read[attention.k_proj]) == len(read[attention.v_proj]) == 2


@pytest.mark.parametrize("choices", [{"pooling": "mean"}, {"readout": "pre_mlp"}], ids=str)
def test_other_readouts_are_the_same(choices, loaded):
    model, processor = loaded("qwen2_vl", **choices)
    batch = mixture(processor)
    with torch.no_grad():
        whole, pooled = (model(**batch, whole_states=whole) for whole in (True, False))
    assert torch.allclose(pooled.embeddings, whole.embeddings, rtol=0, atol=1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_the_same(checkpointing, loaded):
    model, processor = loaded("qwen2_vl")
    model.train()
    if checkpointing:
        model.activation_checkpointing_enable()
    batch = mixture(processor)

    def gradient(**options):
        model.zero_grad()
        first, second, _ = model(**batch, **options).embeddings
        (first @ second).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    expected = gradient()
    assert expected.norm() > 0
    assert torch.allclose(gradient(whole_states=False), expected, rtol=1e-4, atol=1e-6 * expected.abs().max().item())
