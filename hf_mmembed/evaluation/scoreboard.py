"""Averages over data sets: flat, as the leaderboard does, and macro over meta-tasks, each under its own name.

In: scores by data set, as in a results file. Out: means, only where every data set that belongs to one is there: a
partial run has no overall. Published tables mix the two averages; the same scores differ by up to three points.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .subsets import MMEB_V1, MMEB_V2, OLD_SPLITS, SUGARCREPE, SUGARCREPE_PP, Subset

__all__ = ["MACRO", "OVERALL", "Mean", "aggregate", "measures_of", "read_results", "score_of", "subsets_of"]

OVERALL = "overall (flat mean over data sets)"
MACRO = "macro mean over meta-tasks"

_SUBSETS = {"mmeb-v1": MMEB_V1, "mmeb-v2": MMEB_V2, "sugarcrepe": SUGARCREPE, "sugarcrepe-pp": SUGARCREPE_PP}


@dataclass(frozen=True)
class Mean:
    """A mean over data sets; `value` is None when some of them have no score."""

    value: float | None
    present: int
    expected: int
    missing: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.value is None:
            return f"partial ({self.present} of {self.expected})"
        return f"{100 * self.value:.2f}"


def aggregate(
    metrics: Mapping[str, Mapping[str, Any]], subsets: Sequence[Subset], measure: str | None = None
) -> dict[str, Mean]:
    """All means of a set of scores: by modality, meta-task and distribution, then overall.

    Args:
        metrics: Scores by modality and data set, as in a results file. What is no number counts as missing.
        subsets: The data sets that make a complete run.
        measure: Which score. Defaults to the one that counts for each data set.

    Raises:
        ValueError: A score is NaN or infinite.
    """
    scores = {subset.name: score_of(metrics, subset, measure) for subset in subsets}
    groups: dict[str, list[Subset]] = {}
    several = len({subset.modality for subset in subsets}) > 1
    for subset in subsets:
        for group in (subset.modality if several else None, subset.meta_task, subset.distribution):
            if group is not None:
                groups.setdefault(group, []).append(subset)
    order = [*dict.fromkeys(s.modality for s in subsets), *dict.fromkeys(s.meta_task for s in subsets), "IND", "OOD"]
    if several:  # in or out of distribution is told of images alone
        order = order[:-2]
    means = {group: _mean(groups[group], scores) for group in order if group in groups}
    means[OVERALL] = _mean(subsets, scores)
    by_task = [means[name] for name in dict.fromkeys(subset.meta_task for subset in subsets)]
    values = [mean.value for mean in by_task if mean.value is not None]
    complete = len(values) == len(by_task)
    means[MACRO] = Mean(math.fsum(values) / len(values) if complete else None, len(values), len(by_task))
    return means


def _mean(subsets: Sequence[Subset], scores: Mapping[str, float | None]) -> Mean:
    found = [score for subset in subsets if (score := scores[subset.name]) is not None]
    missing = tuple(subset.name for subset in subsets if scores[subset.name] is None)
    return Mean(None if missing else math.fsum(found) / len(found), len(found), len(subsets), missing)


def score_of(metrics: Mapping[str, Mapping[str, Any]], subset: Subset, measure: str | None = None) -> float | None:
    """The score of a data set, a fraction; None where there is none. Labels old and mended fill the same place.

    Raises:
        ValueError: It is NaN or infinite.
    """
    found = metrics.get(subset.modality, {})
    for name in (subset.name, OLD_SPLITS.get(subset.name, subset.name)):
        row = found.get(name)
        if isinstance(row, Mapping) and isinstance(score := row.get(measure or subset.metric), (int, float)):
            if not math.isfinite(score):
                raise ValueError(f"the score of {name} is {score}")
            return float(score)
    return None


def measures_of(benchmark: str) -> tuple[str | None, ...]:
    """The measures to average; None stands for the one that counts for each data set."""
    return {"sugarcrepe-pp": ("itt", "tot"), "retrieval": ("hit@1", "hit@5", "hit@10")}.get(benchmark, (None,))


def subsets_of(results: Mapping[str, Any]) -> tuple[Subset, ...]:
    """The data sets that make a results file complete.

    A file of ours says so. Another one is taken for one of the leaderboard, whose 78 are those of MMEB-V2.
    """
    metadata = results["metadata"]
    if "subsets" in metadata:
        return tuple(Subset(**row) for row in metadata["subsets"])
    return _SUBSETS.get(metadata.get("benchmark", ""), MMEB_V2)


def read_results(file: Path) -> dict[str, Any]:
    """A results file: ours, or one of the leaderboard.

    Raises:
        ValueError: It is no such file.
    """
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {file}: {error}") from error
    if not isinstance(results, dict) or not isinstance(results.get("metrics"), dict):
        raise ValueError(f"{file} is no results file: it has no object 'metrics' with scores by modality and data set")
    if not all(isinstance(rows, dict) for rows in results["metrics"].values()):
        raise ValueError(f"{file} is no results file: its 'metrics' are not grouped by modality")
    results.setdefault("metadata", {})
    return results
