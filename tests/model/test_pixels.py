"""The quick image processor of the Qwen families gives the numbers of transformers' own, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, Qwen2VLImageProcessorPil

from hf_mmembed.model.pixels_mmembed import TabledQwenImages

SETTINGS = {"patch_size": 4, "merge_size": 2, "size": {"shortest_edge": 16 * 16, "longest_edge": 48 * 48}}
STOCK, TABLED = Qwen2VLImageProcessorPil(**SETTINGS), TabledQwenImages(**SETTINGS)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def assert_equal(pictures, **options):
    stock, tabled = (each(pictures, return_tensors="np", **options) for each in (STOCK, TABLED))
    assert tabled.keys() == stock.keys()
    for name, expected in stock.items():
        assert tabled[name].dtype == expected.dtype and np.array_equal(tabled[name], expected), name


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=3), st.integers(0, 99))
def test_pictures_of_any_size(sizes, seed):
    assert_equal([noise(width, height, seed) for width, height in sizes])


@pytest.mark.parametrize(
    "options",
    [
        {"do_resize": False},
        {"do_normalize": False},
        {"do_rescale": False},
        {"do_rescale": False, "do_normalize": False},
        {"rescale_factor": 1 / 127, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]},
        {"resample": Image.Resampling.NEAREST},
        {"size": {"shortest_edge": 8 * 8, "longest_edge": 16 * 16}},
    ],
    ids=lambda options: "-".join(options),
)
def test_every_option_means_the_same(options):
    assert_equal([noise(32, 16), noise(32, 16, seed=1)], **options)


def test_what_is_no_rgb_picture_goes_the_usual_way():
    grey = noise(30, 20).convert("L")
    floats = np.random.default_rng(0).random((3, 24, 16), dtype=np.float32)
    assert_equal([grey, noise(30, 20), np.asarray(noise(20, 20)), noise(24, 24).convert("RGBA")])
    assert_equal([floats], do_rescale=False)


def test_a_checkpoint_names_the_library_s_class(embedder, tmp_path):
    processor = AutoProcessor.from_pretrained(embedder("qwen2_vl"))
    assert type(processor.image_processor) is TabledQwenImages
    processor.image_processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    assert type(loaded) is Qwen2VLImageProcessorPil
    assert loaded.to_dict() == processor.image_processor.to_dict()
