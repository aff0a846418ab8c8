"""The results of an ablation as a Markdown table and as a plot.

In: results as `ablation.run_ablation` returns them. Out: mean ± standard deviation over seeds, one line per arm, and by
how many standard deviations SaHa is ahead or behind.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from hf_mmembed.bench.runs import spread
from hf_mmembed.files import write_atomically
from hf_mmembed.tiny.testset import CHANGES

__all__ = ["COLUMNS", "SUBJECT", "comparisons", "markdown", "plot"]

Result = dict[str, Any]

SUBJECT = "saha"
"""The arm that the others are compared with."""

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
    """One line per arm, in the order of the results, then the comparisons; scores in percent."""
    lines = [f"| | {' | '.join(COLUMNS)} |", f"|---|{'---:|' * len(COLUMNS)}"]
    seeds = sorted({result["seed"] for result in results})
    for arm, runs in _by_arm(results).items():
        cells = [spread([value(run) for run in runs]) for value in COLUMNS.values()]
        own = sorted(run["seed"] for run in runs)
        fewer = "" if own == seeds else f" (only {', '.join(map(str, own))})"
        lines.append(f"| {arm}{fewer} | {' | '.join(cells)} |")
    steps = max(result["steps"] for result in results)
    lines += ["", f"{steps} steps; mean ± standard deviation over the seeds {', '.join(map(str, seeds))}."]
    compared = comparisons(results)
    return "\n".join([*lines, *([""] if compared else []), *compared]) + "\n"


def comparisons(results: Sequence[Result]) -> list[str]:
    """A line per arm: how far SaHa's mean score is from its own, over the seeds that both were run with.

    A standard deviation is the root of the mean of both arms' variances over these seeds; arms with fewer than two seeds
    in common have none and are left out.
    """
    scores = {arm: {run["seed"]: run["mean"] for run in runs} for arm, runs in _by_arm(results).items()}
    own = scores.pop(SUBJECT, {})
    lines = []
    for arm, others in scores.items():
        seeds = sorted(own.keys() & others.keys())
        if len(seeds) < 2:
            continue
        ours, theirs = ([values[seed] for seed in seeds] for values in (own, others))
        difference = mean(ours) - mean(theirs)
        deviation = sqrt((stdev(ours) ** 2 + stdev(theirs) ** 2) / 2)
        times = f", {abs(difference) / deviation:.1f} standard deviations" if deviation else ""
        lines.append(f"- {SUBJECT} against {arm}: {difference:+.1f}{times} ({len(seeds)} seeds)")
    return lines


def plot(results: Sequence[Result], path: Path) -> Path:
    """Mean score and false negatives per batch of every arm, every seed a dot; written as a PNG to `path`."""
    from matplotlib.figure import Figure

    arms = _by_arm(results)
    figure = Figure(figsize=(9, 0.45 * len(arms) + 1.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, column, label in ((left, "mean", "mean score, %"), (right, "false negatives per batch", None)):
        for place, runs in enumerate(arms.values()):
            values = [value for run in runs if (value := COLUMNS[column](run)) is not None]
            if values and axes is left:  # no bars: the axis does not begin at zero
                axes.plot(mean(values), place, "|", color="#7c9bd1", markersize=22, markeredgewidth=5)
            elif values:
                axes.barh(place, mean(values), color="#f3cfc6")
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
