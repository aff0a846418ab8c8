"""A bar plot of a result beside published systems.

In: results. Out: a PNG with one group of bars per mean; only references on the same benchmark, split and means appear.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .references import Reference, references
from .scoreboard import OVERALL, aggregate, measures_of, subsets_of

__all__ = ["plot"]

_MOST = 8
_SHORT = {OVERALL: "overall"}


def plot(results: Mapping[str, Any], file: Path) -> list[Reference]:
    """Draws the means of a run that are complete, with up to eight reference systems that report the same ones.

    A partial run is drawn without its overall, and says so.

    Returns:
        The references drawn.

    Raises:
        ValueError: No mean is complete.
    """
    from matplotlib.figure import Figure

    metadata = results["metadata"]
    means = {}
    for measure in measures_of(metadata["benchmark"])[:1]:
        for name, mean in aggregate(results["metrics"], subsets_of(results), measure).items():
            if mean.value is not None:
                means[_SHORT.get(name, name)] = 100 * mean.value
    if not means:
        raise ValueError("no mean is complete, so there is nothing to plot")
    known = references(metadata["benchmark"], metadata.get("reference_split"))
    drawn = [row for row in known if set(row.scores) & set(means)] if metadata.get("reference_split") else []
    drawn = sorted(drawn, key=lambda row: row.scores.get("overall", 0))[-_MOST:]
    groups = [name for name in means if not drawn or any(name in row.scores for row in drawn)]
    bars = [(f"{row.system} ({row.setting})", row.scores) for row in drawn] + [(metadata["model_name"], means)]
    figure = Figure(figsize=(max(6, 1.3 * len(groups) + 3), 4.5), layout="constrained")
    axes = figure.subplots()
    width = 0.85 / len(bars)
    for number, (label, scores) in enumerate(bars):
        places = [group + (number - (len(bars) - 1) / 2) * width for group in range(len(groups))]
        heights = [scores.get(group, float("nan")) for group in groups]
        ours = number == len(bars) - 1
        color = "tab:orange" if ours else str(0.8 - 0.5 * number / max(1, len(bars) - 1))
        drawn_bars = axes.bar(places, heights, width, label=label, color=color)
        if ours:
            axes.bar_label(drawn_bars, fmt="%.1f", fontsize=8)
    axes.set_xticks(range(len(groups)), groups, rotation=20, ha="right")
    axes.set_ylabel("%")
    axes.set_title(f"{metadata['benchmark']}{', partial run' if metadata['partial'] else ''}")
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(file.with_suffix(".tmp"), format="png", dpi=120)
    file.with_suffix(".tmp").replace(file)
    return drawn
