"""The family's processor without videos and sounds: what it leaves out, and how it counts tokens and tells them apart."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import Idefics3Processor, Qwen2VLProcessor
from transformers.processing_utils import ProcessorMixin

from hf_mmembed import MMEmbedProcessor
from hf_mmembed.model.family_mmembed import for_threads, image_only_processor, types_of_tokens


def test_a_class_that_transformers_lacks_is_named():
    with pytest.raises(ValueError, match="no processor class 'WarpProcessor'"):
        image_only_processor("WarpProcessor")


def test_types_of_tokens_are_the_library_s(embedder):
    family = MMEmbedProcessor.from_pretrained(embedder("qwen2_vl")).backbone_processor
    assert type(family).create_mm_token_type_ids is types_of_tokens
    image, video = family.image_token_ids[0], family.video_token_ids[0]
    rows = [[9, image, image, 9], [9], [video, 9, image]]
    expected = [[0, 1, 1, 0], [0], [2, 0, 1]]
    assert family.create_mm_token_type_ids(rows) == expected == ProcessorMixin.create_mm_token_type_ids(family, rows)


@pytest.mark.parametrize("kind", ["pt", "np", None])
@pytest.mark.parametrize("texts", [["a", "b c d"], ["a", "b"], "a b", ["", ""]])
def test_tensors_of_tokens_are_the_library_s(embedder, texts, kind):
    family = MMEmbedProcessor.from_pretrained(embedder("qwen2_vl")).backbone_processor
    options = {"padding": True, "return_tensors": kind}
    ours, expected = (of(texts, **options) for of in (for_threads(family).tokenizer, family.tokenizer))
    assert list(ours) == list(expected) and type(ours["input_ids"]) is type(expected["input_ids"])
    for name, rows in expected.items():
        assert np.array_equal(ours[name], rows) and getattr(ours[name], "dtype", None) == getattr(rows, "dtype", None)


def test_rows_that_make_no_tensor_get_the_library_s_advice(embedder):
    family = MMEmbedProcessor.from_pretrained(embedder("qwen2_vl")).backbone_processor
    with pytest.raises(ValueError, match="padding"):
        for_threads(family).tokenizer(["a", "b c d"], return_tensors="pt")


@pytest.mark.parametrize("kind", [torch.tensor, np.array, list])
def test_a_picture_has_as_many_placeholders_as_in_the_library(embedder, kind):
    family = MMEmbedProcessor.from_pretrained(embedder("qwen2_vl")).backbone_processor
    grids = kind([[1, 4, 6], [1, 2, 8]])
    if kind is list:
        grids = list(map(torch.tensor, grids))
    inputs = {"image_grid_thw": grids, "pixel_values": None}
    for number in range(2):
        expected = Qwen2VLProcessor.replace_image_token(family, inputs, number)
        assert family.replace_image_token(inputs, number) == expected == family.image_token * (6, 4)[number]
    assert inputs["image_grid_thw"] is grids


def test_a_family_with_types_of_its_own_keeps_them():
    family = image_only_processor("Idefics3Processor")
    assert family.create_mm_token_type_ids is Idefics3Processor.create_mm_token_type_ids


def test_parts_for_videos_and_sounds_are_left_out_wherever_they_stand(embedder):
    own = MMEmbedProcessor.from_pretrained(embedder("llava"))
    parts = {"image_processor": own.image_processor, "tokenizer": own.tokenizer}
    # The sounds stand between the others, and are handed on by place rather than by name.
    family = image_only_processor("Phi4MultimodalProcessor")
    assert family.get_attributes() == ["image_processor", "tokenizer"]
    own.tokenizer.image_token, own.tokenizer.image_token_id = "<image>", 1
    own.tokenizer.audio_token, own.tokenizer.audio_token_id = "<audio>", 2
    processor = family(**parts)
    assert (processor.image_processor, processor.tokenizer) == tuple(parts.values())
    # MiniCPM-V asks its part for videos how it was set.
    assert processor.audio_processor.sampling_rate is None


def test_a_tokenizer_is_called_by_one_thread_at_a_time():
    meeting = threading.Barrier(2, timeout=0.2)

    def meet(texts: list[str], **options: bool) -> bool:
        try:
            return meeting.wait() is not None
        except threading.BrokenBarrierError:
            return False

    family = SimpleNamespace(tokenizer=meet)
    with ThreadPoolExecutor(2) as pool:
        met = pool.map(lambda _: for_threads(family).tokenizer(["a"], padding=True), range(2))
        assert list(met) == [False, False]
    assert family.tokenizer is meet
