"""Inputs that cannot be embedded are named, and an error leaves nothing behind."""

from __future__ import annotations

import io
import shutil
import threading
from pathlib import Path

import pytest
from PIL import Image

from hf_mmembed import MMEmbedder, tiny
from tests.sentence_transformer.reference import noise


def closed() -> Image.Image:
    image = noise(3)
    image.close()
    return image


def closed_before_it_was_decoded() -> Image.Image:
    buffer = io.BytesIO()
    noise(4).save(buffer, "PNG")
    with Image.open(buffer) as image:
        return image


@pytest.mark.parametrize(
    "bad, message",
    [
        (None, "is None"),
        (closed(), "closed image"),
        (closed_before_it_was_decoded(), "was closed"),
        ({"image": "a\0.png"}, "no valid file name"),
        ({"text": None, "image": None}, "neither text nor image"),
        ({"txt": "a"}, r"unknown keys \['txt'\]"),
        ({"image": "missing.png"}, "missing.png"),
        ({"image": "https://example.org/a.png"}, "URL"),
        ({"image": b"no picture"}, "not a readable image"),
        ({"text": "a", "image": Image.new("RGB", (1, 4000))}, "200 times"),
        ([{"role": "tool", "content": "a"}], "role 'tool'"),
        ([{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}], "'video'"),
    ],
)
def test_the_error_names_the_input(model, bad, message):
    inputs = ["a", "a", *(f"text {number}" for number in range(70)), bad, "z"]
    with pytest.raises(ValueError, match=message) as raised:
        model.encode(inputs, batch_size=4)
    assert "inputs[72]" in str(raised.value)
    with pytest.raises(ValueError, match=message):
        model.encode(bad)


@pytest.mark.parametrize("name", ["modules.json", "tokenizer.json", "sentence_bert_config.json"])
def test_a_checkpoint_with_a_file_that_breaks_off_names_it(tmp_path, name):
    copy = Path(shutil.copytree(tiny.checkpoint_path(), tmp_path / "copy"))
    copy.joinpath(name).write_text(copy.joinpath(name).read_text()[:100])
    with pytest.raises(ValueError, match=f"{name} is not valid JSON.*again"):
        MMEmbedder(copy, device="cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mmembed-tiny", r"in Python it is hf_mmembed\.tiny\.checkpoint_path\(\)"),
        ("embedder", "there is no directory embedder, and the Hub"),
        ("nobody/embedder", "there is no directory nobody/embedder, and the Hub"),
    ],
)
def test_a_name_of_nothing_is_called_that(name, message):
    with pytest.raises((ValueError, OSError), match=message):
        MMEmbedder(name, device="cpu")


def test_a_picture_that_breaks_off_is_found_while_the_model_runs(model):
    buffer = io.BytesIO()
    noise(1).save(buffer, "PNG")
    inputs = [noise(seed) for seed in range(20)]
    inputs[13] = {"image": buffer.getvalue()[:-400]}
    with pytest.raises(ValueError, match=r"inputs\[13\].*break"):
        model.encode(inputs, batch_size=2)


def test_pictures_that_leave_no_room_are_named(model, monkeypatch):
    monkeypatch.setattr(model.tokenizer, "model_max_length", 150)
    many = {"image": [noise(seed, 48, 48) for seed in range(8)]}
    with pytest.raises(ValueError, match=r"^inputs\[1\] takes \d+ tokens without its text.*limit"):
        model.encode(["a", many, "c"])


def test_other_errors_of_the_preparation_keep_their_type(model, monkeypatch):
    def preprocess(batch, **kwargs):
        raise MemoryError("no room")

    monkeypatch.setattr(model[0], "preprocess", preprocess)
    with pytest.raises(MemoryError, match="no room") as raised:
        model.encode(["a", "b"], batch_size=1)
    assert raised.value.__notes__ == ["raised while preparing inputs [0]"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failing_model_leaves_no_threads(model, monkeypatch, error):
    calls = []

    def forward(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise error("stop")
        return original(*args, **kwargs)

    original = model[0].forward
    monkeypatch.setattr(model[0], "forward", forward)
    with pytest.raises(error):
        model.encode([f"text {number}" for number in range(40)], batch_size=2)
    assert not [thread for thread in threading.enumerate() if "prefetch" in thread.name]
    monkeypatch.undo()
    assert model.encode(["a", "b"], batch_size=1).shape[0] == 2
