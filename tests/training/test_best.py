"""The best checkpoint is found at the end of a run, by every process, and outlives the others."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import torch
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator

from hf_mmembed.training import trainer as module
from hf_mmembed.training.models import save_embedder
from hf_mmembed.training.trainer import SaHaTrainer
from tests.forks import in_processes
from tests.training.conftest import make_pairs
from tests.training.runs import CLUSTERS, Steps, arguments, trained_weights


class Falling(SentenceEvaluator):
    """The more steps, the worse."""

    def __call__(self, model, output_path=None, epoch=-1, steps=-1):
        return {"quality": -float(steps)}


def _rank_run(rank, path, directory):
    args = arguments(
        directory, max_steps=3, save_total_limit=1, eval_strategy="steps", eval_steps=1,
        load_best_model_at_end=True, metric_for_best_model="quality", greater_is_better=True,
    )  # fmt: skip
    steps = Steps()
    trainer = SaHaTrainer(path, args, make_pairs(), CLUSTERS, evaluator=Falling(), callbacks=[steps])
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
