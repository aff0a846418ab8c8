"""Writes what a run found: the results file, the Hub's evaluation results, a Markdown table, predictions.

In: the scores so far. Out: ``results.json`` in the leaderboard's layout, ``.eval_results/<benchmark>.yaml`` for a model
repository, ``results.md`` and ``predictions/<data set>.jsonl``. Each file appears whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_mmembed.files import write_atomically

from .scoreboard import OVERALL, aggregate, columns, found_score, subsets_of
from .thinking import NOT_WHOLE

__all__ = ["markdown", "write_predictions", "write_results"]

_HUB_DATASETS = {
    "mmeb-v1": "TIGER-Lab/MMEB-eval",
    "mmeb-v2": "TIGER-Lab/MMEB-V2",
    "sugarcrepe-pp": "Aman-J/SugarCrepe_pp",
}
# What a score depends on beside model and data.
_PROTOCOL = ("instruction_in", "fusion", "tie", "num_frames", "visdoc_split", "image_size")


def write_results(results: Mapping[str, Any], out: Path) -> None:
    """Writes `results` in all forms but the plot, replacing those of an earlier state of the run."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "results.json", (json.dumps(results, indent=1, ensure_ascii=False) + "\n").encode())
    write_atomically(out / "results.md", markdown(results).encode())
    metadata = results["metadata"]
    dataset = _HUB_DATASETS.get(metadata["benchmark"])
    record = out / ".eval_results" / f"{metadata['benchmark']}.yaml"
    if dataset is None or not metadata["reference_split"]:  # data of one's own has no place on the Hub
        record.unlink(missing_ok=True)
        return
    record.parent.mkdir(exist_ok=True)
    write_atomically(record, _hub_yaml(results, dataset).encode())


def write_predictions(name: str, predictions: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Writes one line per query: the best 20 candidates with their scores, and which are right."""
    folder = out / "predictions"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in predictions]
    write_atomically(folder / f"{name}.jsonl", "".join(lines).encode("utf-8", "surrogatepass"))


def markdown(results: Mapping[str, Any]) -> str:
    """The scores in percent: means first, then every data set."""
    metadata = results["metadata"]
    subsets = subsets_of(results)
    shown = columns(results)
    titles = [column.title for column in shown]
    boards = [aggregate(column.metrics, subsets, column.measure) for column in shown]
    rule = f"|---|{'---:|' * len(shown)}"
    costs = ["tokens per query", "ms per query", "traced", "not whole"] if metadata.get("thinking") else []
    lines = [f"# {metadata.get('model_name', 'model')} on {metadata.get('benchmark', 'MMEB')}", ""]
    lines += ["**Partial run:** some data sets have no score, so there is no overall.", ""] * bool(_partial(boards))
    lines += [f"| mean, % | {' | '.join(titles)} |", rule]
    lines += [f"| {name} | {' | '.join(str(board[name]) for board in boards)} |" for name in boards[0]]
    titles += costs
    lines += [
        "",
        f"| data set, % | {' | '.join(titles)} | counts | queries |",
        f"{rule}{'---:|' * len(costs)}---|---:|",
    ]
    for subset in subsets:
        found = [found_score(column.metrics, subset, column.measure) for column in shown]
        for name in dict.fromkeys(name for name, score in found if score is not None):
            row = results["metrics"][subset.modality][name]
            cells = [f"{100 * score:.1f}" if score is not None and under == name else "–" for under, score in found]
            if costs:
                thought = row.get("thinking", {})
                taken = [thought.get("tokens_per_query"), thought.get("ms_per_query"), *_traced(thought)]
                cells += ["–" if value is None else f"{value:.0f}" for value in taken]
            counts = ", ".join(dict.fromkeys(column.measure or subset.metric for column in shown))
            lines.append(f"| {name} | {' | '.join(cells)} | {counts} | {row.get('num_data', '')} |")
    told = [f"{key}: {metadata[key]}" for key in (*_PROTOCOL, "dtype", "model_revision") if metadata.get(key)]
    if costs:
        thinking = metadata["thinking"]
        told.append(
            f"thinking: {thinking.get('reasoner')}, {thinking['when']}, templates {thinking.get('template_version')}"
        )
    return "\n".join([*lines, "", "; ".join(told), ""])


def _traced(thought: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Queries that have a trace, and one that is not whole; earlier runs did not count them."""
    if "traced" not in thought:
        return None, None
    return thought["traced"], sum(thought[status] for status in NOT_WHOLE)


def _partial(boards: Sequence[Mapping[str, Any]]) -> bool:
    return any(board[OVERALL].value is None for board in boards)


def _hub_yaml(results: Mapping[str, Any], dataset: str) -> str:
    """The Hub's format of a model's evaluation results; means of complete groups, and every data set.

    Scores with thinking are tasks of their own, lest they be taken for those of the embedder alone.
    """
    import yaml
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    metadata = results["metadata"]
    subsets = subsets_of(results)
    told = [f"{key}={metadata[key]}" for key in _PROTOCOL if metadata.get(key)]
    note = ", ".join([f"hf_mmembed {metadata['hf_mmembed_version']}", *told])
    date = metadata["report_generated_date"][:10]
    entries = []
    for column in columns(results):
        suffix, said, rows = f"_{column.measure}" if column.measure else "", note, {}
        if column.metrics is not results["metrics"]:
            thinking = metadata["thinking"]
            suffix += "_with_thinking"
            names = {"reasoner": "reasoner", "template_version": "templates", "when": "think_when"}
            said = ", ".join([note, *(f"{short}={thinking.get(name)}" for name, short in names.items())])
            rows = {name: row for found in column.metrics.values() for name, row in found.items()}
        scores = {name: mean.value for name, mean in aggregate(column.metrics, subsets, column.measure).items()}
        scores["overall"] = scores.pop(OVERALL)
        scores |= dict(found_score(column.metrics, subset, column.measure) for subset in subsets)
        for name, value in scores.items():
            if value is not None:
                task = f"{name}{suffix}".replace(" ", "_")
                traced, broken = _traced(rows.get(name, {}))
                notes = said if traced is None else f"{said}, traced={traced}, not whole={broken}"
                entries.append(EvalResultEntry(dataset, task, round(100 * value, 2), date=date, notes=notes))
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)
