"""What thinking before embedding brings and costs: a Markdown table, where it hurts, and a plot of quality against cost.

In: results as `thinking.run_thinking` returns them. Out: mean ± standard deviation over the seeds, a line per row.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from hf_mmembed.bench.riddles import TASKS
from hf_mmembed.bench.runs import spread
from hf_mmembed.files import write_atomically

__all__ = ["harm", "markdown", "mean_score", "plot"]

Rows = dict[str, list[dict[str, Any]]]

BASELINE = "direct"
_TO_THINK_ABOUT = tuple(task for task in TASKS if task != "caption")


def mean_score(row: dict[str, Any]) -> float:
    """Mean R@1 of the tasks that need thinking."""
    return mean(row["scores"][task] for task in _TO_THINK_ABOUT)


def markdown(results: Sequence[dict[str, Any]]) -> str:
    """The table, then where thinking hurts; scores in percent."""
    columns = (*TASKS, "mean without caption", "trace right", "tokens", "CPU ms")
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for name, rows in _by_row(results).items():
        values = [[row["scores"][task] for row in rows] for task in TASKS]
        values += [[mean_score(row) for row in rows]]
        values += [[row[key] for row in rows] for key in ("right", "tokens", "milliseconds")]
        lines.append(f"| {name} | {' | '.join(map(spread, values))} |")
    seeds = ", ".join(map(str, sorted({result["seed"] for result in results})))
    lines += [
        "",
        f"R@1 per task, tokens and CPU milliseconds per query; mean ± standard deviation over the seeds {seeds}.",
    ]
    return "\n".join([*lines, "", *harm(results)]) + "\n"


def harm(results: Sequence[dict[str, Any]]) -> list[str]:
    """A line per task: the rows that are worse than the embedder that was never shown a trace, the worst first."""
    rows = _by_row(results)
    if BASELINE not in rows:
        return []
    lines = []
    for task in TASKS:
        base = mean(row["scores"][task] for row in rows[BASELINE])
        losses = {name: mean(row["scores"][task] for row in own) - base for name, own in rows.items()}
        worse = sorted((loss, name) for name, loss in losses.items() if loss < 0)
        said = ", ".join(f"{name} {loss:+.1f}" for loss, name in worse) or "nothing"
        lines.append(f"- below {BASELINE} on {task}: {said}")
    return lines


def plot(results: Sequence[dict[str, Any]], path: Path) -> Path:
    """Mean R@1 of the tasks that need thinking against CPU milliseconds per query, every seed a dot; a PNG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for place, (name, rows) in enumerate(_by_row(results).items()):
        cost, score = [row["milliseconds"] for row in rows], [mean_score(row) for row in rows]
        kind = "s" if name.startswith("TTE_u") else "^" if name.startswith("TTE_s") else "o"
        axes.plot(cost, score, kind, color=f"C{place % 10}", alpha=0.4, markersize=4)
        axes.plot(mean(cost), mean(score), kind, color=f"C{place % 10}", markersize=8, label=name)
    axes.set_xscale("log")
    costs = [row["milliseconds"] for result in results for row in result["rows"]]
    axes.set_xticks([cost for cost in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if min(costs) < cost < max(costs)])
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("CPU milliseconds per query")
    axes.set_ylabel("mean R@1 of relation, count and composed, %")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(path, buffer.getvalue())
    return path


def _by_row(results: Sequence[dict[str, Any]]) -> Rows:
    rows: Rows = {}
    for result in results:
        for row in result["rows"]:
            rows.setdefault(row["row"], []).append(row)
    return rows
