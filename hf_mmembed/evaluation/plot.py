"""A bar plot of a result beside published systems.

In: results. Out: a PNG with one group of bars per mean; only references on the same benchmark, split and means appear.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .references import Reference, references
from .scoreboard import MACRO, OVERALL, aggregate, columns, subsets_of

__all__ = ["plot"]

_MOST = 8
_SHORT = {OVERALL: "overall", MACRO: "macro mean"}


def plot(results: Mapping[str, Any], file: Path) -> list[Reference]:
    """Draws the means of a run that are complete, with the eight reference systems nearest in overall that report the same ones.

    A partial run is drawn without its overall, and says so; one with thinking gets a second bar for it.

    Returns:
        The references drawn.

    Raises:
        ValueError: No mean is complete.
    """
    from matplotlib.figure import Figure

    metadata, subsets = results["metadata"], subsets_of(results)
    shown = [column for column in columns(results) if column.measure == columns(results)[0].measure]
    boards = [
        {
            _SHORT.get(name, name): 100 * mean.value
            for name, mean in aggregate(column.metrics, subsets, column.measure).items()
            if mean.value is not None
        }
        for column in shown
    ]
    means = boards[0]
    if not means:
        raise ValueError("no mean is complete, so there is nothing to plot")
    known = references(metadata["benchmark"], metadata.get("reference_split"))
    drawn = [row for row in known if set(row.scores) & set(means)] if metadata.get("reference_split") else []
    near = means.get("overall", 100)  # of a partial run nobody knows what is near: the best are drawn
    drawn = sorted(drawn, key=lambda row: abs(row.scores.get("overall", 0) - near))[:_MOST]
    drawn.sort(key=lambda row: row.scores.get("overall", 0))
    groups = [name for name in means if not drawn or any(name in row.scores for row in drawn)]
    bars = [(f"{row.system} ({row.setting})", row.scores) for row in drawn]
    bars += zip((metadata["model_name"], f"{metadata['model_name']} with thinking"), boards, strict=False)
    figure = Figure(figsize=(max(6, 1.3 * len(groups) + 3), 4.5), layout="constrained")
    axes = figure.subplots()
    width = 0.85 / len(bars)
    for number, (label, scores) in enumerate(bars):
        places = [group + (number - (len(bars) - 1) / 2) * width for group in range(len(groups))]
        heights = [scores.get(group, float("nan")) for group in groups]
        own = number - len(drawn)
        color = str(0.8 - 0.5 * number / len(drawn)) if own < 0 else ("tab:orange", "tab:blue")[own]
        drawn_bars = axes.bar(places, heights, width, label=label, color=color)
        if own >= 0:
            axes.bar_label(drawn_bars, fmt="%.1f", fontsize=8, padding=2, rotation=90 if len(boards) > 1 else 0)
    axes.set_xticks(range(len(groups)), groups, rotation=20, ha="right")
    counted = dict.fromkeys(shown[0].measure or subset.metric for subset in subsets)
    axes.set_ylabel(f"{', '.join(counted)}, %")
    title = f"{metadata['model_name']} on {metadata['benchmark']}"
    axes.set_title(f"{title}{', partial run' if metadata['partial'] else ''}")
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(file.with_suffix(".tmp"), format="png", dpi=120)
    file.with_suffix(".tmp").replace(file)
    return drawn
