from __future__ import annotations

import json
import logging

import pytest
import yaml

from hf_mmembed.hub import card_of, check, collect
from hf_mmembed.mining import Clusters, content_ids
from hf_mmembed.training.recipes import Recipe, prepare
from hf_mmembed.training.record import record_of
from hf_mmembed.training.trainer import SaHaTrainer
from tests.training.conftest import make_pairs
from tests.training.runs import CLUSTERS, arguments

MINED = Clusters(
    CLUSTERS,
    "saha",
    settings={"k": 1, "rules": {"rank": 0.2}, "subsets": {"odd": {}}, "miner": {"name": "/models/me"}},
    counts={"suspect_rank": 5},
    recall={"recall@1": 0.123456},
)


@pytest.mark.parametrize("save_as", ["adapter", "merged"])
def test_the_card_of_a_trained_model_says_what_was_run(embedder, tmp_path, save_as):
    recipe = Recipe(
        model=str(embedder("qwen2_vl")),
        data={"source": "someone/some-pairs"},
        output=str(tmp_path / "run"),
        training={
            "global_batch_size": 4, "max_steps": 3, "lora_rank": 2, "lora_alpha": 4, "save_steps": 2, "save_as": save_as,
            "seed": 11, "use_cpu": True, "report_to": "none", "lora_target_modules": ("q_proj",),
        },
    )  # fmt: skip
    pairs = make_pairs()
    trainer = prepare(recipe, pairs=pairs, clusters=MINED)
    trainer.train()
    result = trainer.save_result(tmp_path / "tuned")
    training = json.loads((result / "training.json").read_text())
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in logs] == [2, 3], "what is saved is logged, and the end"
    assert training["final_loss"] == round(logs[-1]["loss"], 4) and training["final_hardness"] == logs[-1]["hardness"]
    assert training["hours"] == pytest.approx(sum(entry["seconds"] for entry in logs) / 3600, abs=1e-3)
    expected = {
        "seed": 11,
        "steps": 3,
        "pairs": "12 in 2 subsets",
        "pairs_per_step": 4,
        "epochs": 1.0,
        "clusters": "6 x 2",
    }
    assert expected.items() <= training.items()
    assert training["datasets"] == ["someone/some-pairs"]
    assert training["base"].keys() == {"weights", "settings", "prompt", "image_size"}
    assert training["data_fingerprint"] == content_ids(pairs).fingerprint
    assert json.loads((result / "mining.json").read_text()) == {
        "strategy": "saha", "clusters": 6, "size": 2, "k": 1, "rules": {"rank": 0.2}, "suspect_rank": 5, "recall@1": 0.1235,
    }  # fmt: skip
    asked = yaml.safe_load((result / "recipe.yaml").read_text())
    assert asked["training"]["seed"] == 11 and asked["training"]["lora_target_modules"] == ["q_proj"]
    assert "mining" not in asked, "the clusters were given, so what the recipe says of mining was not done"

    card = (result / "README.md").read_text()
    for fact in (
        "| steps | 3 |",
        "| seed | 11 |",
        "1 x CPU",
        "peft ",
        "| suspect rank | 5 |",
        "max_steps: 3",
        "some-pairs",
    ):
        assert fact in card, fact
    assert ("A PEFT adapter over" in card) == (save_as == "adapter")
    assert card == card_of(result, repo_id="tuned"), "and it is made anew when it is pushed under a name"
    assert str(tmp_path) not in "".join(path.read_text() for path in result.glob("*.yaml")) + json.dumps(training)
    if save_as == "merged":
        check(collect(result))


def test_without_a_recipe_the_arguments_are_recorded(embedder, tmp_path, caplog, capsys):
    args = arguments(
        tmp_path / "run", max_steps=1, save_strategy="no", temperature=0.5, hub_token="secret", hub_model_id="org/name"
    )
    trainer = SaHaTrainer(embedder("qwen2_vl"), args, make_pairs())
    with caplog.at_level(logging.INFO):
        trainer.train()
    assert "step 1 of 1: loss " in caplog.text and not capsys.readouterr().out
    result = trainer.save_result(tmp_path / "result")
    asked = yaml.safe_load((result / "recipe.yaml").read_text())
    assert asked.keys() == {"training"}
    assert asked["training"].items() >= {"temperature": 0.5, "max_steps": 1, "learning_rate": 1e-2}.items()
    assert not {"output_dir", "hub_token", "hub_model_id", "symmetric", "seed"} & asked["training"].keys()
    assert not (result / "mining.json").exists()
    assert json.loads((result / "training.json").read_text())["clusters"] == "none: random batches"


def test_the_last_loss_is_not_that_of_a_pair_left_alone(embedder, tmp_path):
    args = arguments(tmp_path / "run", save_strategy="no")
    trainer = SaHaTrainer(embedder("qwen2_vl"), args, make_pairs(), CLUSTERS)
    whole = {"loss": 1.5, "hardness": 0.25, "seconds": 1.0}
    alone = {"loss": 0.0, "hardness": float("nan"), "seconds": 1.0}
    for logs, last in (
        ([whole, alone], (1.5, 0.25)),
        ([{"loss": 2.0, "seconds": 1.0}], (2.0, None)),
        ([alone], (None, None)),
    ):
        trainer.state.log_history = logs
        text = record_of(trainer)["training.json"]
        training = json.loads(text)
        assert (training.get("final_loss"), training.get("final_hardness")) == last and "NaN" not in text


def test_a_batch_size_that_was_given_for_each_process_is_recorded(embedder, tmp_path):
    for options, recorded in (
        ({"global_batch_size": None, "per_device_train_batch_size": 6}, {"per_device_train_batch_size": 6}),
        ({"global_batch_size": 4}, {"global_batch_size": 4}),
    ):
        trainer = SaHaTrainer(embedder("qwen2_vl"), arguments(tmp_path / "run", **options), make_pairs(), CLUSTERS)
        asked = yaml.safe_load(record_of(trainer)["recipe.yaml"])["training"]
        assert {name: value for name, value in asked.items() if name.endswith("batch_size")} == recorded | {
            "mini_batch_size": 3
        }
