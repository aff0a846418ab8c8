"""Quick image processors give the numbers of transformers' own, bit for bit."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    EfficientNetImageProcessorPil,
    Gemma3ImageProcessorPil,
    GotOcr2ImageProcessorPil,
    Idefics3ImageProcessorPil,
    LlavaNextImageProcessorPil,
    LlavaOnevisionImageProcessorPil,
    PixtralImageProcessorPil,
    Qwen2VLImageProcessorPil,
    SmolVLMImageProcessorPil,
)

from hf_mmembed.model.pixels_mmembed import QuickPixels, QuickQwenPixels, quicken

SETTINGS = {"patch_size": 4, "merge_size": 2, "size": {"shortest_edge": 16 * 16, "longest_edge": 48 * 48}}
QWEN = Qwen2VLImageProcessorPil(**SETTINGS)
OTHERS = [
    Gemma3ImageProcessorPil(size={"height": 24, "width": 24}),
    GotOcr2ImageProcessorPil(size={"height": 24, "width": 24}, max_patches=4),
    Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32}),
    LlavaNextImageProcessorPil(
        size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}, image_grid_pinpoints=[[24, 48], [48, 24]]
    ),
    LlavaOnevisionImageProcessorPil(size={"height": 24, "width": 24}, image_grid_pinpoints=[[24, 48], [48, 24]]),
    PixtralImageProcessorPil(size={"longest_edge": 64}, patch_size={"height": 8, "width": 8}),
    SmolVLMImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32}),
]


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def quick(stock):
    processor = copy.deepcopy(stock)
    quicken(processor)
    assert isinstance(processor, QuickPixels)
    return processor


def assert_equal(pictures, stock=QWEN, **options):
    slow, fast = (each(pictures, return_tensors="np", **options) for each in (stock, quick(stock)))
    assert fast.keys() == slow.keys()
    for name, expected in slow.items():
        assert np.array_equal(fast[name], expected), name
        assert getattr(fast[name], "dtype", None) == getattr(expected, "dtype", None), name


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


@pytest.mark.parametrize("stock", OTHERS, ids=lambda stock: type(stock).__name__)
def test_every_family(stock):
    nested = isinstance(stock, (Idefics3ImageProcessorPil, SmolVLMImageProcessorPil))
    for picture in (noise(70, 30), noise(20, 45)):
        assert_equal([[picture]] if nested else [picture], stock)
        assert_equal(
            [[picture]] if nested else [picture], stock, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7]
        )


def test_a_mean_of_another_number_of_channels_is_the_library_s_error():
    with pytest.raises(ValueError, match="mean must have 3 elements"):
        quick(QWEN)([noise(16, 16)], image_mean=[0.5, 0.5])


def test_a_processor_with_arithmetic_of_its_own_stays_as_it_is():
    processor = EfficientNetImageProcessorPil()
    quicken(processor)
    assert type(processor) is EfficientNetImageProcessorPil


def test_a_quick_processor_is_copied_and_sent_to_other_processes():
    processor = quick(OTHERS[0])
    for twin in (copy.deepcopy(processor), pickle.loads(pickle.dumps(processor))):  # noqa: S301
        assert type(twin) is type(processor)
        assert twin.to_dict() == OTHERS[0].to_dict()


def test_a_checkpoint_names_the_library_s_class(embedder, tmp_path):
    processor = AutoProcessor.from_pretrained(embedder("qwen2_vl"))
    assert isinstance(processor.image_processor, QuickQwenPixels)
    processor.image_processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    assert type(loaded) is Qwen2VLImageProcessorPil
    assert loaded.to_dict() == processor.image_processor.to_dict()
