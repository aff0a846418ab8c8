"""Ties, and the measures against brute force and against pytrec_eval's own ranking."""

from __future__ import annotations

import math

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st

from hf_mmembed.evaluation.ranking import dot, measure, rank

GRADES = st.lists(st.integers(0, 3), min_size=2, max_size=30).filter(any)


def ranked_by_hand(scores, grades):
    """A relevant candidate stands after every other one of its score or a better one."""
    return sorted(range(len(scores)), key=lambda place: (-scores[place], grades[place], place))


@given(GRADES, st.data())
def test_a_relevant_candidate_never_wins_a_tie(grades, data):
    few = st.sampled_from([0.25, 0.5, 0.75])
    scores = np.array(data.draw(st.lists(few, min_size=len(grades), max_size=len(grades))), np.float32)
    assert rank(scores, np.array(grades)).tolist() == ranked_by_hand(scores, grades)[:20]


def test_legacy_ranks_as_the_official_codes():
    scores = np.array([0.5, 0.7, 0.7, 0.5, 0.7], np.float32)
    gold_first = np.array([0, 1, 0, 0, 0])
    assert rank(scores, gold_first, "legacy")[0] == np.argmax(scores) == 1
    assert rank(scores, gold_first)[0] == 2
    many = np.random.default_rng(0).integers(0, 4, 300).astype(np.float32)
    official = np.argsort(-many)[:20]
    assert rank(many, np.zeros(300, int), "legacy", legacy="quicksort").tolist() == official.tolist()


@given(GRADES, st.randoms(use_true_random=False))
def test_measures_against_brute_force(grades, random):
    order = list(range(len(grades)))
    random.shuffle(order)
    names = [f"d{place}" for place in order]
    means, hits = measure([names[:20]], [{f"d{place}": grade for place, grade in enumerate(grades) if grade}])
    for k in (1, 5, 10):
        assert means[f"hit@{k}"] == any(grades[place] for place in order[:k])
    gain = math.fsum(grades[place] / math.log2(rank + 2) for rank, place in enumerate(order[:5]))
    ideal = math.fsum(grade / math.log2(rank + 2) for rank, grade in enumerate(sorted(grades, reverse=True)[:5]))
    assert means["ndcg_linear@5"] == pytest.approx(gain / ideal, abs=1e-12)
    assert hits == [means["hit@1"]]


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_pytrec_eval_on_random_runs_with_ties(seed):
    # pytrec_eval breaks ties by name, descending: named so that relevant candidates come last, that is our rule.
    random = np.random.default_rng(seed)
    scores = random.integers(0, 12, (50, 40)).astype(np.float32) / 12
    grades = random.integers(0, 3, (50, 40)) * (random.random((50, 40)) < 0.15)
    grades[:, 0] = 1
    name = [[f"{2 - grade}-{99 - place:02}" for place, grade in enumerate(row)] for row in grades.tolist()]
    run = {str(q): dict(zip(name[q], scores[q].tolist(), strict=True)) for q in range(50)}
    qrels = {str(q): {n: g for n, g in zip(name[q], grades[q].tolist(), strict=True) if g} for q in range(50)}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {"success.1,5,10", "ndcg_cut.5"}).evaluate(run)
    rankings = [[name[q][place] for place in rank(scores[q], grades[q])] for q in range(50)]
    means, _ = measure(rankings, [qrels[str(q)] for q in range(50)])
    for ours, key in (("hit@1", "success_1"), ("hit@10", "success_10"), ("ndcg_linear@5", "ndcg_cut_5")):
        assert means[ours] == pytest.approx(np.mean([row[key] for row in theirs.values()]), abs=1e-12)


@pytest.mark.parametrize("grades", [{}, {"a": 0}], ids=str)
def test_a_query_without_relevant_candidates_has_no_score(grades):
    with pytest.raises(ValueError, match="query 1 has no relevant"):
        measure([["a"], ["a"]], [{"a": 1}, grades])


def test_equal_vectors_score_equal_wherever_they_stand():
    random = np.random.default_rng(1)
    queries = random.standard_normal((9, 101)).astype(np.float32)
    candidate = random.standard_normal(101).astype(np.float32)
    for count in (2, 7, 33, 64):
        scores = dot(queries, np.tile(candidate, (count, 1)))
        assert (scores == scores[:, :1]).all()
