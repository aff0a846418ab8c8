from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset
from transformers import TrainingArguments

from hf_mmembed import only_run
from hf_mmembed.data.pairs import read_pairs
from hf_mmembed.hub import PushError
from hf_mmembed.judging import judge_pairs
from hf_mmembed.judging import pairs as judging
from hf_mmembed.judging.candidates import of_pairs
from hf_mmembed.mining import dataset as mining
from hf_mmembed.mining import mine_pairs
from hf_mmembed.processes import PATIENCE, World, world
from hf_mmembed.thinking import recipes as thinking
from hf_mmembed.training import models, publishing, run_file, trainer
from hf_mmembed.training.arguments import SaHaTrainingArguments
from tests.forks import in_processes
from tests.index.fake_embedder import FakeEmbedder
from tests.training.conftest import make_pairs


def test_accelerate_launches_two_processes_on_a_cpu(generative, tmp_path):
    """The line of the README, with a tiny recipe: conversion, mining and training are shared by two processes."""
    make_pairs(12).save_to_disk(str(tmp_path / "pairs"))
    recipe = {
        "model": str(generative("qwen2_vl")), "data": {"source": str(tmp_path / "pairs")}, "output": str(tmp_path / "run"),
        "mining": {"k": 1},
        "training": {"global_batch_size": 4, "max_steps": 2, "lora_rank": 2, "save_strategy": "no", "report_to": "none"},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    launch = (
        "-m accelerate.commands.launch --num_processes 2 --multi_gpu --main_process_port 0 -m hf_mmembed.cli train"
    )
    done = subprocess.run(
        [sys.executable, *launch.split(), "--config", str(tmp_path / "recipe.yaml")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    training = json.loads((tmp_path / "run" / "model" / "training.json").read_text())
    assert training["hardware"].startswith("2 x CPU") and training["pairs_per_step"] == 4 and training["steps"] == 2
    assert done.stdout.count("wrote") == 1


@pytest.mark.parametrize("started", [False, True])
def test_accelerate_that_starts_one_process_for_several_is_reported(monkeypatch, caplog, started):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if started:
        monkeypatch.setenv("WORLD_SIZE", "1")
    world.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert world() == World()
    assert ("add --multi_gpu" in caplog.text) != started
    world.cache_clear()


def test_one_process_trains_on_one_gpu_of_several(monkeypatch, tmp_path, caplog):
    def several(args):
        args._n_gpu, args.distributed_state = 8, None
        return torch.device("cuda", 0)

    monkeypatch.setattr(TrainingArguments, "_setup_devices", property(several))
    args = SaHaTrainingArguments(str(tmp_path), global_batch_size=16, bf16=False)
    assert (args.n_gpu, args.train_batch_size) == (1, 16)
    assert "8 GPUs and one process" in caplog.text and "--num_processes 8" in caplog.text


def test_bfloat16_is_left_out_on_a_cpu_that_nobody_chose(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert SaHaTrainingArguments(str(tmp_path), bf16=True, use_cpu=True).bf16 and not caplog.text
    assert not SaHaTrainingArguments(str(tmp_path), bf16=True).bf16
    assert "without bf16" in caplog.text and "training.use_cpu=true" in caplog.text


def test_processes_wait_for_each_other_for_days(tmp_path):
    """One may mine for hours, which the group that trains would take for a failure."""

    def said(rank):
        process = world()
        patience = process.group._get_backend(torch.device("cpu")).options._timeout
        return patience, process.agree(None), process.share(rank), process.agree("broken" if rank else None)

    assert in_processes(said, store=tmp_path / "store") == [(PATIENCE, None, 0, "broken")] * 2


def test_one_process_reads_for_all_and_all_hear_why_it_cannot(tmp_path):
    def tried(rank):
        def cannot_read(kind):
            raise kind(f"row {rank} cannot be read")

        for kind in (ValueError, FileNotFoundError, PushError):
            with pytest.raises(kind, match="row 0 cannot be read"):
                world().once(partial(cannot_read, kind))
        world().wait()
        return world().once(lambda: rank)

    assert in_processes(tried, store=tmp_path / "store") == [0, 0]


@dataclass(frozen=True)
class MainOfTwo(World):
    """The main process, with a list for the other one."""

    size: int = 2
    told: list[Any] = field(default_factory=list)

    def share(self, value):
        self.told.append(value)
        return value

    agree = share


TEXTS = read_pairs(Dataset.from_dict({"query_text": ["a", "b"], "pos_text": ["c", "d"], "neg_text": [["d"], ["c"]]}))
JUDGE = mock.MagicMock(identity="half", side_effect=lambda queries, _: np.full(len(queries), 0.5))
WORK = {
    "convert": (models, "convert", lambda path: models.open_embedder("org/base", path)),
    "head": (thinking, "_make_untrained", lambda path: thinking._untrained(None, path, resume=False)),
    "hold": (only_run, "only_writer", lambda path: only_run.only_run(path).__enter__()),
    "facts": (run_file, "write_atomically", lambda path: run_file.keep_to(dict, path, None)),
    "result": (
        trainer, "record_of",
        lambda path: trainer.SaHaTrainer._write_result(SimpleNamespace(model=0, args=SimpleNamespace(save_as="")), path),
    ),
    "push": (publishing, "push", lambda path: publishing.publish_result(mock.MagicMock(), path, "message")),
    "mining": (
        mining, "write_atomically",
        lambda path: mine_pairs(TEXTS, FakeEmbedder(), path, model={"name": "fake"}, k=1),
    ),
    "judging": (judging, "_write", lambda path: judge_pairs(TEXTS, JUDGE, of_pairs(TEXTS), path)),
}  # fmt: skip


@pytest.mark.parametrize("work", WORK)
def test_what_one_process_cannot_do_for_all_is_told_to_all(monkeypatch, tmp_path, work):
    """Or the others would wait for it."""

    def full(*_, **__):
        raise OSError("no space left")

    module, name, call = WORK[work]
    process = MainOfTwo()
    monkeypatch.setattr(module, "world", lambda: process)
    monkeypatch.setattr(module, name, full)
    with pytest.raises(OSError, match="no space left"):
        call(tmp_path)
    assert "no space left" in str(process.told[-1:])
