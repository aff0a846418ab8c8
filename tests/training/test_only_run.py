"""Two trainings never write into one directory."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from hf_mmembed.distillation import recipes as distillation
from hf_mmembed.distillation.recipes import DistillationRecipe
from hf_mmembed.lock import only_writer
from hf_mmembed.thinking import recipes as thinking
from hf_mmembed.training import recipes
from hf_mmembed.training.trainer import SaHaTrainer
from tests.holding import is_held
from tests.training.conftest import make_pairs
from tests.training.runs import arguments


def test_training_where_another_run_writes_is_refused(embedder, tmp_path):
    trainer = SaHaTrainer(embedder("qwen2_vl"), arguments(tmp_path, max_steps=1), make_pairs())
    with only_writer(tmp_path), pytest.raises(ValueError, match=f"another process is writing to {tmp_path}"):
        trainer.train()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize("command", ["train", "distill", "think-train"])
def test_a_recipe_holds_its_output_until_the_result_is_saved(monkeypatch, tmp_path, command):
    """Or another run would begin between the last step and the result."""
    held = []

    def watched(*_):
        held.append(is_held(tmp_path))
        return tmp_path / "model"

    trainer = SimpleNamespace(train=watched, save_result=watched)
    for place, name in ((recipes, "prepare"), (distillation, "prepare_distillation"), (thinking, "traced_trainer")):
        monkeypatch.setattr(place, name, lambda *_, **__: trainer)
    options = {"model": "x", "data": {"source": "y"}, "output": str(tmp_path)}
    if command == "train":
        recipes.train(recipes.Recipe(**options), pairs=make_pairs(1))
    elif command == "distill":
        distillation.distill(DistillationRecipe(teacher="z", **options), pairs=make_pairs(1))
    else:
        (tmp_path / "t.sqlite").touch()
        recipe = thinking.ThinkingRecipe(variant="embedder", traces=str(tmp_path / "t.sqlite"), **options)
        thinking.train_thinking(recipe, pairs=make_pairs(1))
    assert held == [True, True] and not is_held(tmp_path)


@pytest.mark.parametrize("command", ["train", "distill", "think-train"])
def test_where_another_run_writes_nothing_is_prepared(monkeypatch, tmp_path, command):
    """Conversion, mining and a fresh head replace what the other run reads."""
    options = {"model": "x", "data": {"source": "y"}, "output": str(tmp_path / "run")}
    prepared = []
    for place, name in (
        (recipes, "open_for_training"), (distillation, "open_teacher"), (thinking, "_untrained"),
    ):  # fmt: skip
        monkeypatch.setattr(place, name, lambda *_, **__: prepared.append(1))
    (tmp_path / "run").mkdir()
    (tmp_path / "t.sqlite").touch()
    with only_writer(tmp_path / "run"), pytest.raises(ValueError, match="another process is writing to"):
        if command == "train":
            recipes.train(recipes.Recipe(**options), pairs=make_pairs(1))
        elif command == "distill":
            distillation.distill(DistillationRecipe(teacher="z", **options), pairs=make_pairs(1))
        else:
            recipe = thinking.ThinkingRecipe(variant="unified", traces=str(tmp_path / "t.sqlite"), **options)
            thinking.train_thinking(recipe, pairs=make_pairs(1))
    assert not prepared
