from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import Trainer, TrainerCallback

from hf_mmembed import MMEmbedder
from hf_mmembed.mining import Clusters
from hf_mmembed.training import checkpoints
from hf_mmembed.training.arguments import SaHaTrainingArguments
from hf_mmembed.training.chunks import NonFiniteLossError
from hf_mmembed.training.losses import MaskedInfoNCELoss
from hf_mmembed.training.models import save_result
from hf_mmembed.training.trainer import SaHaTrainer
from tests.training.conftest import in_processes, make_pairs

CLUSTERS = np.arange(12).reshape(6, 2)


def arguments(directory, **options):
    chosen = {
        "global_batch_size": 4, "num_train_epochs": 2, "learning_rate": 1e-2, "warmup_steps": 0, "lora_rank": 2,
        "use_dora": False, "save_steps": 1, "save_total_limit": None, "logging_steps": 1, "mini_batch_size": 3, "use_cpu": True,
    }  # fmt: skip
    return SaHaTrainingArguments(str(directory), **{**chosen, **options})


# Without chance, and with updates in proportion to gradients: Adam blows up the rounding of those that are nearly zero.
COMPARABLE = {"lora_dropout": 0.0, "optim": "sgd", "learning_rate": 0.5, "save_strategy": "no"}


def trained_weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name


class Steps(TrainerCallback):
    """Weights after every step, and a chance to do something then."""

    def __init__(self, action=lambda step: None):
        self.weights, self.action = {}, action

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights[state.global_step] = trained_weights(model)
        self.action(state.global_step)


@pytest.fixture(scope="module")
def uninterrupted(embedder, tmp_path_factory):
    """A run of two epochs of three steps: its directory, trainer, and the weights after every step."""
    directory = tmp_path_factory.mktemp("uninterrupted") / "run"
    steps = Steps()
    trainer = SaHaTrainer(embedder("qwen2_vl"), arguments(directory), make_pairs(), CLUSTERS, callbacks=[steps])
    trainer.train()
    return directory, trainer, steps.weights


def test_a_run_trains_logs_saves_and_draws(uninterrupted):
    directory, trainer, weights = uninterrupted
    assert isinstance(trainer, Trainer)
    assert sorted(weights) == [1, 2, 3, 4, 5, 6]
    assert any(not torch.equal(weights[1][name], weights[6][name]) for name in weights[1])
    assert all("lora_" in name for name in weights[1])
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 6
    for entry in logs:
        assert entry["hardness"] == pytest.approx(entry["positive"] - entry["hardest_negative"], abs=2e-4)
        assert entry["pairs_per_second"] > 0 and entry["masked"] == 0
    with Image.open(directory / "training.png") as picture:
        assert picture.format == "PNG" and picture.width > 400
    assert sorted(path.name for path in directory.glob("checkpoint-*")) == [f"checkpoint-{i}" for i in range(1, 7)]
    assert not (directory / ".unfinished").exists()
    assert not list(directory.rglob("training_args.bin")) and not list(directory.rglob("assets"))


@pytest.mark.parametrize("step", [1, 3, 5])
def test_resuming_equals_never_having_stopped(uninterrupted, embedder, tmp_path, step):
    directory, _, weights = uninterrupted
    trainer = SaHaTrainer(embedder("qwen2_vl"), arguments(tmp_path, save_strategy="no"), make_pairs(), CLUSTERS)
    trainer.train(str(directory / f"checkpoint-{step}"))
    assert_same(trained_weights(trainer.model), weights[6])


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
    process = multiprocessing.get_context("fork").Process(target=_killed, args=(tmp_path, embedder("qwen2_vl"), where))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
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


def test_resuming_from_an_incomplete_checkpoint_is_refused(embedder, tmp_path):
    (tmp_path / "checkpoint-7").mkdir()
    trainer = SaHaTrainer(embedder("qwen2_vl"), arguments(tmp_path), make_pairs(), CLUSTERS)
    with pytest.raises(ValueError, match="cannot resume .*checkpoint.json is missing"):
        trainer.train(str(tmp_path / "checkpoint-7"))


def test_a_new_run_does_not_mix_with_an_earlier_one(uninterrupted, embedder):
    directory, _, _ = uninterrupted
    with pytest.raises(ValueError, match="resume it, or choose another output directory"):
        SaHaTrainer(embedder("qwen2_vl"), arguments(directory), make_pairs(), CLUSTERS).train()


@pytest.mark.parametrize("save_as", ["adapter", "merged"])
def test_the_result_opens_in_sentence_transformers_at_once(uninterrupted, tmp_path, save_as):
    _, trainer, _ = uninterrupted
    trainer.args.save_as = save_as
    result = trainer.save_result(tmp_path / "result")
    assert (result / "adapter_model.safetensors").is_file() == (save_as == "adapter")
    assert (result / "model.safetensors").is_file() == (save_as == "merged")
    inputs = [{"text": "red thing"}, {"text": "blue", "image": Image.new("RGB", (16, 16), "blue")}]
    expected = trainer.model.encode_query(inputs)
    for opened in (
        SentenceTransformer(str(result), trust_remote_code=True, device="cpu"),
        MMEmbedder(result, device="cpu"),
    ):
        np.testing.assert_allclose(opened.encode_query(inputs), expected, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_dora_adapters_open_through_transformers_and_through_peft(embedder, tmp_path):
    args = arguments(tmp_path / "run", use_dora=True, max_steps=1)
    trainer = SaHaTrainer(embedder("qwen2_vl"), args, make_pairs(), CLUSTERS)
    before = trainer.model.encode_query(["red thing"])
    trainer.train()
    expected = trainer.model.encode_query(["red thing"])
    assert np.abs(expected - before).max() > 1e-3
    results = [save_result(trainer.model, tmp_path / str(merged), merged=merged) for merged in (False, True)]
    for path in (tmp_path / "run" / "checkpoint-1", *results):
        np.testing.assert_allclose(MMEmbedder(path, device="cpu").encode_query(["red thing"]), expected, atol=1e-5)


def test_an_adapter_goes_on_training(uninterrupted, tmp_path):
    _, trainer, weights = uninterrupted
    trainer.args.save_as = "adapter"
    result = trainer.save_result(tmp_path / "adapter")
    again = SaHaTrainer(result, arguments(tmp_path / "run", max_steps=1), make_pairs(), CLUSTERS)
    before = trained_weights(again.model)
    assert_same(before, weights[6])
    again.train()
    after = trained_weights(again.model)
    assert any(not torch.equal(after[name], before[name]) for name in before)


def test_a_generative_checkpoint_is_converted_and_all_weights_can_be_trained(generative, tmp_path):
    args = arguments(tmp_path / "run", lora_rank=0, max_steps=1, save_strategy="no")
    trainer = SaHaTrainer(generative("qwen2_vl"), args, make_pairs())
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())
    trainer.train()
    result = trainer.save_result(tmp_path / "result")
    assert len(load_file(result / "model.safetensors")) == len(trainer.model.transformers_model.state_dict())
    assert (tmp_path / "run" / "embedder" / "modules.json").is_file()


def test_gradient_checkpointing_changes_nothing(embedder, tmp_path):
    weights = []
    for checkpointing in (False, True):
        args = arguments(tmp_path, **COMPARABLE, activation_checkpointing=checkpointing, max_steps=1)
        trainer = SaHaTrainer(embedder("qwen2_vl"), args, make_pairs(), CLUSTERS)
        before = trained_weights(trainer.model)
        trainer.train()
        weights.append(trained_weights(trainer.model))
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, atol=1e-5, rtol=1e-4)
    assert max(float((weights[0][name] - before[name]).abs().max()) for name in before) > 1e-3


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


@pytest.mark.parametrize("with_grad", [False, True])
def test_out_of_memory_halves_the_chunk_and_keeps_the_batch(embedder, tmp_path, with_grad):
    weights = []
    for cramped in (False, True):
        args = arguments(tmp_path, **COMPARABLE, max_steps=2)
        trainer = SaHaTrainer(embedder("qwen2_vl"), args, make_pairs(), CLUSTERS)
        if cramped:
            memory = Cramped(trainer.model, 1, with_grad)
        trainer.train()
        weights.append(trained_weights(trainer.model))
    assert memory.refused and trainer.loss.chunk_size == 1
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, atol=1e-4, rtol=1e-4)


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


def test_epochs_are_mined_anew_and_resumed_with_their_own_clusters(embedder, tmp_path):
    mined = []

    def mine(model, directory):
        assert not model.encode("x", convert_to_tensor=True).requires_grad
        mined.append(Clusters(np.random.default_rng(len(mined)).permutation(12).reshape(6, 2), "random"))
        mined[-1].save(directory)

    options = {"remine_every_epoch": True, "num_train_epochs": 3}
    trainer = SaHaTrainer(
        embedder("qwen2_vl"),
        arguments(tmp_path, **options),
        make_pairs(),
        CLUSTERS,
        mine=mine,
        callbacks=[steps := Steps()],
    )
    trainer.train()
    assert len(mined) == 2
    np.testing.assert_array_equal(Clusters.load(tmp_path / "clusters" / "epoch-2").rows, mined[1].rows)
    np.testing.assert_array_equal(trainer._sampler._rows, mined[1].rows)
    for step, again in ((4, 1), (6, 2)):
        resumed = SaHaTrainer(
            embedder("qwen2_vl"),
            arguments(tmp_path, **options),
            make_pairs(),
            CLUSTERS,
            mine=lambda _, directory, again=again: mined[again - 1].save(directory),
        )
        resumed.train(str(tmp_path / f"checkpoint-{step}"))
        if step == 4:
            # Within epoch 2 the stored clusters count; at the beginning of the third, new ones are mined.
            np.testing.assert_array_equal(resumed._sampler._rows, mined[0].rows)
        else:
            assert_same(trained_weights(resumed.model), steps.weights[9])


def _rank_run(rank, path, directory, cramped):
    args = arguments(directory, **COMPARABLE | {"save_strategy": "steps"}, max_steps=2, save_steps=2)
    trainer = SaHaTrainer(path, args, make_pairs(), CLUSTERS)
    if cramped is not None and rank == 1:
        Cramped(trainer.model, 1, cramped)
    trainer.train()
    return {name: w.numpy() for name, w in trained_weights(trainer.model).items()}, trainer.loss.chunk_size


@pytest.mark.parametrize("cramped", [None, False, True])
def test_two_processes_train_as_one_even_when_one_runs_out_of_memory(embedder, tmp_path, cramped):
    path = embedder("qwen2_vl")
    args = arguments(tmp_path / "one", **COMPARABLE, max_steps=2)
    one = SaHaTrainer(path, args, make_pairs(), CLUSTERS)
    one.train()
    results = in_processes(_rank_run, path, tmp_path / "two", cramped, store=tmp_path / "store")
    for weights, chunk_size in results:
        assert chunk_size == (3 if cramped is None else 1)
        for name, weight in trained_weights(one.model).items():
            np.testing.assert_allclose(weights[name], weight.numpy(), atol=1e-4, rtol=1e-4)
    assert checkpoints.what_is_missing(tmp_path / "two" / "checkpoint-2") is None


def test_another_loss_can_be_given(embedder, tmp_path):
    trainer = SaHaTrainer(
        embedder("qwen2_vl"),
        arguments(tmp_path),
        make_pairs(),
        loss=lambda model: MaskedInfoNCELoss(model, temperature=0.5),
    )
    assert trainer.loss.temperature == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"global_batch_size": 5, "gradient_accumulation_steps": 2}, "choose a multiple of 2"),
        ({"save_as": "pickle"}, "use 'adapter' or 'merged'"),
    ],
)
def test_arguments_say_what_is_wrong(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **options)


def test_trainer_says_what_is_missing(embedder, tmp_path):
    with pytest.raises(ValueError, match="nothing to train on"):
        SaHaTrainer(embedder("qwen2_vl"), arguments(tmp_path))
    with pytest.raises(ValueError, match="remine_every_epoch needs `mine`"):
        SaHaTrainer(embedder("qwen2_vl"), arguments(tmp_path, remine_every_epoch=True), make_pairs())
    with pytest.raises(ValueError, match="its linear layers are"):
        SaHaTrainer(embedder("qwen2_vl"), arguments(tmp_path, lora_target_modules=["wi"]), make_pairs())
