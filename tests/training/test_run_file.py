"""A run goes on only with what it began with."""

from __future__ import annotations

import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig

from hf_mmembed import MMEmbedder
from hf_mmembed.processes import World
from hf_mmembed.training import run_file
from hf_mmembed.training.models import open_for_training
from hf_mmembed.training.run_file import begin_or_go_on, facts_of
from hf_mmembed.training.trainer import SaHaTrainer
from tests.training.conftest import make_pairs
from tests.training.runs import CLUSTERS, arguments


def trainer_of(embedder, directory, pairs=None, clusters=CLUSTERS, **options):
    pairs = make_pairs() if pairs is None else pairs
    return SaHaTrainer(embedder("qwen2_vl"), arguments(directory, **options), pairs, clusters)


def different(trainer, checkpoint):
    with pytest.raises(ValueError, match="Resume it with what it began with, or choose another output") as refused:
        begin_or_go_on(trainer, str(checkpoint))
    return set(re.findall(r"(\S+) was ", str(refused.value)))


def test_a_finished_run_is_not_called_the_result_of_other_settings(uninterrupted, embedder):
    directory, _, _ = uninterrupted
    trainer = trainer_of(embedder, directory, max_steps=6, learning_rate=0.5, temperature=0.25)
    with pytest.raises(
        ValueError, match=r"training\.learning_rate was 0\.01 and is 0\.5; loss\.temperature was 0\.02"
    ):
        trainer.train(True)


def test_each_thing_that_differs_is_named(uninterrupted, embedder):
    directory, _, _ = uninterrupted
    checkpoint = directory / "checkpoint-6"
    args = arguments(directory, symmetric=True, lora_alpha=7)
    model = open_for_training(embedder("qwen2_vl"), args)
    next(p for p in model.parameters() if not p.requires_grad).data += 1
    trainer = SaHaTrainer(model, args, make_pairs(pictures=False))
    trainer.depends_on["teacher"] = "another"
    assert different(trainer, checkpoint) == {
        *("base.weights", "data", "clusters", "training.lora_alpha", "loss.symmetric", "teacher")
    }
    reworded = make_pairs().map(lambda row: {"query_instruction": "Seek."})
    assert different(trainer_of(embedder, directory, reworded), checkpoint) == {"instructions_negatives_scores"}
    assert different(trainer_of(embedder, directory, global_batch_size=2), checkpoint) == {"pairs_that_meet"}


def test_a_reasoner_that_is_gone_is_no_difference_but_another_one_is(tmp_path):
    begun = tmp_path / "run.json"
    for kept, now, refused in (("a", None, False), (None, "a", False), ("a", "a", False), ("a", "b", True)):
        facts = [{"base.frozen": "x"} | ({"reasoner": name} if name else {}) for name in (kept, now)]
        begun.write_text(json.dumps({"depends_on": facts[0]}))
        assert (run_file._refusal(begun, facts[1]) is not None) == refused


def test_what_changes_no_number_may_change(uninterrupted, embedder, tmp_path):
    directory, _, _ = uninterrupted
    kept = json.loads((directory / "run.json").read_text())
    options = {
        "max_steps": 9, "logging_steps": 3, "save_strategy": "no", "save_as": "merged", "dataloader_num_workers": 2,
        "mini_batch_size": 1, "mini_batch_num_tokens": 64, "activation_checkpointing": True, "run_name": "x",
        "global_batch_size": None, "per_device_train_batch_size": 4,
    }  # fmt: skip
    assert facts_of(trainer_of(embedder, tmp_path, **options)) == kept["depends_on"]


def test_a_run_of_an_earlier_version_is_resumed_with_a_warning(uninterrupted, embedder, tmp_path, caplog):
    directory, _, _ = uninterrupted
    shutil.copytree(directory / "checkpoint-6", tmp_path / "checkpoint-6")
    trainer = trainer_of(embedder, tmp_path, max_steps=6, learning_rate=0.5)
    assert trainer.train(True).global_step == 6
    assert "does not say what its run depended on" in caplog.text


def test_one_trainer_may_be_stopped_and_go_on(embedder, tmp_path):
    trainer = trainer_of(embedder, tmp_path, max_steps=1)
    trainer.train()
    assert any(p.any() for name, p in trainer.model.named_parameters() if "lora_B" in name)
    assert trainer.train(True).global_step == 1


def test_the_others_are_told_what_the_main_process_found(monkeypatch, tmp_path):
    monkeypatch.setattr(World, "share", lambda *_: (None, ValueError("other data")))
    monkeypatch.setattr(run_file, "world", lambda: World(rank=1, size=2))
    with pytest.raises(ValueError, match="other data"):
        begin_or_go_on(SimpleNamespace(args=SimpleNamespace(output_dir=str(tmp_path))), None)
    assert not list(tmp_path.iterdir())


def test_a_broken_file_is_a_refusal_and_says_what_to_do(embedder, tmp_path):
    trainer = trainer_of(embedder, tmp_path, max_steps=6)
    for words in ("{", "[]", "{}"):
        (tmp_path / run_file.RUN_FILE).write_text(words)
        with pytest.raises(ValueError, match="run.json cannot be read .*remove the file"):
            begin_or_go_on(trainer, str(tmp_path / "checkpoint-3"))


def test_an_adapter_of_one_s_own_may_begin_anywhere(embedder, tmp_path):
    """What is trained comes from the checkpoint."""

    def adapted(seed: int) -> SaHaTrainer:
        torch.manual_seed(seed)
        model = MMEmbedder(str(embedder("qwen2_vl")), device="cpu")
        model.add_adapter(LoraConfig(target_modules=["embed_tokens", "q_proj"]))
        return SaHaTrainer(model, arguments(tmp_path, max_steps=6), make_pairs(), CLUSTERS)

    begin_or_go_on(adapted(0), None)
    again = adapted(1)
    begin_or_go_on(again, str(tmp_path / "checkpoint-3"))
    again.facts["base.frozen"] = "other"
    assert different(again, tmp_path / "checkpoint-3") == {"base.weights"}
