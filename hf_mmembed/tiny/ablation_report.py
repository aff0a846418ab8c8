"""The results of an ablation as a Markdown table and as a plot.

In: results as `ablation.run_ablation` returns them. Out: mean ± standard deviation over seeds, one line per arm.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from hf_mmembed.files import write_atomically
from hf_mmembed.tiny.runs import spread
from hf_mmembed.tiny.testset import CHANGES

__all__ = ["COLUMNS", "markdown", "plot"]

Result = dict[str, Any]

_SCORES = ("text→image R@1", "image→text R@1", "composed R@1", *(change.replace("_", " ") for change in CHANGES))

COLUMNS: dict[str, Callable[[Result], float | None]] = {
    "mean": lambda result: result["mean"],
    **{name: lambda result, name=name: result["scores"][name] for name in _SCORES},  # type: ignore[misc]
    "classify shape": lambda result: result["scores"]["classify shape"],
    "classify color": lambda result: result["scores"]["classify color"],
    "false negatives per batch": lambda result: result.get("false_negatives"),
    "pairs per batch": lambda result: result.get("pairs"),
    "mining, s": lambda result: result["seconds"].get("mining"),
    "training, s": lambda result: result["seconds"].get("training"),
}
"""What a column shows of a result; None where the arm has no such thing."""


def markdown(results: Sequence[Result]) -> str:
    """One line per arm, in the order of the results; scores in percent."""
    lines = [f"| | {' | '.join(COLUMNS)} |", f"|---|{'---:|' * len(COLUMNS)}"]
    for arm, runs in _by_arm(results).items():
        cells = [spread([value(run) for run in runs]) for value in COLUMNS.values()]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    seeds = sorted({result["seed"] for result in results})
    steps = max(result["steps"] for result in results)
    lines += ["", f"{steps} steps; mean ± standard deviation over the seeds {', '.join(map(str, seeds))}."]
    return "\n".join(lines) + "\n"


def plot(results: Sequence[Result], path: Path) -> Path:
    """Mean score and false negatives per batch of every arm, every seed a dot; written as a PNG to `path`."""
    from matplotlib.figure import Figure

    arms = _by_arm(results)
    figure = Figure(figsize=(9, 0.45 * len(arms) + 1.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, column, label in ((left, "mean", "mean score, %"), (right, "false negatives per batch", None)):
        for place, runs in enumerate(arms.values()):
            values = [value for run in runs if (value := COLUMNS[column](run)) is not None]
            if values:
                axes.barh(place, mean(values), color="#c9d7ef" if axes is left else "#f3cfc6")
                axes.plot(values, [place] * len(values), "o", color="#23395d", markersize=4)
        axes.set_xlabel(label or column)
        axes.spines[["top", "right"]].set_visible(False)
    scores = [result["mean"] for result in results]
    left.set_xlim(max(0.0, min(scores) - 5), max(scores) + 2)
    left.set_yticks(range(len(arms)), list(arms))
    left.invert_yaxis()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(path, buffer.getvalue())
    return path


def _by_arm(results: Sequence[Result]) -> dict[str, list[Result]]:
    arms: dict[str, list[Result]] = {}
    for result in results:
        arms.setdefault(result["arm"], []).append(result)
    return arms
