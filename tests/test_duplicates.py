from __future__ import annotations

import io
import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hf_mmembed.duplicates import unique_inputs
from hf_mmembed.inputs import as_messages


def noise(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def groups(items: list) -> list[int]:
    firsts, places = unique_inputs([as_messages(item) for item in items])
    return [firsts[place] for place in places]


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@given(
    st.lists(
        st.tuples(
            st.sampled_from([None, "", "a", "a ", "b"]),
            st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["RGB", "L"])), max_size=2),
            st.sampled_from([None, "Find.", "find."]),
        ).filter(lambda row: row[0] is not None or row[1]),
        max_size=15,
    )
)
def test_agrees_with_comparing_every_pair(rows):
    inputs = [
        {"text": text, "image": [noise(seed).convert(mode) for seed, mode in images], "instruction": instruction}
        for text, images, instruction in rows
    ]
    content = [
        (text, [(mode, noise(seed).convert(mode).tobytes()) for seed, mode in images], instruction)
        for text, images, instruction in rows
    ]
    assert groups(inputs) == [content.index(row) for row in content]


def test_one_pixel_is_a_difference():
    # The sketch looks at 64 pixels; this one is not among them.
    large, changed = noise(0, (200, 200)), noise(0, (200, 200))
    changed.putpixel((1, 1), (0, 0, 0) if large.getpixel((1, 1)) != (0, 0, 0) else (1, 1, 1))
    assert large.resize((8, 8), Image.Resampling.NEAREST) == changed.resize((8, 8), Image.Resampling.NEAREST)
    assert groups([large, changed, noise(0, (200, 200))]) == [0, 1, 0]


def test_what_is_not_in_the_pixels_counts_too():
    palette = noise(0).quantize(8)
    recoloured = palette.copy()
    recoloured.putpalette(list(reversed(palette.getpalette())))
    transparent = palette.copy()
    transparent.info["transparency"] = 0
    turned = noise(1)
    turned.getexif()[0x0112] = 6
    assert groups([palette, recoloured, transparent, noise(1), turned, palette.copy()]) == [0, 1, 2, 3, 4, 0]


def test_files_are_compared_by_their_bytes(tmp_path):
    for name, seed in (("a.png", 0), ("copy.png", 0), ("b.png", 1)):
        (tmp_path / name).write_bytes(encoded(noise(seed)))
    paths = [{"image": str(tmp_path / name)} for name in ("a.png", "copy.png", "b.png", "a.png")]
    assert groups(paths) == [0, 0, 2, 0]
    assert groups([{"image": encoded(noise(0))}, {"image": encoded(noise(1))}, {"image": encoded(noise(0))}]) == [
        0,
        1,
        0,
    ]


def test_pictures_that_are_not_decoded_yet_stay_so():
    opened = [Image.open(io.BytesIO(encoded(noise(seed)))) for seed in (0, 1, 0)]
    assert groups(opened) == [0, 1, 0]
    assert all(image.tile for image in opened)
    assert opened[0].convert("RGB").tobytes() == noise(0).tobytes()


def test_frames_and_palettes_of_pictures_that_are_not_decoded_yet_count():
    animation = encoded(noise(0), "GIF", save_all=True, append_images=[noise(1)])
    frames = [Image.open(io.BytesIO(animation)) for _ in range(3)]
    frames[1].seek(1)
    assert groups(frames) == [0, 1, 0]
    palette = noise(0).quantize(8)
    recoloured = palette.copy()
    recoloured.putpalette(list(reversed(palette.getpalette())))
    opened = [Image.open(io.BytesIO(encoded(image))) for image in (palette, recoloured, palette)]
    assert groups(opened) == [0, 1, 0] and all(image.tile for image in opened)


def test_same_length_and_end_of_file_are_not_enough(tmp_path):
    data = encoded(noise(0))
    (tmp_path / "a.png").write_bytes(data)
    (tmp_path / "b.png").write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
    assert groups([{"image": str(tmp_path / "a.png")}, {"image": str(tmp_path / "b.png")}]) == [0, 1]


def test_arrays_differ_by_type_shape_and_values():
    pixels = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)
    other = pixels.copy()
    other[10, 11, 1] ^= 1
    items = [
        pixels,
        pixels.reshape(30, 20, 3),
        pixels / 255,
        other,
        torch.from_numpy(pixels),
        pixels.copy(),
        pixels[:, ::-1],
    ]
    assert groups(items) == [0, 1, 2, 3, 4, 0, 6]
    assert groups([torch.rand(3, 4, 4).bfloat16()] * 2) == [0, 0]


def test_what_cannot_be_read_is_left_to_the_opener(tmp_path):
    closed = Image.open(io.BytesIO(encoded(noise(0))))
    closed.fp.close()
    missing = {"image": str(tmp_path / "missing.png")}
    assert groups([missing, closed, missing, closed, Image.new("RGB", (0, 0))]) == [0, 1, 0, 1, 4]


@pytest.mark.parametrize("text", ["red", ["red"]])
def test_text_by_its_characters(text):
    content = text if isinstance(text, str) else [{"type": "text", "text": text[0]}]
    chat = [{"role": "user", "content": content}]
    firsts, places = unique_inputs(
        [chat, [{"role": "user", "content": "Red"}], chat, [{"role": "system", "content": "red"}]]
    )
    assert (firsts, places) == ([0, 1, 3], [0, 1, 0, 2])


def test_nobody_waits_for_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")  # nobody writes to it
    assert groups([{"image": str(tmp_path / "pipe.png")}] * 2) == [0, 0]
