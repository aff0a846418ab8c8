"""What UniME's arms of the ablation start from, in miniature."""

from __future__ import annotations

import numpy as np

from hf_mmembed import MMEmbedder, tiny
from hf_mmembed.bench import unime
from hf_mmembed.judging import Judge
from hf_mmembed.tiny.pairs import draw_pairs
from hf_mmembed.tiny.truth import FIELDS
from hf_mmembed.training.soft_labels import SoftLabelLoss
from tests.distillation.conftest import TEACHER
from tests.training.conftest import make_pairs


def test_the_first_stage_is_made_once_per_folder(embedder, tmp_path, monkeypatch):
    start = str(embedder("qwen2_vl"))
    made = unime.first_stage(tmp_path, start, str(TEACHER), 0, steps=3, batch=4, pairs=8)
    before, after = (MMEmbedder(str(path), device="cpu").state_dict() for path in (start, made))
    changed = {name for name, weight in before.items() if not weight.equal(after[name])}
    assert changed and all("language_model" in name for name in changed)
    monkeypatch.setattr(unime, "train_once", None)
    assert unime.first_stage(tmp_path, start, str(TEACHER), 0, steps=3, batch=4, pairs=8) == made


def test_pairs_judged_by_the_model_itself_train_with_soft_labels(embedder, tmp_path):
    pairs, model = make_pairs(6), MMEmbedder(str(embedder("qwen2_vl")), device="cpu")
    judge = Judge(tiny.generative_path(), words=("yes", "no"), device="cpu")
    judged, rows = unime.judged(pairs, judge, model, tmp_path, model={"name": "m"}, rows=3, seed=0)
    assert len(rows) == 3 and np.all(np.diff(rows) > 0)
    assert judged["query_text"][:] == [pairs[row]["query_text"] for row in rows.tolist()]
    assert all(0 < score < 1 for score in judged["pos_score"])
    scores = SoftLabelLoss(model, judged)._scores
    assert [max(0, len(own) - 1) for own in scores] == [len(texts) for texts in judged["neg_text"]]


def test_the_scene_graphs_judge_by_the_facts(embedder, tmp_path):
    drawn = draw_pairs(0, families=2, pixels=16)
    model = MMEmbedder(str(embedder("qwen2_vl")), device="cpu")
    judge = unime.SceneJudge(drawn)
    judged, rows = unime.judged(drawn.pairs, judge, model, tmp_path, model={"name": "m"}, rows=20, seed=0)
    assert judged["pos_score"][:] == [1.0] * 20
    scores = [score for own in judged["neg_score"] for score in own]
    assert scores and set(scores) <= {0.5**facts for facts in range(1, FIELDS)}, "a true answer is no negative"
    documents = {row["pos_text"]: meaning for row, meaning in zip(drawn.pairs, drawn.documents, strict=True)}
    for row, texts, own in zip(rows, judged["neg_text"], judged["neg_score"], strict=True):
        for text, score in zip(texts, own, strict=True):
            if text:
                asked, said = drawn.queries[row], documents[text]
                differ = sum(a != b and -1 not in (a, b) for a, b in zip(asked, said, strict=True))
                assert score == 0.5**differ
