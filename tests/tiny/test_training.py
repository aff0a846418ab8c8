"""A short run trains, can be killed anywhere and goes on to the very same weights."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from hf_mmembed.lock import only_writer
from hf_mmembed.tiny import training
from hf_mmembed.tiny.batches import picture_batch, text_batch
from hf_mmembed.tiny.training import Recipe, train

RECIPE = Recipe(
    steps={"vision": 4, "naming": 2, "binding": 2, "mix": 4, "relations": 2, "review": 2},
    pictures=8,
    rows=3,
    images=4,
    probe_every=100,
    save_every=2,
)


@pytest.fixture(scope="module", autouse=True)
def small_tokenizer() -> Iterator[None]:
    build = training.build_tokenizer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "build_tokenizer", lambda seed: build(conversations=300, seed=seed))
        yield


@pytest.fixture
def threads_make_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting a process takes longer than these runs; the uninterrupted run below has a real one."""
    monkeypatch.setattr(training, "ProcessPoolExecutor", lambda workers, **_: ThreadPoolExecutor(workers))


class Killed(BaseException):
    """Stands for a signal: nothing catches it."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("whole"), RECIPE, threads=1, device="cpu")


@pytest.mark.usefixtures("threads_make_batches")
def test_a_killed_run_resumes_to_the_same_weights(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = training._Run._step
    taken = 0

    def step_until_killed(run, loss):  # type: ignore[no-untyped-def]
        nonlocal taken
        taken += 1
        if taken in (4, 10, 18):  # in vision, in binding, in relations
            raise Killed
        step(run, loss)

    monkeypatch.setattr(training._Run, "_step", step_until_killed)
    for _ in range(3):
        with pytest.raises(Killed):
            train(tmp_path / "cut", RECIPE, threads=1, device="cpu")
    resumed = load_file(train(tmp_path / "cut", RECIPE, threads=1, device="cpu") / "model.safetensors")
    uninterrupted = load_file(whole / "model.safetensors")
    assert taken > 18 and resumed.keys() == uninterrupted.keys()
    for name, tensor in uninterrupted.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=0, atol=0, msg=name)


def test_the_result_is_a_small_checkpoint_of_transformers(whole: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(whole)
    assert sum(p.numel() for p in model.parameters()) < 10_000_000
    assert (whole / "model.safetensors").stat().st_size < 20_000_000


def test_another_recipe_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps({"seed": 1}))
    with pytest.raises(ValueError, match="learning_rate.*seed"):
        train(tmp_path, RECIPE)


def test_where_another_process_trains_nothing_is_written(tmp_path: Path) -> None:
    with only_writer(tmp_path), pytest.raises(ValueError, match=f"another process is writing to {tmp_path}"):
        train(tmp_path, RECIPE, threads=1)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.usefixtures("threads_make_batches")
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_BLOCK", 2)
    monkeypatch.setattr(training._Run, "_learn_pictures", lambda run, batch: {"loss": float("nan"), "shape": 0.0})
    with pytest.raises(FloatingPointError, match="vision step 2"):
        train(tmp_path, RECIPE, threads=1)


def test_the_learning_rate_rises_with_a_fresh_optimizer_and_ends_near_zero(model, tokenizer, tmp_path) -> None:  # type: ignore[no-untyped-def]
    run = training._Run(tmp_path, Recipe(), tokenizer, model)

    def rate(stage: training.Stage, step: int) -> float:
        run.progress = training._Progress(stage=training.STAGES.index(stage), step=step)
        run._set_learning_rate()
        return run.optimizer.param_groups[0]["lr"] / run.recipe.learning_rate

    assert rate("naming", 0) == rate("vision", 0) == pytest.approx(1 / 60)
    assert rate("binding", 0) == rate("mix", 0) == 1.0
    assert rate("relations", 0) == pytest.approx(1 / 60) and rate("relations", 60) == rate("review", 0) == 1.0
    mix, review = (run.recipe.steps[stage] - 1 for stage in ("mix", "review"))
    assert rate("mix", mix) == pytest.approx(0.02, rel=0.01) == rate("review", review)


@pytest.mark.parametrize("stage", ["vision", "mix"])
def test_a_step_is_taken_where_the_model_lies(stage, model, tokenizer, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """The meta device stands for a GPU: it refuses what comes from the CPU, but has no values and no fused AdamW."""
    taken: list[torch.Tensor] = []
    monkeypatch.setattr(training._Run, "_optimizer", lambda run: None)
    monkeypatch.setattr(training._Run, "_step", lambda run, loss: (loss.backward(), taken.append(loss)))
    monkeypatch.setattr(torch.Tensor, "item", lambda tensor: 0.0)
    run = training._Run(tmp_path, RECIPE, tokenizer, copy.deepcopy(model).to("meta"))
    if stage == "vision":
        found = run._learn_pictures(picture_batch(0, 0, 8, 1.0))
    else:
        found = run._learn_text(text_batch(tokenizer, 0, 0, "mix", RECIPE.rows, RECIPE.images))
    assert found.keys() >= {"loss", "shape"}
    assert taken[0].device.type == "meta"
