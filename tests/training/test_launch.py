from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import pytest
import yaml

from hf_mmembed.processes import World, world
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
