from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hf_mmembed.inputs import as_messages, height_and_width, pictures, texts, with_trace
from hf_mmembed.model.images_mmembed import ImageError

PICTURE = Image.new("RGB", (30, 20), "red")


def user(*parts):
    return {
        "role": "user",
        "content": [
            {"type": "text" if isinstance(p, str) else "image", ("text" if isinstance(p, str) else "image"): p}
            for p in parts
        ],
    }


@pytest.mark.parametrize(
    "item, parts",
    [
        ("a red circle", ["a red circle"]),
        ("", [""]),
        (np.str_("numpy's own string"), ["numpy's own string"]),
        (PICTURE, [PICTURE]),
        ({"text": "a"}, ["a"]),
        ({"image": PICTURE}, [PICTURE]),
        ({"text": "a", "image": PICTURE}, [PICTURE, "a"]),
        ({"text": None, "image": (PICTURE, PICTURE)}, [PICTURE, PICTURE]),
        ({"text": "a", "image": None, "instruction": None}, ["a"]),
        ({"text": "a", "image": []}, ["a"]),
    ],
)
def test_an_input_becomes_one_user_turn_with_pictures_first(item, parts):
    assert as_messages(item) == [user(*parts)]


def test_arrays_and_tensors_are_pictures():
    for array in (np.zeros((20, 30, 3)), np.zeros((20, 30)), torch.zeros(3, 20, 30)):
        assert [array is picture for picture in pictures(as_messages(array))] == [True]


def test_paths_go_into_the_image_field():
    messages = as_messages({"image": [Path("a.png"), "b.png"]})
    assert list(pictures(messages)) == ["a.png", "b.png"]


def test_undecoded_pictures_of_datasets():
    stored, linked = {"bytes": b"png", "path": "a.png"}, {"bytes": None, "path": "b.png"}
    assert list(pictures(as_messages(stored))) == [b"png"]
    assert as_messages({"text": "a", "image": [linked, stored]}) == as_messages(
        {"text": "a", "image": ["b.png", b"png"]}
    )


@pytest.mark.parametrize(
    "item, instruction",
    [
        ("a", "Find."),
        ({"text": "a", "instruction": "Classify."}, "Classify."),
        ({"text": "a", "instruction": ""}, None),
        ({"text": "a", "instruction": None}, "Find."),
        ([{"role": "user", "content": "a"}], "Find."),
        ({"role": "user", "content": "a"}, "Find."),
        ([{"role": "system", "content": "Sort."}, {"role": "user", "content": "a"}], "Sort."),
    ],
)
def test_the_input_s_own_instruction_wins(item, instruction):
    messages = as_messages(item, instruction="Find.")
    assert list(texts(messages)) == ([instruction] if instruction else []) + ["a"]


@pytest.mark.parametrize(
    "item, message",
    [
        (None, "is None"),
        (3, "int '3'"),
        (float("nan"), "float 'nan'"),
        (("a", "b"), "tuple"),
        (Path("a.png"), "goes into a dict"),
        (b"a", "bytes"),
        ([], "list"),
        (["a"], "list"),
        ({}, "neither text nor image"),
        ({"text": None, "image": None}, "neither text nor image"),
        ({"image": []}, "neither text nor image"),
        ({"txt": "a", "imge": 1}, r"unknown keys \['imge', 'txt'\].*'text', 'image', 'instruction'"),
        ({1: "a"}, r"unknown keys \['1'\]"),
        ({"text": 5}, r"\['text'\] is int '5'"),
        ({"text": ["a", "b"]}, r"\['text'\] is list"),
        ({"text": "a", "instruction": 5}, r"\['instruction'\] is int"),
        ({"image": 5}, "int '5' for a picture"),
        ({"image": [PICTURE, None]}, "None for a picture"),
        ({"image": {"bytes": b""}}, "dict"),
        ({"bytes": None, "path": None}, "None for a picture"),
        (np.zeros((2, 3, 20, 30)), r"shape \(2, 3, 20, 30\).*list of inputs"),
        (np.zeros(5), r"shape \(5,\)"),
        ({"role": "user", "content": None}, "neither text nor parts"),
        ({"role": "user", "content": ["a"]}, "neither text nor parts"),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], "text is None"),
        ([{"role": "user", "content": [{"type": "image", "image": 5}]}], "int '5' for a picture"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "None for a picture"),
        ("a \ud800", r"character 2 is '\\ud800', half of a surrogate pair"),
        ({"text": "\udfff"}, r"\['text'\] is not valid Unicode"),
        ({"text": "a", "instruction": "\ud800"}, r"\['instruction'\] is not valid Unicode"),
        ({"role": "user", "content": "\ud800"}, "the user turn of"),
        ([{"role": "user", "content": [{"type": "text", "text": "\ud800"}]}], "a text part of"),
    ],
)
def test_what_cannot_be_embedded_is_named(item, message):
    with pytest.raises(ValueError, match=message) as raised:
        as_messages(item, index=7)
    assert "inputs[7]" in str(raised.value)


def test_the_caller_s_chat_is_not_changed():
    chat = [{"role": "user", "content": "a"}]
    as_messages(chat, instruction="Find.").append({})
    assert chat == [{"role": "user", "content": "a"}]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "path": "a.png"},
        {"type": "image", "url": "a.png"},
        {"type": "image_url", "image_url": {"url": "a.png"}},
        {"type": "image_url", "image_url": "a.png"},
    ],
)
def test_pictures_of_a_chat_have_one_name(part):
    chat = [{"role": "user", "content": [part, {"type": "text", "text": "a"}]}]
    assert as_messages(chat) == [
        {"role": "user", "content": [{"type": "image", "image": "a.png"}, chat[0]["content"][1]]}
    ]
    assert chat[0]["content"][0] is part


def test_picture_sizes_come_from_the_header(tmp_path):
    buffer = io.BytesIO()
    PICTURE.save(buffer, "PNG")
    # Broken off at the start of its pixels, the file has a size and nothing else.
    header = buffer.getvalue()[:45]
    (tmp_path / "a.png").write_bytes(header)
    for picture in (PICTURE, header, str(tmp_path / "a.png"), np.zeros((20, 30)), torch.zeros(1, 20, 30)):
        assert height_and_width(picture) == (20, 30)
    assert height_and_width("https://example.org/a.png") is None


@pytest.mark.parametrize("content", [b"", b"no picture"])
def test_a_file_without_a_size_is_refused(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ImageError, match="a.png"):
        height_and_width(str(tmp_path / "a.png"))


def test_a_named_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="is a pipe"):
        height_and_width(str(tmp_path / "pipe.png"))


def test_half_a_surrogate_pair_beside_an_input_is_named():
    with pytest.raises(ValueError, match=r"the instruction of inputs\[7\] is not valid Unicode"):
        as_messages("a", index=7, instruction="\ud800")
    with pytest.raises(ValueError, match=r"the trace of inputs\[7\] is not valid Unicode"):
        with_trace(as_messages("a"), "\ud800", index=7)


@pytest.mark.parametrize("trace", [None, "", " \n"])
def test_an_empty_trace_is_none(trace):
    assert with_trace(as_messages("a"), trace) == as_messages("a")
