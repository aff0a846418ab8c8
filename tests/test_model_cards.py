"""Cards and experiments: code in them runs, metadata is complete, tables are what the commands printed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType

import pytest
from huggingface_hub import ModelCard

from hf_mmembed import tiny
from hf_mmembed.bench import ablation_report, thinking_report
from hf_mmembed.bench.riddles import TASKS
from hf_mmembed.bench.runs import spread
from hf_mmembed.tiny.evaluate import markdown

CARDS = Path(__file__).parents[1] / "model_cards"
TINY = CARDS / "mmembed-tiny.md"
SAHA = CARDS / "mmembed-tiny-saha.md"
SNIPPETS = [
    code for card in (TINY, SAHA) for code in re.findall(r"```python\n(.*?)```", card.read_text("utf-8"), re.DOTALL)
]


@pytest.mark.parametrize("code", SNIPPETS)
def test_code_runs(code: str) -> None:
    exec(compile(code, "card", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize(("card", "library"), [(TINY, "sentence-transformers"), (SAHA, "peft")])
def test_metadata_is_complete(card: Path, library: str) -> None:
    data = ModelCard.load(card).data.to_dict()
    assert data["license"] == "apache-2.0" and data["library_name"] == library
    assert {"pipeline_tag", "tags"} <= data.keys()


def test_tables_are_those_of_the_recorded_evaluation() -> None:
    card = TINY.read_text(encoding="utf-8")
    results = json.loads((CARDS / "mmembed-tiny.json").read_text(encoding="utf-8"))
    assert markdown(results).strip() in card


@pytest.mark.parametrize(("name", "report"), [("ablation", ablation_report), ("thinking", thinking_report)])
def test_tables_of_the_experiments_are_those_of_their_results(name: str, report: ModuleType) -> None:
    folder = CARDS / "experiments"
    results = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    assert report.markdown(results).strip() in (folder / "README.md").read_text(encoding="utf-8")
    assert (folder / f"{name}.png").is_file()


def test_tables_of_the_readme_are_rows_of_those_of_the_experiments() -> None:
    readme = (CARDS.parent / "README.md").read_text(encoding="utf-8")
    shown = ("mean", "text→image R@1", "composed R@1", "false negatives per batch")
    results = json.loads((CARDS / "experiments" / "ablation.json").read_text(encoding="utf-8"))
    assert f"| | {' | '.join(shown)} |" in readme
    for arm in ("zero-shot", "random", "saha", "top-k"):
        runs = [result for result in results if result["arm"] == arm]
        cells = [spread([ablation_report.COLUMNS[name](run) for run in runs]) for name in shown]
        assert f"| {arm} | {' | '.join(cells)} |" in readme
    results = json.loads((CARDS / "experiments" / "thinking.json").read_text(encoding="utf-8"))
    assert f"| | {' | '.join(TASKS)} |" in readme
    for name in ("direct", "TTE_t, oracle", "TTE_s"):
        rows = [row for result in results for row in result["rows"] if row["row"] == name]
        cells = [spread([row["scores"][task] for row in rows]) for task in TASKS]
        assert f"| {name} | {' | '.join(cells)} |" in readme


def test_size_is_that_of_the_shipped_file() -> None:
    size = (tiny.generative_path() / "model.safetensors").stat().st_size
    assert size < 20e6
    assert f"{size / 1e6:.1f} MB" in TINY.read_text(encoding="utf-8")
