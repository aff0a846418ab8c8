"""A checkpoint converted with `longest_edge` reads pictures that small wherever it is opened."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import AutoProcessor

from hf_mmembed import MMEmbedder, convert

PHOTO = Image.new("RGB", (320, 240), "red")


def tokens(processor) -> int:
    return processor(text=[None], images=[PHOTO], return_tensors="pt")["input_ids"].shape[1]


def test_it_is_stored_and_wins_over_the_pixels_of_the_base(generative, tmp_path):
    base = shutil.copytree(generative("qwen2_vl"), tmp_path / "base")
    stored = json.loads((base / "processor_config.json").read_text())
    (base / "processor_config.json").unlink()
    pixels = {"min_pixels": 256, "max_pixels": 12845056}
    # As checkpoints of Qwen2-VL on the Hub have it.
    (base / "preprocessor_config.json").write_text(json.dumps({**stored["image_processor"], **pixels}))
    whole, small = convert(base, tmp_path / "whole"), convert(base, tmp_path / "small", longest_edge=32 * 32)
    processor = AutoProcessor.from_pretrained(small)
    assert dict(processor.image_processor.size) == {"shortest_edge": 256, "longest_edge": 32 * 32}
    assert tokens(AutoProcessor.from_pretrained(whole)) - tokens(processor) == 40 * 30 - 4 * 3
    for model in (MMEmbedder(str(small), device="cpu"), SentenceTransformer(str(small), device="cpu")):
        assert model.preprocess([{"image": PHOTO}])["input_ids"].shape[1] == tokens(processor)


def test_other_families_are_given_the_longer_side(embedder):
    whole, small = embedder("smolvlm"), embedder("smolvlm", longest_edge=32)
    assert tokens(AutoProcessor.from_pretrained(small)) < tokens(AutoProcessor.from_pretrained(whole))


@pytest.mark.parametrize(
    ("family", "longest_edge", "message"),
    [
        ("qwen2_vl", 255, r"'shortest_edge': 256.*longest_edge=255 does not fit that; give at least 256"),
        ("idefics3", 0, r"longest_edge=0 does not fit that; give at least 1"),
        ("llava", 64, r"scales pictures to \{'shortest_edge': 32\}; longest_edge=64 does not fit that; leave it out"),
        ("gemma3", 64, r"'height': 32.*longest_edge=64 does not fit that; leave it out"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(generative, tmp_path, family, longest_edge, message):
    with pytest.raises(ValueError, match=message):
        convert(generative(family), tmp_path / "out", longest_edge=longest_edge)
    assert not (tmp_path / "out").exists()
