"""Arguments that decide the batches, and those that nothing follows."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from transformers.training_args import ParallelMode

from hf_mmembed.training.arguments import SaHaTrainingArguments
from hf_mmembed.training.run_file import RUN_FILE, keep_to, settings_of
from hf_mmembed.training.trainer import SaHaTrainer
from tests.training.runs import CLUSTERS, arguments


@pytest.mark.parametrize(
    ("option", "advice"),
    [({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha is 5.0, .* leave it out"),
     ({"data_seed": 3}, "data_seed is 3, .* set seed instead"),
     ({"prompts": {"query": "find: "}}, "prompts is {'query': 'find: '}, .*`prompt` in the recipe"),
     ({"batch_sampler": "no_duplicates"}, "batch_sampler is .*no_duplicates.*, .* set `mining` in the recipe")],
)  # fmt: skip
def test_what_nothing_follows_is_refused_before_mining(option, advice, tmp_path):
    with pytest.raises(ValueError, match=advice):
        arguments(tmp_path, **option)


def test_arguments_can_be_made_of_others_and_of_what_was_written(tmp_path):
    args = arguments(tmp_path, dataloader_drop_last=True)
    assert replace(args, seed=7).dataloader_drop_last
    written = json.loads(args.to_json_string())
    names = ("neftune_noise_alpha", "data_seed", "prompts", "batch_sampler", "dataloader_drop_last")
    again = SaHaTrainingArguments(str(tmp_path), **{name: written[name] for name in names})
    assert [getattr(again, name) for name in names] == [getattr(args, name) for name in names]


@pytest.mark.parametrize(("drop_last", "steps"), [(False, 2), (True, 1)])
def test_a_step_that_is_not_full_is_dropped_when_it_is_said(drop_last, steps, embedder, pairs, tmp_path):
    args = arguments(tmp_path, global_batch_size=8, dataloader_drop_last=drop_last)
    trainer = SaHaTrainer(embedder("qwen2_vl"), args, pairs, CLUSTERS)
    assert len(trainer.get_train_dataloader()) == steps


@pytest.mark.parametrize("drop_last", [False, True])
def test_several_processes_drop_what_one_drops(drop_last, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(SaHaTrainingArguments, "parallel_mode", ParallelMode.DISTRIBUTED)
    assert arguments(tmp_path, dataloader_drop_last=drop_last).dataloader_drop_last is drop_last
    assert "dataloader_drop_last" not in caplog.text


def test_a_run_keeps_to_what_it_drops_and_one_of_an_earlier_version_goes_on(tmp_path):
    def facts(**options):
        return json.loads(json.dumps(settings_of(arguments(tmp_path, **options))))

    checkpoint = str(tmp_path / "checkpoint-1")
    keep_to(facts, str(tmp_path), None)
    with pytest.raises(ValueError, match="dataloader_drop_last was False and is True"):
        keep_to(lambda: facts(dataloader_drop_last=True), str(tmp_path), checkpoint)
    begun = json.loads((tmp_path / RUN_FILE).read_text())
    del begun["depends_on"]["training.dataloader_drop_last"]
    (tmp_path / RUN_FILE).write_text(json.dumps(begun))
    keep_to(facts, str(tmp_path), checkpoint)
