"""From a multimodal LLM and a real teacher to the start of stage 2."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from hf_mmembed import MMEmbedder
from hf_mmembed.distillation import (
    DistillationArguments,
    DistillationRecipe,
    distill,
    load_distillation_recipe,
    open_student,
    prepare_distillation,
)
from hf_mmembed.distillation.student import set_vision_aside
from hf_mmembed.distillation.trainer import DistillationTrainer
from hf_mmembed.model.presets import PRESETS
from hf_mmembed.training.models import save_embedder
from tests.distillation.conftest import TEACHER
from tests.forks import in_processes
from tests.tiny_families import FAMILIES


def arguments(directory, **options):
    return DistillationArguments(str(directory), use_cpu=True, report_to="none", **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_need_no_vision_tower(family, fresh):
    model = fresh(family)
    before = model.encode(["a red circle", "two"], convert_to_tensor=True)
    gone = set_vision_aside(model)
    assert gone and not any("vision" in name or "visual" in name for name, _ in model.named_parameters())
    assert torch.equal(model.encode(["a red circle", "two"], convert_to_tensor=True), before)
    with pytest.raises((RuntimeError, AttributeError, ValueError)):
        model.encode([Image.new("RGB", (32, 32))])


def test_only_the_language_model_is_there_and_only_its_adapter_trains(generative, tmp_path):
    student = open_student(generative("qwen2_vl"), arguments(tmp_path))
    names = [name for name, _ in student.named_parameters()]
    assert names and all("language_model" in name for name in names)
    trained = {name: p for name, p in student.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    assert {p.shape[0] for name, p in trained.items() if "lora_A" in name} == {32}
    assert student.processor.prompt == PRESETS["unime"]
    with pytest.raises(RuntimeError, match="visual was set aside"):
        student.transformers_model.backbone.visual(None)


def test_four_bits_need_bitsandbytes(generative, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_mmembed.distillation.student.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install bitsandbytes"):
        open_student(generative("qwen2_vl"), arguments(tmp_path), load_in_4bit=True)


def test_a_batch_in_parts_is_whole_in_the_loss(tmp_path):
    args = arguments(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=3)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (12, 1)
    args = arguments(tmp_path, global_batch_size=12, gradient_accumulation_steps=3)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (12, 1)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"lora_rank": 0}, "lora_rank is 0"),
        ({"direction": "x"}, "direction is 'x'"),
        ({"diagonal": "x"}, "diagonal is 'x'"),
    ],
)
def test_options_that_do_not_fit(tmp_path, option, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **option)


@pytest.mark.parametrize("load_in_4bit", [False, True])
def test_distilled_killed_resumed_and_opened(generative, pairs, tmp_path, load_in_4bit):
    recipe = DistillationRecipe(
        str(generative("qwen2_vl")), str(TEACHER), {}, str(tmp_path / "run"), load_in_4bit=load_in_4bit,
        training={"use_cpu": True, "report_to": "none", "global_batch_size": 5, "max_steps": 4, "save_steps": 2,
                  "logging_steps": 1, "learning_rate": 1e-2, "warmup_steps": 0, "lora_dropout": 0.0},
    )  # fmt: skip
    whole = distill(recipe, pairs=pairs)
    base = MMEmbedder(str(tmp_path / "run" / "embedder"), device="cpu")
    model = MMEmbedder(str(whole), device="cpu")
    before, after = base.state_dict(), model.state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("language_model" in name for name in changed)
    picture = Image.new("RGB", (32, 32), "red")
    assert model.encode([picture]).shape == base.encode([picture]).shape
    assert model.processor.prompt == PRESETS["unime"]
    record = (whole / "recipe.yaml").read_text()
    assert "teacher: model" in record and "learning_rate: 0.01" in record  # what was asked for, without paths
    # The same from the checkpoint in the middle, with the teacher's vectors from the disk.
    trainer = prepare_distillation(recipe, pairs=pairs)
    layers = {type(m.base_layer).__name__ for m in trainer.model.modules() if hasattr(m, "base_layer")}
    assert (layers == {"Linear4bit"}) is load_in_4bit
    trainer.train(str(tmp_path / "run" / "checkpoint-2"))
    kept = json.loads((tmp_path / "run" / "run.json").read_text())["depends_on"]
    assert kept == trainer.facts and kept["teacher"] == trainer.teacher.made_by
    resumed = trainer.save_result(tmp_path / "resumed")
    for name, weight in MMEmbedder(str(resumed), device="cpu").state_dict().items():
        torch.testing.assert_close(weight, after[name], rtol=0, atol=1e-6, msg=name)
    losses = [entry for entry in trainer.state.log_history if "agreement" in entry]
    assert len(losses) >= 2 and losses[-1]["loss"] < trainer.state.log_history[0]["loss"]


def test_a_student_over_a_base_in_bfloat16_is_resumed_without_rounding(embedder, tmp_path):
    weights = []
    for _ in range(2):
        student = open_student(embedder("qwen2_vl", dtype="bfloat16"), arguments(tmp_path))
        weights.append({name: p for name, p in student.named_parameters() if p.requires_grad})
        if len(weights) == 1:
            for weight in weights[0].values():
                weight.data += 1e-4 * torch.rand_like(weight)
            save_embedder(student, tmp_path / "checkpoint")
    DistillationTrainer._load_from_checkpoint(SimpleNamespace(model=student), str(tmp_path / "checkpoint"))
    for name, weight in weights[0].items():
        assert torch.equal(weights[1][name], weight), name


def _rank_distilled(rank, recipe, pairs):
    return distill(recipe, pairs=pairs)


def test_two_processes_distil_as_one(generative, pairs, tmp_path):
    """Conversion, the teacher's embeddings, batches and loss are shared, and the first process writes the result."""

    def recipe(name):
        return DistillationRecipe(
            str(generative("qwen2_vl")), str(TEACHER), {}, str(tmp_path / name),
            training={"use_cpu": True, "report_to": "none", "global_batch_size": 4, "max_steps": 1, "optim": "sgd",
                      "learning_rate": 0.5, "warmup_steps": 0, "lora_dropout": 0.0, "save_strategy": "no"},
        )  # fmt: skip

    pairs = pairs.select(range(4))  # one process and two see the same batches
    one = distill(recipe("one"), pairs=pairs)
    two, same = in_processes(_rank_distilled, recipe("two"), pairs, store=tmp_path / "store")
    assert two == same == tmp_path / "two" / "model"
    start, alone, together = (
        MMEmbedder(str(path), device="cpu").state_dict() for path in (tmp_path / "one" / "embedder", one, two)
    )
    assert any((alone[name] - weight).abs().max() > 1e-3 for name, weight in start.items())
    for name, weight in alone.items():
        torch.testing.assert_close(together[name], weight, rtol=1e-4, atol=1e-5, msg=name)


def test_a_recipe_without_a_first_stage_says_so():
    with pytest.raises(ValueError, match="has no part `distillation`"):
        load_distillation_recipe("unime-v2-qwen2-vl-2b")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"techer": "x"}, "unknown key distillation.techer; did you mean distillation.teacher?"),
        ({"training.loss": "infonce"}, "unknown key distillation.training.loss"),
        ({"teacher": None}, "lacks distillation.teacher"),
        ({"data": "sentences.txt"}, "distillation.data is 'sentences.txt'; it must be a mapping"),
        ({"data": {"colum": "text"}}, "unknown key distillation.data.colum; did you mean distillation.data.column?"),
        ({"data": {"column": "text"}}, "lacks distillation.data.source"),
        ({"training.max_steps": "many"}, "distillation.training.max_steps is 'many'; it must be int"),
    ],
)
def test_a_wrong_part_says_what_is_wrong(overrides, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        load_distillation_recipe("unime-tiny", overrides)
