"""The experiment on stage 1 in miniature, and its cheap losses."""

from __future__ import annotations

import pytest
import torch

from hf_mmembed.bench.distillation import DistillationPlan, markdown, run_distillation
from hf_mmembed.distillation.loss import SimilarityDistillationLoss
from hf_mmembed.distillation.student import open_student
from hf_mmembed.distillation.teacher import embed_with_teacher
from hf_mmembed.distillation.trainer import DistillationArguments
from hf_mmembed.tiny.lean_training import OnePassDistillationLoss, make_lean_loss
from hf_mmembed.tiny.sentences import draw_sentences
from hf_mmembed.training.arguments import SaHaTrainingArguments
from hf_mmembed.training.choices import make_loss
from tests.distillation.conftest import TEACHER, teacher  # noqa: F401
from tests.training.test_losses import batch_of
from tests.training.test_soft_labels import judged


def test_sentences_are_drawn_once_and_for_all():
    pairs = draw_sentences(0, pairs=3)
    assert pairs["query_text"][:] == draw_sentences(0, pairs=3)["query_text"][:]
    assert pairs["query_text"][:] != draw_sentences(1, pairs=3)["query_text"][:]


def test_before_and_after(embedder, tmp_path):
    plan = DistillationPlan(str(embedder("qwen2_vl")), str(TEACHER), steps=2, batch=4, pairs=8, candidates=10)
    results = run_distillation(tmp_path, plan, range(2))
    assert [run["seed"] for run in results] == [None, 0, 1]
    assert all(-100 <= value <= 100 for run in results for value in run["scores"].values())
    assert results[0]["scores"] != results[1]["scores"]
    table = markdown(results, plan)
    assert table.count("±") == 4 and "seeds 0, 1" in table
    # What is done is not done again.
    for path in (tmp_path / "runs").iterdir():
        path.write_text(path.read_text().replace("}", "} "))
    again = run_distillation(tmp_path, plan, range(2))
    assert again == results and all("} " in path.read_text() for path in (tmp_path / "runs").iterdir())
    with pytest.raises(ValueError, match="another plan"):
        run_distillation(tmp_path, DistillationPlan("other", str(TEACHER)), range(1))


def test_one_pass_computes_the_same(embedder, teacher, tmp_path):  # noqa: F811
    pairs = draw_sentences(0, pairs=6)
    args = DistillationArguments(str(tmp_path), lora_dropout=0.0, report_to="none", use_cpu=True)
    student = open_student(embedder("qwen2_vl"), args)
    found = embed_with_teacher(pairs, teacher, tmp_path / "teacher")
    batch = batch_of(pairs)
    values = [
        float(kind(student, found, mini_batch_size=4)(batch["sides"], batch["facts"]))
        for kind in (SimilarityDistillationLoss, OnePassDistillationLoss)
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-4)


@pytest.mark.parametrize("loss", ["infonce", "in-batch-hard-negatives", "soft-labels"])
def test_every_loss_has_a_cheap_one(loss, embedder, tmp_path):
    from hf_mmembed import MMEmbedder

    pairs = judged(6)
    args = SaHaTrainingArguments(
        str(tmp_path), loss=loss, hard_negatives=2, global_batch_size=6, temperature=0.1, use_cpu=True
    )
    model = MMEmbedder(str(embedder("qwen2_vl")), device="cpu")
    batch = batch_of(pairs)
    with torch.no_grad():
        cheap = make_lean_loss(model, args, pairs)(batch["sides"], batch["facts"])
    ordinary = make_loss(model, args, pairs)(batch["sides"], batch["facts"])
    assert float(cheap) == pytest.approx(float(ordinary), rel=1e-4)
