from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hf_mmembed.sentence_transformer import MMEmbedder
from hf_mmembed.thinking.unified import make_unified, open_unified
from hf_mmembed.training import checkpoints
from hf_mmembed.training.models import save_embedder
from hf_mmembed.training.trainer import SaHaTrainer
from tests.forks import exit_code
from tests.training.conftest import make_pairs
from tests.training.runs import CLUSTERS, Steps, arguments, assert_same, trained_weights


@pytest.mark.parametrize("step", [1, 3, 5])
def test_resuming_equals_never_having_stopped(uninterrupted, embedder, tmp_path, step):
    directory, _, weights = uninterrupted
    trainer = SaHaTrainer(embedder("qwen2_vl"), arguments(tmp_path, save_strategy="no"), make_pairs(), CLUSTERS)
    trainer.train(str(directory / f"checkpoint-{step}"))
    assert_same(trained_weights(trainer.model), weights[6])


def test_resuming_over_a_base_in_bfloat16_rounds_nothing(embedder, tmp_path):
    path = embedder("qwen2_vl", dtype="bfloat16")
    options = {"use_dora": True, "max_steps": 2}
    whole = SaHaTrainer(path, arguments(tmp_path / "whole", **options), make_pairs(), CLUSTERS)
    whole.train()
    resumed = SaHaTrainer(path, arguments(tmp_path, save_strategy="no", **options), make_pairs(), CLUSTERS)
    resumed.train(str(tmp_path / "whole" / "checkpoint-1"))
    assert_same(trained_weights(resumed.model), trained_weights(whole.model))


def test_a_head_in_float32_over_a_reasoner_in_bfloat16_is_not_rounded(generative, tmp_path):
    path = make_unified(generative("qwen2_vl"), tmp_path / "made", head_options={"layers": 1})
    options = {"device": "cpu", "model_kwargs": {"dtype": "bfloat16"}}
    model = open_unified(path, **options)
    with torch.no_grad():
        for weight in model.transformers_model.head.parameters():
            weight.normal_()
    save_embedder(model, tmp_path / "checkpoint")
    resumed = open_unified(path, **options)
    SaHaTrainer._load_from_checkpoint(SimpleNamespace(model=resumed), str(tmp_path / "checkpoint"))
    assert_same(trained_weights(resumed), trained_weights(model))
    assert {p.dtype for p in resumed.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_a_checkpoint_is_opened_outside_the_memory_of_the_device(uninterrupted, fresh, monkeypatch):
    directory, _, weights = uninterrupted
    devices = []

    def opened(*args, device=None, **kwargs):
        devices.append(device)
        return MMEmbedder(*args, device=device, **kwargs)

    monkeypatch.setattr(checkpoints, "MMEmbedder", opened)
    model = MMEmbedder(str(directory / "checkpoint-1"), device="cpu")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    SaHaTrainer._load_from_checkpoint(SimpleNamespace(model=model), str(directory / "checkpoint-2"))
    assert_same(trained_weights(model), weights[2])
    assert devices == ["cpu"]
    with pytest.raises(ValueError, match="checkpoint-2 lacks .* weights that are trained, such as"):
        checkpoints.load_trained(fresh(), directory / "checkpoint-2")


def test_a_finished_run_is_not_trained_further(embedder, tmp_path, caplog):
    first = SaHaTrainer(embedder("qwen2_vl"), arguments(tmp_path, max_steps=5), make_pairs(), CLUSTERS)
    first.train()
    again = SaHaTrainer(embedder("qwen2_vl"), arguments(tmp_path, max_steps=5), make_pairs(), CLUSTERS)
    with caplog.at_level(logging.INFO):
        result = again.train(True)
    assert result.global_step == again.state.global_step == 5
    assert "nothing is left to do" in caplog.text
    assert_same(trained_weights(again.model), trained_weights(first.model))
    assert again.state.log_history == [entry for entry in first.state.log_history if "loss" in entry]
    assert result.training_loss == pytest.approx(np.mean([entry["loss"] for entry in again.state.log_history]))
    assert not (tmp_path / "checkpoint-6").exists() and (tmp_path / "training.png").exists()


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_finished_run_that_logged_nothing_has_a_loss_of_zero(uninterrupted, embedder, tmp_path):
    directory, _, _ = uninterrupted
    checkpoint = shutil.copytree(directory / "checkpoint-5", tmp_path / "checkpoint-5")
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    (checkpoint / "trainer_state.json").write_text(json.dumps({**state, "log_history": []}))
    again = SaHaTrainer(embedder("qwen2_vl"), arguments(tmp_path, max_steps=5), make_pairs(), CLUSTERS)
    assert checkpoints.take_up_finished(again, str(checkpoint)).training_loss == 0.0


def _killed(directory, path, where):
    """A run that kills itself, at the end of step 5 or while the checkpoint of step 5 is being written."""

    def kill(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    callbacks = []
    if where == "step":
        callbacks = [Steps(lambda step: kill() if step == 5 else None)]
    if where == "save":
        original = SaHaTrainer._save_optimizer_and_scheduler

        def save(self, output_dir):
            original(self, output_dir)
            if self.state.global_step == 5:
                kill()

        SaHaTrainer._save_optimizer_and_scheduler = save
    if where == "list of files":
        original = checkpoints.publish
        json.dumps_ = json.dumps

        def dumps(value, **options):
            if isinstance(value, dict) and "files" in value and len(list(Path(directory).glob("checkpoint-*"))) == 4:
                kill()
            return json.dumps_(value, **options)

        json.dumps = dumps
    SaHaTrainer(path, arguments(directory), make_pairs(), CLUSTERS, callbacks=callbacks).train()


@pytest.mark.parametrize("where", ["step", "save", "list of files"])
def test_killed_and_resumed_equals_uninterrupted(uninterrupted, embedder, tmp_path, caplog, where):
    _, _, weights = uninterrupted
    assert exit_code(_killed, tmp_path, embedder("qwen2_vl"), where) == -signal.SIGKILL
    trainer = SaHaTrainer(embedder("qwen2_vl"), arguments(tmp_path), make_pairs(), CLUSTERS)
    with caplog.at_level(logging.INFO):
        trainer.train(True)
    assert f"going on from {tmp_path / 'checkpoint-4'}" in caplog.text
    assert ("a run was stopped while it wrote a checkpoint" in caplog.text) == (where != "step")
    assert_same(trained_weights(trainer.model), weights[6])


def test_incomplete_checkpoints_are_passed_over_and_reported(uninterrupted, tmp_path, caplog):
    directory, _, _ = uninterrupted
    for step in (1, 2, 3):
        target = tmp_path / f"checkpoint-{step}"
        target.mkdir()
        for path in (directory / f"checkpoint-{step}").iterdir():
            (target / path.name).write_bytes(path.read_bytes())
    (tmp_path / "checkpoint-3" / "checkpoint.json").unlink()
    weights = tmp_path / "checkpoint-2" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert checkpoints.last_complete(tmp_path) == tmp_path / "checkpoint-1"
    assert "checkpoint.json is missing" in caplog.text and "adapter_model.safetensors has" in caplog.text
    weights.unlink()
    assert checkpoints.what_is_missing(tmp_path / "checkpoint-2") == "adapter_model.safetensors is missing"
    assert checkpoints.last_complete(tmp_path / "checkpoint-1") is None


def test_what_another_system_adds_or_spells_otherwise_does_not_count(tmp_path):
    (tmp_path / "staged/1_Dense").mkdir(parents=True)
    for name in ("1_Dense/config.json", ".metadata", "._config.json"):
        (tmp_path / "staged" / name).write_text("{}")
    checkpoints.publish(tmp_path / "staged", tmp_path / "final")
    listed = json.loads((tmp_path / "final/checkpoint.json").read_text())["files"]
    assert listed == {"1_Dense/config.json": 2, ".metadata": 2}


def test_resuming_from_an_incomplete_checkpoint_is_refused(embedder, tmp_path):
    (tmp_path / "checkpoint-7").mkdir()
    trainer = SaHaTrainer(embedder("qwen2_vl"), arguments(tmp_path), make_pairs(), CLUSTERS)
    with pytest.raises(ValueError, match="cannot resume .*checkpoint.json is missing"):
        trainer.train(str(tmp_path / "checkpoint-7"))


def test_a_new_run_does_not_mix_with_an_earlier_one(uninterrupted, embedder):
    directory, _, _ = uninterrupted
    with pytest.raises(ValueError, match="resume it, or choose another output directory"):
        SaHaTrainer(embedder("qwen2_vl"), arguments(directory), make_pairs(), CLUSTERS).train()
