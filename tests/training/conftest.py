"""Tiny pairs, a tiny embedder and a short run of training; shared by the tests of training."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from datasets import Dataset
from PIL import Image

from hf_mmembed import MMEmbedder
from hf_mmembed.data.pairs import read_pairs
from hf_mmembed.training.trainer import SaHaTrainer
from tests.training.runs import CLUSTERS, Steps, arguments

COLOURS = ("red", "green", "blue", "white", "black", "gray", "pink", "gold", "navy", "teal", "plum", "tan")


def picture(colour: str, size: int = 16) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(stream, "PNG")
    return stream.getvalue()


def make_pairs(number: int = 12, *, pictures: bool = True, negatives: bool = False) -> Dataset:
    """Words and colours; every third document is a picture, every fourth row has an instruction of its own."""
    rows = []
    for i in range(number):
        colour = COLOURS[i % len(COLOURS)]
        row = {
            "query_text": f"{colour} thing {i}",
            "query_image": None,
            "query_instruction": "Find it." if i % 4 == 0 else "",
            "pos_text": f"a {colour} one, number {i}",
            "pos_image": {"bytes": picture(colour), "path": None} if pictures and i % 3 == 0 else None,
            "pos_instruction": "",
            "subset": "odd" if i % 2 else "even",
        }
        if negatives:
            row |= {"neg_text": [f"no {colour}"] * (i % 3), "neg_image": [None] * (i % 3)}
        rows.append(row)
    return read_pairs(Dataset.from_list(rows))


@pytest.fixture(scope="session")
def pairs() -> Dataset:
    return make_pairs()


@pytest.fixture
def fresh(embedder) -> Callable[..., MMEmbedder]:
    """`fresh()` is a tiny embedder that the test may change."""

    def build(family: str = "qwen2_vl", dtype: torch.dtype = torch.float32) -> MMEmbedder:
        return MMEmbedder(str(embedder(family)), device="cpu").to(dtype)

    return build


@pytest.fixture
def uninterrupted(_uninterrupted):
    """A run of two epochs of three steps: its directory, trainer, and the weights after every step."""
    # Whoever makes TrainingArguments and no trainer of them empties the state that all accelerators share.
    if not AcceleratorState._shared_state:
        Accelerator(cpu=True)
    return _uninterrupted


@pytest.fixture(scope="session")
def _uninterrupted(embedder, tmp_path_factory):
    directory = tmp_path_factory.mktemp("uninterrupted") / "run"
    steps = Steps()
    trainer = SaHaTrainer(embedder("qwen2_vl"), arguments(directory), make_pairs(), CLUSTERS, callbacks=[steps])
    trainer.train()
    return directory, trainer, steps.weights


@contextmanager
def double_precision() -> Iterator[None]:
    """float64 all through: the norms and the rotary embedding of transformers compute in float32 otherwise."""
    original = torch.Tensor.to

    def to(tensor, *args, **kwargs):
        args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
        kwargs = {key: torch.float64 if value is torch.float32 else value for key, value in kwargs.items()}
        return original(tensor, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "to", to)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        yield
