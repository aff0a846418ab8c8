"""Ranks candidates by score, says what a tie means, and measures the ranking with pytrec_eval.

In: scores of one query's candidates, shape ``(candidates,)``, and which of them are relevant. Out: the best candidates
in order, and ``hit@k`` and ``ndcg_linear@5`` over all queries.

**Ties.** Under ``"strict"``, the rule here, a relevant candidate never wins a tie: it ranks after every irrelevant one
of the same score. A model that embeds everything alike scores 0. Under ``"legacy"`` the ranking is that of the official
code: the order of the candidates decides, which in MMEB-V1 puts the gold first (``np.argmax``, gold at index 0), so that
the same model scores 100.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["CUTOFFS", "DEPTH", "Sort", "Tie", "dot", "measure", "rank"]

Tie = Literal["strict", "legacy"]
Sort = Literal["stable", "quicksort"]

DEPTH = 20
"""How much of a ranking is kept: enough for every measure here, and for the file of predictions."""

CUTOFFS = (1, 5, 10)


def dot(queries: NDArray[np.float32], candidates: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores ``(queries, candidates)`` of unit vectors, float32.

    Summed in float64, so that the same vector gets the same score wherever it stands in the matrix: float32 products
    round differently near its edges, which would break ties at random.
    """
    return (queries.astype(np.float64) @ candidates.astype(np.float64).T).astype(np.float32)


def rank(
    scores: NDArray[np.float32], relevant: NDArray[np.int64], tie: Tie = "strict", *, legacy: Sort = "stable"
) -> NDArray[np.int64]:
    """Places of the best `DEPTH` candidates, best first.

    Args:
        scores: ``(candidates,)``.
        relevant: ``(candidates,)``, the grade of each; 0 for an irrelevant one.
        tie: See above.
        legacy: The sort of the official code of this benchmark: ``np.argmax`` and `Sort` ``"stable"`` agree; MMEB-V2
            sorts with NumPy's default.

    Example:
        >>> tied, gold_first = np.array([0.5, 0.5], np.float32), np.array([1, 0])
        >>> rank(tied, gold_first).tolist(), rank(tied, gold_first, "legacy").tolist()
        ([1, 0], [0, 1])
    """
    if tie == "strict":
        return np.lexsort((relevant, -scores))[:DEPTH]
    return np.argsort(-scores, kind=legacy)[:DEPTH]


def measure(
    rankings: Sequence[Sequence[str]], relevance: Sequence[Mapping[str, int]]
) -> tuple[dict[str, float], list[float]]:
    """Means over the queries of ``hit@k`` and ``ndcg_linear@5``, and the ``hit@1`` of each query.

    ``hit@k`` is 1 where any relevant candidate is among the first k; with one relevant candidate it is recall@k and,
    for k = 1, precision@1. ``ndcg_linear@5`` gains the grade itself, and its ideal ranking holds all relevant ones.

    Args:
        rankings: Names of each query's best candidates, best first; `DEPTH` of them are enough.
        relevance: Grades of each query's relevant candidates, by name.

    Raises:
        ValueError: A query has no relevant candidate.
    """
    import pytrec_eval

    for index, grades in enumerate(relevance):
        if not any(grade > 0 for grade in grades.values()):
            raise ValueError(f"query {index} has no relevant candidate, so its score is not defined")
    # trec_eval sorts by score itself, and equal scores by name: the ranks are given as scores, so nothing ties.
    run = {
        str(query): {name: float(len(ranking) - place) for place, name in enumerate(ranking)}
        for query, ranking in enumerate(rankings)
    }
    grades_of = {str(query): dict(grades) for query, grades in enumerate(relevance)}
    cutoffs = ",".join(map(str, CUTOFFS))
    results = pytrec_eval.RelevanceEvaluator(grades_of, {f"success.{cutoffs}", "ndcg_cut.5"}).evaluate(run)
    ordered = [results[str(query)] for query in range(len(rankings))]
    means = {f"hit@{k}": float(np.mean([row[f"success_{k}"] for row in ordered])) for k in CUTOFFS}
    means["ndcg_linear@5"] = float(np.mean([row["ndcg_cut_5"] for row in ordered]))
    return means, [row["success_1"] for row in ordered]
