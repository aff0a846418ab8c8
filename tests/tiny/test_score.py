"""A model's scores on the drawn benchmark, as its card holds them."""

from __future__ import annotations

import json
import shutil

import pytest

from hf_mmembed.evaluation import OVERALL, aggregate, subsets_of
from hf_mmembed.tiny import score
from hf_mmembed.tiny.benchmark import draw_benchmark
from tests.evaluation import layouts


def test_scores_of_two_models_stand_beside_each_other(tmp_path, monkeypatch):
    drawn = tmp_path / "drawn"
    draw_benchmark(drawn, rows=4, candidates=4, pixels=64)
    guesser = layouts.guesser()
    monkeypatch.setattr(score, "load_encoder", lambda model, **options: guesser)
    scores = score.score_drawn("a-model", drawn, tmp_path / "scores.json")
    assert json.loads((tmp_path / "scores.json").read_text()) == scores
    assert list(scores) == ["mmeb-v1", "sugarcrepe", "sugarcrepe-pp"]
    # What the two SugarCrepes share is embedded once.
    assert len(guesser.seen) == len(set(map(layouts.digest, guesser.seen)))
    assert {results["metadata"]["reference_split"] for results in scores.values()} == {None}
    tables = score.tables({"one": scores, "other": scores}).splitlines()
    first = scores["mmeb-v1"]
    overall = 100 * aggregate(first["metrics"], subsets_of(first))[OVERALL].value
    assert f"| **{OVERALL}** | {overall:.1f} | {overall:.1f} |" in tables
    assert [line for line in tables if line.endswith("| one | other |")] == [
        "| drawn MMEB, hit@1, % | one | other |",
        "| drawn SugarCrepe, accuracy, % | one | other |",
        "| drawn SugarCrepe++, itt, % | one | other |",
        "| drawn SugarCrepe++, tot, % | one | other |",
    ]
    (drawn / "sugarcrepe" / "swap_att.json").write_text("{")
    with pytest.raises(ValueError, match="swap_att.*draw it again"):
        score.score_drawn("a-model", drawn, tmp_path / "scores.json")
    shutil.rmtree(drawn / "sugarcrepe")
    with pytest.raises(ValueError, match="no folder"):
        score.score_drawn("a-model", drawn, tmp_path / "scores.json")
