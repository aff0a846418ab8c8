"""The best checkpoint is found at the end of a run, by every process, and outlives the others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator

from hf_mmembed.training import trainer as module
from hf_mmembed.training.models import save_embedder
from hf_mmembed.training.trainer import SaHaTrainer
from tests.forks import in_processes
from tests.training.conftest import make_pairs
from tests.training.runs import CLUSTERS, Steps, arguments, assert_same, trained_weights


class Falling(SentenceEvaluator):
    """The more steps, the worse."""

    def __call__(self, model, output_path=None, epoch=-1, steps=-1):
        return {"quality": -float(steps)}


BEST = {
    "max_steps": 3, "eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True,
    "metric_for_best_model": "quality", "greater_is_better": True,
}  # fmt: skip


def _trainer(path, directory, *callbacks, **options):
    args = arguments(directory, **BEST, **options)
    return SaHaTrainer(path, args, make_pairs(), CLUSTERS, evaluator=Falling(), callbacks=[*callbacks])


def _rank_run(rank, path, directory):
    steps = Steps()
    trainer = _trainer(path, directory, steps, save_total_limit=1)
    saved = []

    def save(embedder, place):
        saved.append(Path(place).name)
        save_embedder(embedder, place)

    with mock.patch.object(module, "save_embedder", save):
        trainer.train()
    final = trained_weights(trainer.model)
    equal_to = {
        step
        for step, weights in steps.weights.items()
        if all(torch.equal(weights[name], final[name]) for name in final)
    }
    return equal_to, trainer.state.best_model_checkpoint, saved


def test_every_process_ends_with_the_best_checkpoint(embedder, tmp_path):
    results = in_processes(_rank_run, embedder("qwen2_vl"), tmp_path / "run", store=tmp_path / "store")
    assert [result[:2] for result in results] == [({1}, str(tmp_path / "run" / "checkpoint-1"))] * 2
    # Two processes would replace each other's files while they are written.
    assert [saved for *_, saved in results] == [["checkpoint-1", "checkpoint-2", "checkpoint-3"], []]
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-1"]


def test_a_finished_run_that_is_resumed_has_its_best_weights(embedder, tmp_path):
    steps = Steps()
    _trainer(embedder("qwen2_vl"), tmp_path / "run", steps).train()
    (tmp_path / "run").rename(tmp_path / "moved")
    again = _trainer(embedder("qwen2_vl"), tmp_path / "moved")
    assert again.train(True).global_step == 3
    assert_same(trained_weights(again.model), steps.weights[1])
    record = json.loads((again.save_result(tmp_path / "result") / "training.json").read_text())
    assert (record["steps"], record["best_step"]) == (3, 1)
    shutil.rmtree(tmp_path / "moved" / "checkpoint-1")
    with pytest.raises(
        ValueError, match="best checkpoint .*checkpoint-1 cannot be loaded: there is no such directory"
    ):
        again.train(True)


def test_a_best_checkpoint_that_cannot_be_loaded_is_an_error(embedder, tmp_path):
    def spoil(step):
        if step == 3:
            (tmp_path / "checkpoint-1" / "adapter_model.safetensors").unlink()

    trainer = _trainer(embedder("qwen2_vl"), tmp_path, Steps(spoil))
    with pytest.raises(ValueError, match="checkpoint-1 cannot be loaded: adapter_model.safetensors is missing"):
        trainer.train()
    assert trainer.best_step is None
