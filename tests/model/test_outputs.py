"""The states and the attention of all blocks, and tuples, come as transformers' models return them."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

from tests.tiny_families import FAMILIES


@pytest.fixture(scope="module")
def inputs(embedder):
    """`inputs(family)`: rows of different lengths that begin alike and are many enough for sharing what they begin with."""
    picture = Image.new("RGB", (32, 20), "red")
    texts = ["a dog", "b", "a cat and a dog on a sofa", None] * 8
    images = [picture, None, None, picture] * 8
    return lambda family: AutoProcessor.from_pretrained(embedder(family))(
        text=texts, images=images, task="query", return_tensors="pt"
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_states_and_attention_are_those_of_the_generative_model(generative, embedder, inputs, family):
    batch = inputs(family)
    parent = AutoModelForImageTextToText.from_pretrained(generative(family), attn_implementation="eager").eval()
    model = AutoModel.from_pretrained(embedder(family), attn_implementation="eager")
    asked = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        theirs, ours, plain = parent.model(**batch, **asked), model(**batch, **asked), model(**batch)
    assert len(ours.hidden_states) == len(theirs.hidden_states) > 1
    assert len(ours.attentions) == len(theirs.attentions) > 0
    layers = zip(ours.hidden_states + ours.attentions, theirs.hidden_states + theirs.attentions, strict=True)
    for states, expected in layers:
        assert states.shape == expected.shape
        assert torch.allclose(states, expected, atol=1e-5 * expected.abs().max().item())
    assert (ours.embeddings - plain.embeddings).abs().max() <= 2e-6
    assert plain.hidden_states is None and plain.attentions is None


def test_lean_forward_returns_them_too(embedder, inputs):
    batch = inputs("qwen2_vl")
    model = AutoModel.from_pretrained(embedder("qwen2_vl"))
    with torch.no_grad():
        whole = model(**batch, output_hidden_states=True)
        lean = model(**batch, output_hidden_states=True, share_prefix=True, whole_states=False)
    assert lean.last_hidden_state is None
    assert all(torch.equal(one, other) for one, other in zip(whole.hidden_states, lean.hidden_states, strict=True))


def test_the_config_can_ask_for_them_for_good(embedder, inputs):
    batch = inputs("qwen2_vl")
    model = AutoModel.from_pretrained(embedder("qwen2_vl"), output_hidden_states=True)
    with torch.no_grad():
        assert model(**batch).hidden_states is not None
        assert model(**batch, output_hidden_states=False).hidden_states is None


def test_a_tuple_holds_what_there_is(embedder, inputs):
    batch = inputs("qwen2_vl")
    model = AutoModel.from_pretrained(embedder("qwen2_vl"))
    with torch.no_grad():
        embeddings, pooled, states = model(**batch, return_dict=False)
        expected = model(**batch)
    assert pooled is embeddings and torch.equal(embeddings, expected.embeddings)
    assert torch.equal(states, expected.last_hidden_state)
