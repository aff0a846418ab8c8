from __future__ import annotations

import json

import pytest
import torch

from hf_mmembed.training.chunks import NonFiniteLossError
from hf_mmembed.training.trainer import SaHaTrainer
from tests.training.conftest import make_pairs
from tests.training.runs import CLUSTERS, arguments, assert_same, trained_weights


def _poison(trainer, row):
    """From now on the loss of this row is not a number."""
    original = trainer.loss.losses

    def losses(*arguments):
        values = original(*arguments)
        return torch.where(arguments[3].rows[: len(values)] == row, torch.nan, values)

    trainer.loss.losses = losses


def test_not_a_number_stops_within_one_step_and_names_the_rows(embedder, tmp_path):
    trainer = SaHaTrainer(embedder("qwen2_vl"), arguments(tmp_path), make_pairs(), CLUSTERS)
    before = trained_weights(trainer.model)
    _poison(trainer, 7)
    with pytest.raises(NonFiniteLossError, match="rows 7 of the training data") as caught:
        trainer.train()
    report = json.loads((tmp_path / "non-finite-rows.json").read_text())
    assert caught.value.rows == report["rows"] == [7]
    assert report["step"] == trainer.state.global_step + 1 <= 3
    if report["step"] == 1:
        assert_same(trained_weights(trainer.model), before)


def test_an_infinite_gradient_stops_before_the_weights_change(embedder, tmp_path):
    trainer = SaHaTrainer(embedder("qwen2_vl"), arguments(tmp_path), make_pairs(), CLUSTERS)
    before = trained_weights(trainer.model)
    next(p for p in trainer.model.parameters() if p.requires_grad).register_hook(lambda grad: grad * torch.inf)
    with pytest.raises(NonFiniteLossError, match="the gradient of 4 rows"):
        trainer.train()
    assert_same(trained_weights(trainer.model), before)


def test_an_infinite_gradient_names_all_rows_that_it_is_of(embedder, tmp_path):
    """Of every accumulated part, and where nothing is clipped too."""
    options = {"global_batch_size": None, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trainer = SaHaTrainer(
        embedder("qwen2_vl"), arguments(tmp_path, max_grad_norm=0, **options), make_pairs(), CLUSTERS
    )
    before = trained_weights(trainer.model)
    next(p for p in trainer.model.parameters() if p.requires_grad).register_hook(lambda grad: grad * torch.inf)
    with pytest.raises(NonFiniteLossError, match="the gradient of 4 rows") as caught:
        trainer.train()
    assert len(set(caught.value.rows)) == 4
    assert_same(trained_weights(trainer.model), before)


def test_a_full_disk_is_told_with_what_could_not_be_written(embedder, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    args = arguments(tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    trainer = SaHaTrainer(embedder("qwen2_vl"), args, make_pairs(), CLUSTERS)
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="/checkpoint-1: .* 64 vs 0: is the disk full"):
        trainer.train()
    monkeypatch.setattr("hf_mmembed.training.models.save_embedder", full)
    with pytest.raises(OSError, match="/model: .* 64 vs 0: is the disk full"):
        trainer.save_result(tmp_path / "model")
