from __future__ import annotations

import pytest
import yaml

from hf_mmembed.cli.main import main
from hf_mmembed.cli.models import teacher
from tests.distillation.conftest import SENTENCES, TEACHER


@pytest.fixture
def recipe(generative, tmp_path):
    (tmp_path / "sentences.txt").write_text("\n".join(SENTENCES))
    values = {
        "model": str(generative("qwen2_vl")),
        "data": {"source": "of stage 2"},
        "output": str(tmp_path / "run"),
        "distillation": {
            "teacher": str(TEACHER),
            "data": {"source": str(tmp_path / "sentences.txt")},
            "training": {"use_cpu": True, "global_batch_size": 4, "max_steps": 1, "save_strategy": "no"},
        },
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def run(*words):
    with pytest.raises(SystemExit) as stop:
        main(["distill", *map(str, words)])
    return stop.value.code


def test_distils_and_says_where_the_result_is(recipe, tmp_path, capsys):
    assert run("--config", recipe) == 0
    assert f"wrote {tmp_path / 'run' / 'stage-1' / 'model'}" in capsys.readouterr().out
    assert (tmp_path / "run" / "stage-1" / "model" / "model.safetensors").is_file()


def test_dry_run_and_a_column_of_ones_own(recipe, tmp_path, capsys):
    (tmp_path / "own.csv").write_text("words\na disc\na box\na star\na dog\n")
    assert run("--config", recipe, "--dry-run", "--data", tmp_path / "own.csv", "--column", "words") == 0
    assert "pairs  2 in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "training.temperatur=3"], "did you mean distillation.training.temperature?"),
        (["--data", "nowhere.txt"], "no such input: nowhere.txt"),
    ],
)
def test_errors_are_one_line(recipe, capsys, words, message):
    assert run("--config", recipe, *words) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_the_packaged_teacher_stands_in_for_its_hub_id():
    assert teacher("sentence-transformers/all-MiniLM-L6-v2") == str(TEACHER)
    assert teacher("other/model") == "other/model"
