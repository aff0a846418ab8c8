"""What a data set asks of a model: to rank candidates (`Ranking`), or to prefer one pair to another (`Comparisons`).

In: the items of a data set and, later, their embeddings. Out: scores between 0 and 1, and what was decided for each
query. Items of equal content are one: a candidate that is the gold under another name is the gold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .items import Item
from .ranking import Sort, Tie, dot, measure, rank

__all__ = ["Comparisons", "Ranking", "Scored", "Task"]

_BLOCK = 256  # queries scored at once: with 30,000 candidates, 60 MB of scores


@dataclass(frozen=True)
class Scored:
    """The outcome of a data set: measures by name, and one row per query for the file of predictions."""

    metrics: dict[str, float]
    predictions: list[dict[str, Any]]


class Task(Protocol):
    """A data set that has been read.

    Attributes:
        items: Everything to embed.
        notes: What the score depends on beyond the model, for the record: rows, frames, split.
    """

    @property
    def notes(self) -> dict[str, Any]:
        """See above."""
        ...

    @property
    def items(self) -> list[Item]:
        """See above."""
        ...

    def score(self, vectors: NDArray[np.float32], places: NDArray[np.int64], tie: Tie) -> Scored:
        """Scores the embeddings.

        Args:
            vectors: One unit vector for each distinct content, ``(contents, dim)``.
            places: Which of them belongs to each item, ``(items,)``.
            tie: What a tie means; see `hf_mmembed.evaluation.ranking`.
        """
        ...


@dataclass(frozen=True)
class Ranking:
    """Every query ranks candidates, its own or all of them.

    Attributes:
        queries: One item per query.
        candidates: All candidates.
        relevance: For each query, the grade of each relevant candidate, by its place in `candidates`.
        pools: For each query, the places of its candidates in the official order; None: every query ranks all.
        legacy: The sort of the official code, for ``tie="legacy"``.
    """

    queries: Sequence[Item]
    candidates: Sequence[Item]
    relevance: Sequence[Mapping[int, int]]
    pools: Sequence[Sequence[int]] | None = None
    legacy: Sort = "stable"
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def items(self) -> list[Item]:
        """Queries, then candidates."""
        return [*self.queries, *self.candidates]

    def score(self, vectors: NDArray[np.float32], places: NDArray[np.int64], tie: Tie) -> Scored:
        """``hit@k`` and ``ndcg_linear@5`` of the rankings; see `Task`."""
        asked, offered = places[: len(self.queries)], places[len(self.queries) :]
        grades = [_by_content(relevant, offered) for relevant in self.relevance]
        best = [
            _best(scores, contents, row, tie, self.legacy)
            for (scores, contents), row in zip(self._scores(vectors, asked, offered), grades, strict=True)
        ]
        rankings = [[str(content) for content in contents] for contents, _ in best]
        metrics, hits = measure(rankings, [{str(c): grade for c, grade in row.items()} for row in grades])
        name_of = {content: str(item) for content, item in zip(offered.tolist(), self.candidates, strict=True)}
        predictions = [
            {
                "query": str(query),
                "hit@1": hit,
                "relevant": [name_of[content] for content in row],
                "candidates": [name_of[content] for content in contents],
                "scores": [round(score, 6) for score in scores],
            }
            for query, hit, row, (contents, scores) in zip(self.queries, hits, grades, best, strict=True)
        ]
        return Scored({**metrics, "num_pred": len(rankings), "num_data": len(self.queries)}, predictions)

    def _scores(
        self, vectors: NDArray[np.float32], asked: NDArray[np.int64], offered: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """For each query, the scores of its distinct candidates ``(candidates,)``, and which contents these are."""
        if self.pools is not None:
            for query, pool in zip(asked, self.pools, strict=True):
                contents = _distinct(offered[np.asarray(pool)])
                yield dot(vectors[query][None], vectors[contents])[0], contents
            return
        contents = _distinct(offered)
        for start in range(0, len(asked), _BLOCK):
            for scores in dot(vectors[asked[start : start + _BLOCK]], vectors[contents]):
                yield scores, contents


def _distinct(contents: NDArray[np.int64]) -> NDArray[np.int64]:
    """In the order of the candidates, which decides ties in the official codes."""
    return np.array(list(dict.fromkeys(contents.tolist())))


def _by_content(relevant: Mapping[int, int], offered: NDArray[np.int64]) -> dict[int, int]:
    grades: dict[int, int] = {}
    for candidate, grade in relevant.items():
        content = int(offered[candidate])
        grades[content] = max(grade, grades.get(content, 0))
    return grades


def _best(
    scores: NDArray[np.float32], contents: NDArray[np.int64], grades: Mapping[int, int], tie: Tie, legacy: Sort
) -> tuple[list[int], list[float]]:
    relevant = np.array([grades.get(content, 0) for content in contents.tolist()])
    order = rank(scores, relevant, tie, legacy=legacy)
    return contents[order].tolist(), scores[order].tolist()


@dataclass(frozen=True)
class Comparisons:
    """Every row is right when all its comparisons ``similarity(a, b) > similarity(c, d)`` hold, strictly.

    Similarities are compared as float32; a tie is wrong, also in the official code, so that `tie` changes nothing.

    Attributes:
        things: All items.
        rows: For each measure, one list of comparisons ``(a, b, c, d)`` per row, by place in `things`.
    """

    things: Sequence[Item]
    rows: Mapping[str, Sequence[Sequence[tuple[int, int, int, int]]]]
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def items(self) -> list[Item]:
        """All of `things`."""
        return list(self.things)

    def score(self, vectors: NDArray[np.float32], places: NDArray[np.int64], tie: Tie) -> Scored:
        """The share of rows that are right, for each measure; see `Task`."""
        metrics: dict[str, float] = {}
        decided: dict[str, NDArray[np.bool_]] = {}
        for name, rows in self.rows.items():
            quadruples = places[np.array([comparison for row in rows for comparison in row]).reshape(-1, 4)]
            a, b, c, d = (vectors[column].astype(np.float64) for column in quadruples.T)
            won = (a * b).sum(1).astype(np.float32) > (c * d).sum(1).astype(np.float32)
            ends = np.cumsum([len(row) for row in rows])
            decided[name] = np.array([part.all() for part in np.split(won, ends[:-1])])
            metrics[name] = float(decided[name].mean())
        count = len(next(iter(decided.values())))
        subjects = [str(self.things[row[0][0]]) for row in next(iter(self.rows.values()))]
        predictions = [
            {"query": subject, **{name: bool(right[index]) for name, right in decided.items()}}
            for index, subject in enumerate(subjects)
        ]
        return Scored({**metrics, "num_pred": count, "num_data": count}, predictions)
