"""Every option of `encode` means what it means in sentence-transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sentence_transformers.util.quantization import quantize_embeddings

from hf_mmembed import MMEmbedder
from tests.sentence_transformer.reference import assert_same, noise

INPUTS = ["a red circle", "a blue square and more words", noise(1), "a red circle"]


def test_types_of_result(model):
    rows = model.encode(INPUTS)
    assert rows.dtype == np.float32 and rows.shape == (4, model.get_embedding_dimension())
    assert_same(np.linalg.norm(rows, axis=1), np.ones(4))
    tensor = model.encode(INPUTS, convert_to_tensor=True)
    listed = model.encode(INPUTS, convert_to_numpy=False)
    assert isinstance(tensor, torch.Tensor) and isinstance(listed, list)
    assert_same(tensor, rows, 0)
    assert_same(torch.stack(listed), rows, 0)
    assert model.encode(INPUTS[0]).shape == rows[0].shape
    assert model.encode(sentences=INPUTS[:1]).shape == (1, rows.shape[1])


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_precision(model, precision):
    rows = model.encode(INPUTS, precision=precision)
    assert np.array_equal(rows, quantize_embeddings(model.encode(INPUTS), precision))


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_precision_of_inputs_that_are_all_the_same(model, precision, count):
    rows = model.encode(INPUTS[:1] * count, precision=precision)
    assert np.array_equal(rows, quantize_embeddings(model.encode(INPUTS[:1] * count), precision))
    with pytest.raises(ValueError, match="single embedding"):
        model.encode(INPUTS[:1], precision=precision)


def test_truncated_embeddings_have_unit_norm(model, embedder):
    cut = model.encode(INPUTS)[:, :8]
    expected = cut / np.linalg.norm(cut, axis=1, keepdims=True)
    assert_same(model.encode(INPUTS, truncate_dim=8), expected)
    with model.truncate_embeddings(8):
        assert_same(model.encode(INPUTS), expected)
    small = MMEmbedder(str(embedder("qwen2_vl")), truncate_dim=8, device="cpu")
    assert_same(small.encode(INPUTS), expected)
    assert small.get_embedding_dimension() == 8


@torch.no_grad()
def test_token_embeddings_are_the_last_hidden_states_of_real_tokens(model):
    rows = model.encode(INPUTS, output_value="token_embeddings")
    for item, states in zip(INPUTS, rows, strict=True):
        content = {"text": [item]} if isinstance(item, str) else {"images": [item]}
        batch = model.processor(**content, return_tensors="pt")
        assert_same(states, model.transformers_model(**batch).last_hidden_state[0])
    assert_same(model.encode(INPUTS[1], output_value="token_embeddings"), rows[1])


@pytest.mark.parametrize("dims", [0, -1])
def test_there_is_no_truncating_to_nothing(model, dims):
    with pytest.raises(ValueError, match=f"truncate_dim is {dims}; it is how many dimensions to keep"):
        model.encode(INPUTS, truncate_dim=dims)


def test_output_value_none_gives_all_features_of_each_input(model):
    features = model.encode(INPUTS, output_value=None)
    assert_same(torch.stack([row["sentence_embedding"] for row in features]), model.encode(INPUTS))
    assert all(row["input_ids"].ndim == 1 for row in features)


def test_processing_kwargs_reach_the_processor(model):
    large = {"image": {"size": {"shortest_edge": 16, "longest_edge": 96 * 96}}}
    picture = noise(4, 96, 96)
    states = [
        model.encode([picture, "a"], output_value="token_embeddings", processing_kwargs=kwargs)[0]
        for kwargs in (None, large)
    ]
    assert len(states[1]) > len(states[0])


def test_progress_bar(model, capfd):
    model.encode(["a", "b"], show_progress_bar=True)
    assert "2/2" in capfd.readouterr().err
    model.encode(["a", "b"], show_progress_bar=False)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"batch_size": 0}, "positive"),
        ({"token_budget": 0}, "positive"),
        ({"precision": "int4"}, "int4"),
        ({"tsk": "query"}, "tsk"),
        ({"output_value": "token_embedding"}, "output_value is 'token_embedding'; use"),
        ({"instruction": ["x", "y"]}, "the instruction is a list; give one string for all inputs, or each its own"),
        ({"prompt": 3}, "the instruction is a int"),
    ],
)
def test_wrong_options(model, option, message):
    with pytest.raises(ValueError, match=message):
        model.encode(["a", "b"], **option)


def test_nothing_gives_no_rows_of_the_right_width(model):
    dim = model.get_embedding_dimension()
    assert model.encode([]).shape == (0, dim) and model.encode([]).dtype == np.float32
    assert model.encode_query([], truncate_dim=8).shape == (0, 8)
    assert model.encode([], precision="binary").shape == (0, dim // 8)
    assert model.encode([], precision="uint8").dtype == np.uint8
    assert model.encode([], convert_to_tensor=True).shape == (0, dim)
    assert model.encode([], convert_to_numpy=False) == []
    assert model.encode([], output_value="token_embeddings") == []


def test_similarity_is_cosine(model):
    assert model.similarity_fn_name == "cosine"
    rows = model.encode(["a", "b"])
    assert_same(model.similarity(rows, rows), rows @ rows.T)


def test_preprocess_takes_strings_for_text(model, picture_file):
    features = model.preprocess([picture_file, "a"], prompt="Find.", task="query")
    assert "pixel_values" not in features
    expected = model.processor(
        text=[picture_file, "a"], instruction="Find.", task="query", padding=True, return_tensors="pt"
    )
    assert torch.equal(features["input_ids"], expected["input_ids"])


def test_no_part_of_the_model_is_in_training_mode_afterwards(model):
    expected = model.encode("a")
    model[0].train()
    assert_same(model.encode("a"), expected, 0)
    assert not any(module.training for module in model.modules())
