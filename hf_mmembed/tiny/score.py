"""Measures a model on the drawn benchmark, for its card.

In: a model and the folder that `hf-mmembed tiny benchmark` drew. Out: the three results, in the leaderboard's layout each,
as one JSON object; and tables of one or several such objects, models beside each other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_mmembed.evaluation import aggregate, evaluate, load_encoder, subsets_of
from hf_mmembed.evaluation.scoreboard import columns, score_of
from hf_mmembed.files import write_atomically

__all__ = ["score_drawn", "tables"]

_TITLES = {"mmeb-v1": "drawn MMEB", "sugarcrepe": "drawn SugarCrepe", "sugarcrepe-pp": "drawn SugarCrepe++"}

Scores = dict[str, dict[str, Any]]


def score_drawn(
    model: str | Path, drawn: Path, out: Path, *, name: str | None = None, device: str | None = None
) -> Scores:
    """Measures a model on all three parts and writes their results to one file, by benchmark.

    Args:
        model: Directory or Hub id.
        drawn: What `draw_benchmark` wrote. Embeddings and predictions are kept in ``results`` there.
        out: JSON file.
        name: What to call the model. Defaults to its Hub id, or its directory's name; see `model_name`.
        device: Defaults to the best there is.

    Raises:
        ValueError: A part is not there, or a data set cannot be read.
    """
    encoder = load_encoder(model, name=name, device=device)
    scores: Scores = {}
    for benchmark in _TITLES:
        work = drawn / "results" / encoder.name.replace("/", "--")
        results = evaluate(encoder, benchmark, drawn / benchmark, out=work / benchmark, cache=work / "embeddings")
        if results.failed:
            raise ValueError(f"{benchmark}: {results.failed}; draw it again with `hf-mmembed tiny benchmark {drawn}`")
        scores[benchmark] = results.as_dict()
    write_atomically(out, (json.dumps(scores, indent=1) + "\n").encode())
    return scores


def tables(scores: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Markdown: one table per benchmark and measure, data sets and means in rows, models in columns.

    Args:
        scores: What `score_drawn` returned, by the name of the model.
    """
    lines = []
    for benchmark, title in _TITLES.items():
        results = [of_model[benchmark] for of_model in scores.values()]
        subsets = subsets_of(results[0])
        for shown in zip(*map(columns, results), strict=True):
            measure = shown[0].measure
            boards = [aggregate(column.metrics, subsets, measure) for column in shown]
            rows = {
                subset.name: [score_of(column.metrics, subset, measure) for column in shown] for subset in subsets
            } | {
                f"**{name}**": [board[name].value for board in boards]
                for name in boards[0]
                if name != subsets[0].modality
            }
            lines += [f"| {title}, {measure or subsets[0].metric}, % | {' | '.join(scores)} |"]
            lines += [f"|---|{'---:|' * len(scores)}"]
            for name, values in rows.items():
                cells = ["–" if value is None else f"{100 * value:.1f}" for value in values]
                lines.append(f"| {name} | {' | '.join(cells)} |")
            lines.append("")
    return "\n".join(lines)
