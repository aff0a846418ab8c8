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

__all__ = [
    "MACRO",
    "OVERALL",
    "Column",
    "Mean",
    "aggregate",
    "columns",
    "found_score",
    "measures_of",
    "read_results",
    "score_of",
    "subsets_of",
    "visdoc_split",
]

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
        ValueError: A score is NaN, or no fraction.
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
    """The score of a data set, a fraction; None where there is none; see `found_score`.

    Raises:
        ValueError: It is NaN, or no fraction.
    """
    return found_score(metrics, subset, measure)[1]


def found_score(
    metrics: Mapping[str, Mapping[str, Any]], subset: Subset, measure: str | None = None
) -> tuple[str, float | None]:
    """The score of a data set with the name that it stands under; labels old and mended fill the same place.

    Raises:
        ValueError: It is NaN, or no fraction.

    Example:
        >>> pages = Subset("ViDoSeek-page-fixed", "visdoc", "VisDoc OOD", "ndcg_linear@5")
        >>> found_score({"visdoc": {"ViDoSeek-page": {"ndcg_linear@5": 0.2}}}, pages)
        ('ViDoSeek-page', 0.2)
    """
    found = metrics.get(subset.modality, {})
    for name in (subset.name, OLD_SPLITS.get(subset.name, subset.name)):
        row = found.get(name)
        score = row.get(measure or subset.metric) if isinstance(row, Mapping) else None
        if isinstance(score, (int, float)) and not isinstance(score, bool):
            if not 0 <= score <= 1:
                raise ValueError(f"the score of {name} is {score}; scores are fractions of 1")
            return name, float(score)
    return subset.name, None


@dataclass(frozen=True)
class Column:
    """Scores to be shown and averaged: their title, the scores by modality and data set, and the measure in them."""

    title: str
    metrics: Mapping[str, Mapping[str, Any]]
    measure: str | None


def columns(results: Mapping[str, Any]) -> list[Column]:
    """What a table of these results shows: each measure, and again as scored with thinking where that was done."""
    metrics, measures = results["metrics"], measures_of(results["metadata"].get("benchmark", ""))
    found = [Column(measure or "score", metrics, measure) for measure in measures]
    if results["metadata"].get("thinking"):
        thought = {
            modality: {name: row["thinking"] for name, row in rows.items() if "thinking" in row}
            for modality, rows in metrics.items()
        }
        found += [Column(f"{column.title} with thinking", thought, column.measure) for column in found]
    return found


def visdoc_split(metrics: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Which labels of the mended visual documents a score is on; None without such data sets.

    Example:
        >>> visdoc_split({"visdoc": {"ViDoSeek-page": {"ndcg_linear@5": 0.2}}})
        'old page labels'
    """
    pages = metrics.get("visdoc", {})
    kinds = [
        "page-fixed" if fixed in pages else "old page labels"
        for fixed, old in OLD_SPLITS.items()
        if {fixed, old} & set(pages)
    ]
    return " and ".join(dict.fromkeys(kinds)) or None


def measures_of(benchmark: str) -> tuple[str | None, ...]:
    """The measures to average; None stands for the one that counts for each data set."""
    return {"sugarcrepe-pp": ("itt", "tot"), "retrieval": ("hit@1", "hit@5", "hit@10")}.get(benchmark, (None,))


def subsets_of(results: Mapping[str, Any]) -> tuple[Subset, ...]:
    """The data sets that make a results file complete.

    A file of ours says so. Another one is taken for one of the leaderboard, whose 78 are those of MMEB-V2.
    """
    metadata = results["metadata"]
    if "hf_mmembed_version" in metadata and "subsets" in metadata:
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
    results["metrics"] = {modality: rows or {} for modality, rows in results["metrics"].items()}
    if not all(isinstance(rows, dict) for rows in results["metrics"].values()):
        raise ValueError(f"{file} is no results file: its 'metrics' are not grouped by modality")
    results["metadata"] = results.get("metadata") or {}
    return results
