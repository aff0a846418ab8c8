"""Published figures to stand beside a result, each with its benchmark, its split, its setting and its source.

In: a benchmark and a split. Out: the systems measured on them, scores in percent by the names that `aggregate` uses,
``"overall"`` being the flat mean. Rows whose source averages otherwise are not in the table.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Reference", "references"]


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
