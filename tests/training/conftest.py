"""Tiny pairs, a tiny embedder, and processes that talk to each other; shared by the tests of training."""

from __future__ import annotations

import io
import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from datasets import Dataset
from PIL import Image

from hf_mmembed import MMEmbedder, processes
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


def _run(function, arguments, rank, world, store, queue):
    try:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world),
        }
        # accelerate looks at these even where the group is made already, and remembers that the parent was alone.
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "1", "ACCELERATE_USE_CPU": "true"}
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        processes.world.cache_clear()
        torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
        queue.put((rank, function(rank, *arguments), None))
        torch.distributed.destroy_process_group()
    except BaseException:  # noqa: BLE001, the parent raises it
        queue.put((rank, None, traceback.format_exc()))


def in_processes(function, *arguments, world: int = 2, store: Path):
    """What `function(rank, *arguments)` returns on each of some forked processes with a gloo group."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [
        context.Process(target=_run, args=(function, arguments, rank, world, store, queue)) for rank in range(world)
    ]
    for process in processes:
        process.start()
    results = dict.fromkeys(range(world))
    for _ in processes:
        rank, result, error = queue.get(timeout=300)
        assert error is None, error
        results[rank] = result
    for process in processes:
        process.join()
    return [results[rank] for rank in range(world)]
