"""Several threads may encode with one model."""

from __future__ import annotations

import io
import threading
from functools import partial

import numpy as np
import pytest
from PIL import Image

from hf_mmembed import MMEmbedder
from hf_mmembed.batching import Lookahead, prefetch
from hf_mmembed.inputs import as_messages
from hf_mmembed.model.pixels_mmembed import QuickQwenPixels
from hf_mmembed.preparation import Conversation, lookahead_beside, prepare
from tests.sentence_transformer.reference import assert_same, noise


def encode_in_threads(model: MMEmbedder, parts: list[list]) -> list[np.ndarray]:
    results: dict[int, np.ndarray] = {}

    def work(part: int) -> None:
        results[part] = model.encode(parts[part], batch_size=3)

    threads = [threading.Thread(target=work, args=(part,)) for part in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[part] for part in range(len(parts))]


def test_threads_do_not_mix_up_the_tokenizer_s_settings(model, monkeypatch):
    # Texts that are cut are tokenized without padding in between.
    monkeypatch.setattr(model.tokenizer, "model_max_length", 200)
    parts = [[f"{n} cut " * 200 for n in range(30)], [f"{n} " + "b " * (n % 17) for n in range(120)]]
    expected = [model.encode(part, batch_size=3) for part in parts]
    for rows, alone in zip(encode_in_threads(model, parts), expected, strict=True):
        assert_same(rows, alone)


def test_threads_do_not_decode_one_picture_twice(model):
    buffer = io.BytesIO()
    noise(0, 1200, 1200).save(buffer, "PNG")  # large, so that two threads would meet in it

    def shared() -> list[list]:
        picture = Image.open(io.BytesIO(buffer.getvalue()))
        return [[{"image": picture, "text": f"{side} " + "b " * n} for n in range(4)] for side in ("left", "right")]

    expected = [model.encode(part, batch_size=3) for part in shared()]
    for rows, alone in zip(encode_in_threads(model, shared()), expected, strict=True):
        assert_same(rows, alone)


def test_pictures_are_prepared_side_by_side(model, monkeypatch):
    meeting = threading.Barrier(2, timeout=20)
    patches = QuickQwenPixels._preprocess
    monkeypatch.setattr(
        QuickQwenPixels,
        "_preprocess",
        lambda self, images, **kw: meeting.wait() and None or patches(self, images, **kw),
    )
    conversations = [Conversation(n, as_messages(noise(n))) for n in range(2)]
    batches = list(prefetch(partial(prepare, model, conversations, {}), [[0], [1]], Lookahead(2, 2)))
    assert [batch for batch, _ in batches] == [[0], [1]]


@pytest.mark.parametrize(
    ("device", "cores", "busy", "expected"),
    [
        ("cpu", 2, 2, Lookahead(threads=2, items=3, in_turns=True)),
        ("cpu", 1, 1, Lookahead(threads=1, items=3, in_turns=True)),
        ("cpu", 64, 64, Lookahead(threads=4, items=3, in_turns=True)),
        ("cpu", 2, 1, Lookahead(threads=2, items=2)),
        ("cpu", 64, 32, Lookahead(threads=4, items=4)),
        ("cuda", 1, 1, Lookahead(threads=2, items=2)),
        ("cuda", 64, 64, Lookahead(threads=4, items=4)),
    ],
)
def test_batches_are_prepared_beside_the_model_where_cores_are_free(monkeypatch, device, cores, busy, expected):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(cores)), raising=False)
    monkeypatch.setattr("torch.get_num_threads", lambda: busy)
    assert lookahead_beside(device) == expected
    assert not lookahead_beside(device, downloads=True).in_turns


@pytest.mark.parametrize("allow_urls", [False, True])
def test_encoding_takes_turns_where_no_core_is_free(model, monkeypatch, allow_urls):
    used = []

    def prefetch_and_tell(prepare, batches, lookahead):
        used.append(lookahead.in_turns)
        return prefetch(prepare, batches, lookahead)

    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0}, raising=False)
    monkeypatch.setattr("hf_mmembed.memory.prefetch", prefetch_and_tell)
    monkeypatch.setattr(model.processor, "allow_urls", allow_urls)
    model.encode(["a", "b", "c"], batch_size=1)
    assert used == [not allow_urls]
