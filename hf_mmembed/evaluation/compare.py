"""Two results files beside each other, and what keeps their scores from being compared.

In: two results files, ours or the leaderboard's. Out: a Markdown table with differences, and warnings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .scoreboard import OVERALL, aggregate, columns, found_score, subsets_of, visdoc_split

__all__ = ["compare", "differences_in_protocol"]

_PROTOCOL = ("benchmark", "instruction_in", "fusion", "tie", "num_frames")


def compare(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Means and data sets of two results, in percent, where both have them.

    Means are over the same data sets on both sides: one that either lacks has no mean. Scores with thinking follow where
    both have them.
    """
    names = [results["metadata"].get("model_name", side) for results, side in ((one, "A"), (other, "B"))]
    lines = [f"**Not comparable as they stand:** {reason}." for reason in differences_in_protocol(one, other)]
    lines += [""] * bool(lines)
    lines += [f"| % | {names[0]} | {names[1]} | difference |", "|---|---:|---:|---:|"]
    subsets = subsets_of(one)
    theirs = {column.title: column for column in columns(other)}
    for column in columns(one):
        if column.title not in theirs:
            continue
        both = [column.metrics, theirs[column.title].metrics]
        measure, thought = column.measure, column.metrics is not one["metrics"]
        suffix = f" ({column.title})" if measure else " (with thinking)" if thought else ""
        boards = [aggregate(metrics, subsets, measure) for metrics in both]
        for name in boards[0]:
            values = [board[name].value for board in boards]
            if name == OVERALL or all(value is not None for value in values):
                lines.append(_line(f"**{name}**{suffix}", *values))
        for subset in subsets:
            found = [found_score(metrics, subset, measure) for metrics in both]
            if all(score is not None for _, score in found):
                title = " / ".join(dict.fromkeys(name for name, _ in found))
                lines.append(_line(f"{title}{suffix}", *(score for _, score in found)))
    return "\n".join(lines) + "\n"


def differences_in_protocol(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What the two were measured by that is not the same, one sentence each."""
    found = []
    for key in _PROTOCOL:
        values = [results["metadata"].get(key) for results in (one, other)]
        if None not in values and values[0] != values[1]:
            found.append(f"{key} is {values[0]} in the first and {values[1]} in the second")
    sizes = [results["metadata"].get("image_size") for results in (one, other)]
    # Of another form, they count something else: pixels in all, or of one side.
    same_form = all(isinstance(size, Mapping) for size in sizes) and set(sizes[0]) == set(sizes[1])
    if same_form and sizes[0] != sizes[1]:
        found.append(f"image_size is {sizes[0]} in the first and {sizes[1]} in the second")
    # Each benchmark has reference data of its own, retrieval none.
    same_benchmark = one["metadata"].get("benchmark") == other["metadata"].get("benchmark")
    if same_benchmark and all("reference_split" in results["metadata"] for results in (one, other)):
        data = [results["metadata"]["reference_split"] for results in (one, other)]
        if (data[0] is None) != (data[1] is None):
            first, second = (name or "data of one's own" for name in data)
            found.append(f"the first is on {first} and the second on {second}")
    splits = [visdoc_split(results["metrics"]) for results in (one, other)]
    if None not in splits and splits[0] != splits[1]:
        found.append(f"visual documents are scored on {splits[0]} in the first and on {splits[1]} in the second")
    return found + _differences_in_thinking(one, other)


def _differences_in_thinking(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    first, second = (results["metadata"].get("thinking") for results in (one, other))
    if not (isinstance(first, Mapping) and isinstance(second, Mapping)):
        return []
    found = [
        f"with thinking, {key} is {first.get(key)} in the first and {second.get(key)} in the second"
        for key in dict.fromkeys([*first, *second])
        if first.get(key) != second.get(key)
    ]
    # A store holds what it was filled with, whatever `when` says.
    traced = [
        {name: row["thinking"].get("traced") for rows in results["metrics"].values() for name, row in rows.items()
         if isinstance(row, Mapping) and "thinking" in row}
        for results in (one, other)
    ]  # fmt: skip
    counts = {name: (count, traced[1].get(name)) for name, count in traced[0].items()}
    unlike = [f"{name} ({a} and {b})" for name, (a, b) in counts.items() if None not in (a, b) and a != b]
    if unlike:
        shown = ", ".join([*unlike[:4], *["..."] * (len(unlike) > 4)])
        found.append(f"with thinking, other numbers of queries have a trace: {shown}")
    return found


def _line(name: str, one: float | None, other: float | None) -> str:
    cells = ["–" if value is None else f"{100 * value:.2f}" for value in (one, other)]
    gap = "" if one is None or other is None else f"{100 * (other - one):+.2f}"
    return f"| {name} | {cells[0]} | {cells[1]} | {gap} |"
