from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import Trainer

from hf_mmembed.mining import Clusters, content_ids
from hf_mmembed.training.losses import MaskedInfoNCELoss
from hf_mmembed.training.models import open_for_training
from hf_mmembed.training.trainer import SaHaTrainer
from tests.training.conftest import make_pairs
from tests.training.runs import CLUSTERS, COMPARABLE, Steps, arguments, assert_same, trained_weights


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


def test_a_batch_without_negatives_does_not_hide_the_hardness_of_the_others(embedder, tmp_path):
    options = {"save_strategy": "no", "num_train_epochs": 1, "logging_steps": 10}
    trainer = SaHaTrainer(
        embedder("qwen2_vl"), arguments(tmp_path, **options), make_pairs(5)
    )  # 4 pairs, and one alone
    trainer.train()
    [entry] = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert np.isfinite([entry[name] for name in ("positive", "hardest_negative", "hardness", "masked")]).all()


def test_gradient_checkpointing_changes_nothing_and_leaves_the_frozen_tower_alone(embedder, tmp_path):
    weights, through_tower = [], []
    for options in (None, {}, {"every_n_layers": 2}, {"use_reentrant": True}):
        checkpointing = {"activation_checkpointing": options is not None, "activation_checkpointing_kwargs": options}
        args = arguments(tmp_path, **COMPARABLE, **checkpointing, max_steps=1)
        trainer = SaHaTrainer(embedder("qwen2_vl"), args, make_pairs(), CLUSTERS)
        passes = []
        tower = trainer.model.transformers_model.backbone.visual
        tower.blocks[0].register_full_backward_hook(lambda *_, passes=passes: passes.append(1))
        before = trained_weights(trainer.model)
        trainer.train()
        weights.append(trained_weights(trainer.model))
        through_tower.append(bool(passes))
    for name, weight in weights[0].items():
        for other in weights[1:]:
            torch.testing.assert_close(other[name], weight, atol=1e-5, rtol=1e-4)
    assert max(float((weights[0][name] - before[name]).abs().max()) for name in before) > 1e-3
    # torch's older way finds no gradient at all unless the inputs of what it wraps have one.
    assert through_tower == [False, False, False, True]


@pytest.mark.parametrize(
    ("frozen", "autocast"), [(torch.float32, True), (torch.bfloat16, False), (torch.bfloat16, True)]
)
def test_bfloat16_trains_the_weights_nearly_as_float32_does(embedder, tmp_path, frozen, autocast):
    """`autocast` is `bf16=True`; `frozen` is how most checkpoints of large models are stored."""
    changes = []
    for dtype, bf16 in ((torch.float32, False), (frozen, autocast)):
        args = arguments(tmp_path, **COMPARABLE, bf16=bf16, max_steps=1, temperature=0.1, use_dora=True)
        model = open_for_training(embedder("qwen2_vl"), args, dtype=dtype)
        trainer = SaHaTrainer(model, args, make_pairs(), CLUSTERS)
        before = trained_weights(model)
        trainer.train()
        after = trained_weights(model)
        assert {weight.dtype for weight in after.values()} == {torch.float32}
        assert {p.dtype for p in model.parameters() if not p.requires_grad} == {dtype}
        changes.append(torch.cat([(after[name] - before[name]).flatten() for name in before]))
    assert torch.cosine_similarity(*changes, dim=0) > 0.98
    assert not torch.equal(*changes)


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


def test_the_summary_tells_the_pairs_that_whole_clusters_make(embedder, tmp_path):
    args = arguments(tmp_path, global_batch_size=6, gradient_accumulation_steps=2)
    trainer = SaHaTrainer(embedder("qwen2_vl"), args, make_pairs(), CLUSTERS)
    assert trainer.summary()["pairs per step"] == 4


def test_where_mining_finds_no_cluster_batches_are_random(embedder, tmp_path):
    empty = Clusters(np.empty((0, 8), dtype=np.int64), "saha")
    args = arguments(tmp_path, max_steps=1, save_strategy="no")
    trainer = SaHaTrainer(embedder("qwen2_vl"), args, make_pairs(), empty)
    assert trainer.summary()["clusters"] == "none: random batches"
    trainer.train()
    assert trainer.state.global_step == 1


def test_clusters_of_other_pairs_are_refused(embedder, tmp_path):
    clusters = Clusters(CLUSTERS, "random", {"data": content_ids(make_pairs().select(range(11, -1, -1))).fingerprint})
    with pytest.raises(ValueError, match="of other pairs"):
        SaHaTrainer(embedder("qwen2_vl"), arguments(tmp_path), make_pairs(), clusters)


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
        ({"mini_batch_size": 0}, "mini_batch_size is 0"),
        ({"mini_batch_num_tokens": 0}, "mini_batch_num_tokens is 0"),
    ],
)
def test_arguments_say_what_is_wrong(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **options)


@pytest.mark.parametrize(
    ("options", "epochs", "many"),
    [({"num_train_epochs": 2}, "6 steps of 3 per epoch: 2 epochs", False),
     ({"max_steps": 2, "gradient_accumulation_steps": 2}, "2 steps of 3 per epoch: 0.667 epochs", False),
     ({"max_steps": 61}, "61 steps of 3 per epoch: 20.3 epochs", True)],
)  # fmt: skip
def test_the_number_of_epochs_is_told(embedder, tmp_path, caplog, options, epochs, many):
    caplog.set_level("INFO")

    def stop(*_, **__):
        raise KeyboardInterrupt

    trainer = SaHaTrainer(embedder("qwen2_vl"), arguments(tmp_path, **options), make_pairs(), CLUSTERS)
    trainer.training_step = stop
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert epochs in caplog.text
    warned = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert any("each row will be seen some 20 times" in message for message in warned) == many


def test_split_weights_are_refused(embedder, tmp_path, monkeypatch):
    original = SaHaTrainer.create_accelerator_and_postprocess

    def with_fsdp(self):
        original(self)
        self.is_fsdp_enabled = True

    monkeypatch.setattr(SaHaTrainer, "create_accelerator_and_postprocess", with_fsdp)
    with pytest.raises(ValueError, match="launch with DistributedDataParallel"):
        SaHaTrainer(embedder("qwen2_vl"), arguments(tmp_path), make_pairs())


def test_trainer_says_what_is_missing(embedder, tmp_path):
    with pytest.raises(ValueError, match="nothing to train on"):
        SaHaTrainer(embedder("qwen2_vl"), arguments(tmp_path))
    with pytest.raises(ValueError, match="remine_every_epoch needs `mine`"):
        SaHaTrainer(embedder("qwen2_vl"), arguments(tmp_path, remine_every_epoch=True), make_pairs())
    with pytest.raises(ValueError, match="its linear layers are"):
        SaHaTrainer(embedder("qwen2_vl"), arguments(tmp_path, lora_target_modules=["wi"]), make_pairs())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            lambda: Dataset.from_dict({"anchor": ["a"], "positive": ["b"]}),
            r"Dataset with the columns \['anchor', 'pos",
        ),
        (lambda: make_pairs(4).to_iterable_dataset(), "train_dataset is a IterableDataset .* no pairs: give what"),
        (lambda: make_pairs(4).select([]), "train_dataset has no rows"),
    ],
)
def test_what_is_no_pairs_is_told_so_before_a_model_is_opened(data, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        SaHaTrainer(str(tmp_path / "no model"), arguments(tmp_path), data())


def test_more_columns_do_no_harm(embedder, tmp_path):
    pairs = make_pairs().add_column("row", ["mine"] * 12).add_column("source", [None] * 12)
    trainer = SaHaTrainer(embedder("qwen2_vl"), arguments(tmp_path, save_strategy="no", max_steps=1), pairs)
    assert trainer.train().global_step == 1
