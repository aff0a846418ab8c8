"""Published figures to stand beside a result, each with its benchmark, its split, its setting and its source.

In: a benchmark and a split. Out: the systems measured on them, scores in percent by the names that `aggregate` uses,
``"overall"`` being the flat mean. Rows whose source averages otherwise are not in the table. And for results: the split
that they are on, if it is one of these.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .subsets import OFFICIAL_QUERIES

__all__ = ["Reference", "not_official", "reference_split", "references"]

# The data that published figures are on; none for data of one's own in the same layout.
_REFERENCE_SPLITS = {
    "mmeb-v1": "MMEB-eval",
    "mmeb-v2": "MMEB-V2",
    "sugarcrepe": "SugarCrepe",
    "sugarcrepe-pp": "SugarCrepe++",
}


@dataclass(frozen=True)
class Reference:
    """One published row."""

    system: str
    benchmark: str
    split: str
    setting: str
    scores: dict[str, float]
    source: str


def references(benchmark: str, split: str | None = None) -> list[Reference]:
    """Published rows of a benchmark; with `split`, those on that version of its data alone.

    Example:
        >>> [row.scores["overall"] for row in references("mmeb-v1") if "hierarchical" in row.system]
        [43.3]
    """
    rows = json.loads(Path(__file__).with_name("references.json").read_text(encoding="utf-8"))
    found = [Reference(**row) for row in rows if row["benchmark"] == benchmark]
    return [row for row in found if split in (None, row.split)]


def reference_split(metadata: Mapping[str, Any], metrics: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The data of published figures that a run's scores are on; None where any of them is on other data."""
    if "subsets" in metadata or not_official(metadata, metrics):
        return None
    return metadata.get("visdoc_split") or _REFERENCE_SPLITS.get(metadata["benchmark"])


def not_official(metadata: Mapping[str, Any], metrics: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The data sets of a run with more or fewer queries than the official ones, each with both counts.

    Example:
        >>> not_official({"benchmark": "mmeb-v1"}, {"image": {"GQA": {"num_data": 1}, "OVEN": {"num_data": 1000}}})
        ['GQA has 1 queries and not 1000']
    """
    if "subsets" in metadata:  # a benchmark of one's own
        return []
    official = OFFICIAL_QUERIES.get(metadata["benchmark"], {})
    counts = {name: row["num_data"] for found in metrics.values() for name, row in found.items()}
    return [
        f"{name} has {count} queries and not {official[name]}"
        for name, count in counts.items()
        if count != official.get(name, count)
    ]
