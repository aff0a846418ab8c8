from __future__ import annotations

import pytest
import yaml

from hf_mmembed.cli.main import main
from hf_mmembed.training import recipes
from tests.training.conftest import make_pairs


@pytest.fixture
def recipe(generative, tmp_path):
    """A recipe file for a tiny model and a saved dataset of pairs."""
    make_pairs(12).save_to_disk(str(tmp_path / "pairs"))
    values = {
        "model": str(generative("qwen2_vl")),
        "data": {"source": str(tmp_path / "pairs")},
        "output": str(tmp_path / "run"),
        "mining": None,
        "training": {"use_cpu": True, "global_batch_size": 4, "max_steps": 2, "lora_rank": 2, "save_strategy": "no"},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def run(*words):
    with pytest.raises(SystemExit) as stop:
        main(["train", *map(str, words)])
    return stop.value.code


def test_trains_and_says_where_the_result_is(recipe, tmp_path, capsys):
    assert run("--config", recipe, "--set", "training.max_steps=1", "--output", tmp_path / "other") == 0
    assert f"wrote {tmp_path / 'other' / 'model'}" in capsys.readouterr().out
    assert (tmp_path / "other" / "model" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "run").exists()


def test_dry_run_says_what_would_be_done(recipe, tmp_path, capsys):
    assert run("--config", recipe, "--dry-run") == 0
    words = capsys.readouterr().out
    assert "pairs per step  4" in words and "none: random batches" in words
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize("words", [[], ["--dry-run"]])
def test_a_run_that_is_there_is_refused_before_its_clusters_are_replaced(recipe, tmp_path, capsys, monkeypatch, words):
    monkeypatch.setattr(recipes, "open_for_training", lambda *_, **__: pytest.fail("went on"))
    (tmp_path / "run" / "checkpoint-1").mkdir(parents=True)
    assert run("--config", recipe, *words) == 1
    assert "resume it, or choose another output directory" in capsys.readouterr().err


def test_a_dry_run_can_ask_for_the_run_that_goes_on(recipe, monkeypatch):
    asked = []
    monkeypatch.setattr(recipes, "prepare", lambda *_, resume, **__: asked.append(resume) or pytest.fail("enough"))
    with pytest.raises(pytest.fail.Exception):
        main(["train", "--config", str(recipe), "--dry-run", "--resume"])
    assert asked == [True]


def test_a_stopped_run_says_how_it_goes_on(recipe, capsys, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes, "train", stop)
    assert run("--config", recipe) == 130
    assert "--resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "training.max_step=3"], "did you mean training.max_steps?"),
        (["--clusters", "nowhere"], "hf-mmembed mine"),
        (["--data", "nowhere/at/all"], "nowhere/at/all"),
    ],
)
def test_errors_are_one_line(recipe, capsys, words, message):
    assert run("--config", recipe, *words) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_wrong_usage_is_code_two(recipe, capsys):
    assert run("--config", recipe, "--set", "no-equals-sign") == 2
    assert run("--config", recipe, "--set", "training.seed=[") == 2
