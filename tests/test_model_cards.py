"""Model cards: the code in them runs, their metadata is complete, and their tables are what the command printed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hf_mmembed import tiny
from hf_mmembed.tiny.evaluate import markdown

CARDS = Path(__file__).parents[1] / "model_cards"
TINY = CARDS / "mmembed-tiny.md"


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", TINY.read_text(encoding="utf-8"), re.DOTALL))
def test_code_runs(code: str) -> None:
    exec(compile(code, TINY.name, "exec"), {"__name__": "__main__"})


def test_metadata_is_complete() -> None:
    data = ModelCard.load(TINY).data.to_dict()
    assert data["license"] == "apache-2.0" and data["library_name"] == "sentence-transformers"
    assert {"pipeline_tag", "language", "tags"} <= data.keys()


def test_tables_are_those_of_the_recorded_evaluation() -> None:
    card = TINY.read_text(encoding="utf-8")
    results = json.loads((CARDS / "mmembed-tiny.json").read_text(encoding="utf-8"))
    assert markdown(results).strip() in card


def test_size_is_that_of_the_shipped_file() -> None:
    size = (tiny.generative_path() / "model.safetensors").stat().st_size
    assert size < 20e6
    assert f"{size / 1e6:.1f} MB" in TINY.read_text(encoding="utf-8")
