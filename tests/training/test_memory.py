from __future__ import annotations

from functools import cache, partial

import numpy as np
import pytest
import torch

from hf_mmembed.training import checkpoints
from hf_mmembed.training.trainer import SaHaTrainer
from tests.forks import in_processes
from tests.training.conftest import make_pairs
from tests.training.runs import CLUSTERS, COMPARABLE, arguments, trained_weights


class Cramped:
    """A forward pass that runs out of memory with more than `most` inputs, while gradients are on or off."""

    def __init__(self, model, most, with_grad):
        self.forward, self.most, self.with_grad = model.forward, most, with_grad
        self.refused = 0
        model.forward = self

    def __call__(self, features, **kwargs):
        if len(features["input_ids"]) > self.most and torch.is_grad_enabled() == self.with_grad:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Simulated.")
        return self.forward(features, **kwargs)


class CrampedBackward:
    """A backward pass that runs out of memory halfway, in the `number`-th chunk."""

    def __init__(self, model, number):
        self.left = number
        model.transformers_model.backbone.get_decoder().layers[0].register_forward_hook(self)

    def __call__(self, layer, inputs, output):
        if torch.is_grad_enabled():
            self.left -= 1
            if self.left == 0:
                (output[0] if isinstance(output, tuple) else output).register_hook(self.refuse)

    def refuse(self, gradient):
        raise torch.OutOfMemoryError("CUDA out of memory. Simulated.")


@pytest.fixture(scope="module")
def in_one_process(embedder, tmp_path_factory):
    """Weights after two steps in one process, by batches that a step accumulates."""

    @cache
    def train(accumulated):
        args = arguments(tmp_path_factory.mktemp("one"), **COMPARABLE, **_options(accumulated))
        trainer = SaHaTrainer(embedder("qwen2_vl"), args, make_pairs(), CLUSTERS)
        trainer.train()
        return trained_weights(trainer.model)

    return train


def _options(accumulated):
    return {"max_steps": 2, "gradient_accumulation_steps": accumulated, "global_batch_size": 4 * accumulated}


@pytest.mark.parametrize("with_grad", [False, True])
def test_out_of_memory_halves_the_chunk_and_keeps_the_batch(embedder, in_one_process, tmp_path, with_grad):
    trainer = SaHaTrainer(
        embedder("qwen2_vl"), arguments(tmp_path, **COMPARABLE, **_options(1)), make_pairs(), CLUSTERS
    )
    memory = Cramped(trainer.model, 1, with_grad)
    trainer.train()
    assert memory.refused and trainer.loss.chunk_size == 1
    weights = trained_weights(trainer.model)
    for name, weight in in_one_process(1).items():
        torch.testing.assert_close(weights[name], weight, atol=1e-4, rtol=1e-4)


def test_out_of_memory_keeps_accumulated_gradients(embedder, tmp_path):
    weights = []
    for cramped in (False, True):
        args = arguments(tmp_path, **COMPARABLE, max_steps=1, gradient_accumulation_steps=2, global_batch_size=8)
        trainer = SaHaTrainer(embedder("qwen2_vl"), args, make_pairs(), CLUSTERS)
        assert args.per_device_train_batch_size == 4
        if cramped:
            Cramped(trainer.model, 2, True)
        trainer.train()
        weights.append(trained_weights(trainer.model))
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, atol=1e-4, rtol=1e-4)


def _rank_run(rank, path, directory, cramped, options):
    args = arguments(directory, **COMPARABLE | {"save_strategy": "steps"}, **options, save_steps=2)
    trainer = SaHaTrainer(path, args, make_pairs(), CLUSTERS)
    if cramped is not None and rank == 1:
        cramped(trainer.model)
    trainer.train()
    return {name: w.numpy() for name, w in trained_weights(trainer.model).items()}, trainer.loss.chunk_size


@pytest.mark.parametrize(
    ("cramped", "accumulated"),
    [
        (None, 1),
        (partial(Cramped, most=1, with_grad=False), 1),
        (partial(Cramped, most=1, with_grad=True), 1),
        (partial(CrampedBackward, number=4), 2),  # the last of a step: two batches of queries and documents
    ],
)
def test_two_processes_train_as_one_even_when_one_runs_out_of_memory(
    embedder, in_one_process, tmp_path, cramped, accumulated
):
    options, expected = _options(accumulated), in_one_process(accumulated)
    results = in_processes(
        _rank_run, embedder("qwen2_vl"), tmp_path / "two", cramped, options, store=tmp_path / "store"
    )
    for weights, chunk_size in results:
        assert chunk_size == (3 if cramped is None else 1)
        for name, weight in expected.items():
            np.testing.assert_allclose(weights[name], weight.numpy(), atol=1e-4, rtol=1e-4)
    assert checkpoints.what_is_missing(tmp_path / "two" / "checkpoint-2") is None
