"""Batches: any order, repetition and size gives the same rows, and identical inputs are embedded once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import Qwen2VLProcessor

from hf_mmembed.inputs import as_messages
from hf_mmembed.preparation import Conversation, estimate_tokens, prepare
from tests.sentence_transformer.reference import assert_same, noise


@pytest.fixture(scope="module")
def pool():
    return [
        "a red circle",
        "a much longer text " * 12,
        "",
        noise(1),
        noise(2, 90, 20),
        {"text": "turned", "image": noise(1)},
        {"image": [noise(1), noise(2, 90, 20)]},
        {"text": "a red circle", "instruction": "Find."},
    ]


@pytest.fixture(scope="module")
def one_by_one(model, pool):
    return np.stack([model.encode_query(item) for item in pool])


@settings(max_examples=25, deadline=None)
@given(
    picks=st.lists(st.integers(0, 7), min_size=1, max_size=16),
    batch_size=st.integers(1, 10),
    token_budget=st.sampled_from([1, 100, 300, 1000, 16384]),
)
def test_any_order_repetition_and_batching_gives_the_same_rows(
    model, pool, one_by_one, picks, batch_size, token_budget
):
    rows = model.encode_query([pool[i] for i in picks], batch_size=batch_size, token_budget=token_budget)
    assert_same(rows, one_by_one[picks], 2e-5)


def test_identical_inputs_are_embedded_once(model, pool, monkeypatch):
    seen = []
    preprocess = model[0].preprocess
    monkeypatch.setattr(model[0], "preprocess", lambda batch, **kw: seen.extend(batch) or preprocess(batch, **kw))
    copies = [item.copy() if isinstance(item, (dict, Image.Image)) else item for item in pool]
    rows = model.encode(pool + copies[::-1])
    assert len(seen) == len(pool)
    assert_same(rows[: len(pool)], rows[len(pool) :][::-1], 0)


@torch.inference_mode()
def test_repeated_rows_do_not_share_memory(model):
    first, second = model.encode(["a", "a"], convert_to_numpy=False)
    first.zero_()
    assert second.norm() > 0.9


def test_batches_respect_the_bounds(model, monkeypatch):
    shapes = []
    forward = model.transformers_model.forward
    monkeypatch.setattr(
        model.transformers_model, "forward", lambda **kw: shapes.append(kw["input_ids"].shape) or forward(**kw)
    )
    monkeypatch.setattr(model[0], "model_forward_params", None)
    texts = [f"{number} " + "red circle " * (number % 7) for number in range(40)]
    model.encode(texts, batch_size=7)
    assert max(rows for rows, _ in shapes) <= 7
    shapes.clear()
    model.encode(texts, token_budget=1)
    assert {rows for rows, _ in shapes} == {1}


def test_a_batch_that_does_not_fit_is_embedded_in_halves(model, pool, one_by_one, monkeypatch):
    sizes, forward = [], model.transformers_model.forward
    monkeypatch.setattr(model, "_budgets", {})

    def small(**features):
        sizes.append(len(features["input_ids"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Simulated.")
        return forward(**features)

    monkeypatch.setattr(model[0], "model_forward_params", None)
    monkeypatch.setattr(model.transformers_model, "forward", small)
    assert_same(model.encode_query(pool), one_by_one, 2e-5)
    assert max(sizes) > 2 and sum(size for size in sizes if size <= 2) == len(pool)
    sizes.clear()
    model.encode_query(pool)  # what was learned stays
    assert max(sizes) <= 2


def refuse(self, **options):
    """As LLaVA's over SigLIP, whose pictures are not cropped."""
    return {"crop_size": None}["crop_size"]["height"]


@pytest.mark.parametrize("how", [None, refuse])
def test_families_that_do_not_say_how_many_tokens_a_picture_takes(model, pool, one_by_one, monkeypatch, how):
    """As those of Idefics2, LFM2-VL and some ten more."""
    if how is None:
        monkeypatch.delattr(Qwen2VLProcessor, "_get_num_multimodal_tokens")
    else:
        monkeypatch.setattr(Qwen2VLProcessor, "_get_num_multimodal_tokens", how)
    assert_same(model.encode_query(pool, batch_size=3), one_by_one, 2e-5)
    estimates = estimate_tokens(model, [Conversation(i, as_messages(pool[i])) for i in (3, 4, 6)], {})
    assert estimates[2] - estimates[1] == 2  # 40 x 32 pixels


def test_containers(model):
    texts = ["a", "b", "a"]
    expected = model.encode(texts)
    for container in (
        tuple(texts),
        np.array(texts),
        np.array(texts, dtype=object),
        Dataset.from_dict({"t": texts})["t"],
    ):
        assert_same(model.encode(container), expected, 0)


def test_the_caller_s_objects_stay_as_they_are(model, picture_file):
    with Image.open(picture_file) as opened:
        row = {"text": "a", "image": [opened], "instruction": None}
        chat = [{"role": "user", "content": [{"type": "image", "image": opened}]}]
        model.encode([row, chat], instruction="Find.")
        assert row == {"text": "a", "image": [opened], "instruction": None}
        assert chat == [{"role": "user", "content": [{"type": "image", "image": opened}]}]


def test_preparing_leaves_the_pictures_of_the_caller_as_they_are(model, picture_file):
    conversation = Conversation(0, as_messages({"image": picture_file}))
    assert "pixel_values" in prepare(model, [conversation], {}, [0])
    assert conversation.messages == as_messages({"image": picture_file})
