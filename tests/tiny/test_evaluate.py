"""The test sets are reproducible and the scores are what a brute force would give."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from hf_mmembed.cli.main import app
from hf_mmembed.data.scenes import random_scene, relation, split_of
from hf_mmembed.tiny import generative_path
from hf_mmembed.tiny.evaluate import markdown, recall
from hf_mmembed.tiny.probe import probe
from hf_mmembed.tiny.testset import CHANGES, build_testset, changed


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 8), st.integers(0, 99))
def test_recall_equals_a_brute_force_that_ranks_ties_before_the_right_one(
    queries: int, more: int, k: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, (queries, queries + more)).astype(np.float32)
    hits = 0
    for row in range(queries):
        worst_first = sorted(range(queries + more), key=lambda d: (-scores[row, d], d == row))
        hits += worst_first.index(row) < k
    assert recall(scores, k) == pytest.approx(100 * hits / queries)


def test_a_test_set_is_reproducible() -> None:
    first, again, other = (build_testset(seed, candidates=12, small=3) for seed in (0, 0, 1))
    assert first.captions == again.captions != other.captions
    assert [p.tobytes() for p in first.pictures] == [p.tobytes() for p in again.pictures]
    assert len(first.composed) == 6 and set(first.pairs) == set(CHANGES)
    assert all(pair.true != pair.false for pairs in first.pairs.values() for pair in pairs)


def test_changes_do_what_they_are_called() -> None:
    rng = Random(0)
    scene = random_scene(rng, "test", {"two": 1})
    first, second = scene.shapes
    assert relation(*changed(scene, "replace_relation", rng).shapes) != relation(first, second)
    swapped = changed(scene, "swap_attribute", rng).shapes
    assert (swapped[0].color, swapped[1].color) == (second.color, first.color)
    assert swapped[0].shape == first.shape
    assert split_of(scene) == "test"


def test_a_probe_reports_every_possible_topic_with_its_guess_rate(model, tokenizer) -> None:  # type: ignore[no-untyped-def]
    found = probe(model, tokenizer, "one", questions=6)
    assert {row.topic for row in found} == {"color", "shape", "size", "fill", "background", "count", "exists"}
    assert all(0 <= row.right <= 100 and 0 < row.guess <= 100 and row.questions == 6 for row in found)
    assert next(row.guess for row in found if row.topic == "count") == 100


def test_the_tables_show_mean_and_spread() -> None:
    results = {
        "zero_shot": {
            "final": {"a": [{"R@1": 10.0}, {"R@1": 20.0}], "b": [{"R@1": 1.0}, {"R@1": 1.0}]},
            "pre_mlp": {"a": [{"R@1": 30.0}, {"R@1": 30.0}], "b": [{"R@1": 2.0}, {"R@1": 2.0}]},
        },
        "answers": [{"kind": "one", "topic": "related_shape", "right": 50.0, "guess": 12.5, "questions": 8}],
        "seeds": [0, 1],
        "candidates": 7,
        "machine": "x",
    }
    text = markdown(results)
    assert "| final, % | a | b |\n|---|---:|---:|\n| R@1 | 15.0 ± 7.1 | 1.0 ± 0.0 |\n\n" in text
    assert "| pre_mlp, % | a | b |\n|---|---:|---:|\n| R@1 | 30.0 ± 0.0 | 2.0 ± 0.0 |\n\n" in text
    assert "| one | related shape | 50.0 | 12.5 | 8 |" in text


@pytest.mark.parametrize("words", [[], ["mmembed-tiny"]])
def test_the_command_measures_the_shipped_model_by_name(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[object] = []

    def stand_in(generative: object, **options: object) -> dict[str, object]:
        measured.append(generative)
        return {
            "zero_shot": {"final": {"a": [{"R@1": 1.0}]}},
            "answers": [],
            "seeds": [0],
            "candidates": 10,
            "machine": "x",
        }

    monkeypatch.setattr("hf_mmembed.tiny.evaluate.evaluate", stand_in)
    assert CliRunner().invoke(app, ["tiny", "evaluate", *words]).exit_code == 0
    assert measured == [generative_path()]
