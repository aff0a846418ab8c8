"""The family's processor without videos and sounds: what it leaves out, and how it tells tokens apart."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from transformers import Idefics3Processor
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
