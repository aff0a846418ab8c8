"""The card of `mmembed-tiny`: every figure in it comes from the shipped weights, the recorded evaluation or the run.

In: `mmembed-tiny.json` (written by `hf-mmembed tiny evaluate --out`), `mmembed-tiny.yaml` (the stages of the training
run) and `mmembed-tiny.md.jinja`, all in `model_cards/` of the repository. Out: `mmembed-tiny.md`.
"""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from statistics import mean
from typing import Any

import yaml
from safetensors import safe_open

from hf_mmembed.files import write_atomically
from hf_mmembed.hub.card import render_card, template_folder
from hf_mmembed.tiny.checkpoint import generative_path
from hf_mmembed.tiny.evaluate import markdown

__all__ = ["render_tiny_card", "write_tiny_card"]

NAME = "mmembed-tiny"


def render_tiny_card(folder: Path | None = None) -> str:
    """The card as Markdown.

    Args:
        folder: Where its data lie. Defaults to `model_cards/` of the repository.

    Raises:
        FileNotFoundError: The data are not there; a wheel does not carry them.
    """
    folder = folder or template_folder()
    results: dict[str, Any] = json.loads((folder / f"{NAME}.json").read_text(encoding="utf-8"))
    answers = {(row["kind"], row["topic"]): row for row in results["answers"]}
    weights = generative_path() / "model.safetensors"

    def score(prompt: str, test: str) -> float:
        return mean(run[test] for run in results["zero_shot"][prompt])

    return render_card(
        f"{NAME}.md.jinja",
        {
            "tables": markdown(results).strip() + "\n",
            "candidates": results["candidates"],
            "training": yaml.safe_load((folder / f"{NAME}.yaml").read_text(encoding="utf-8")),
            "megabytes": f"{weights.stat().st_size / 1e6:.1f}",
            "parameters": f"{_parameters(weights) / 1e6:.1f}",
            "score": lambda prompt, test, digits=1: f"{score(prompt, test):.{digits}f}",
            "ratio": lambda prompt, other, test: f"{score(prompt, test) / score(other, test):.1f}",
            "answer": lambda kind, topic: f"{answers[kind, topic]['right']:.0f}",
            "guess": lambda kind, topic: f"{answers[kind, topic]['guess']:.0f}",
        },
    )


def write_tiny_card() -> Path:
    """Render the card and write it beside its data; returns its path."""
    path = template_folder() / f"{NAME}.md"
    write_atomically(path, render_tiny_card().encode("utf-8"))
    return path


def _parameters(weights: Path) -> int:
    with safe_open(weights, framework="np") as file:
        return sum(prod(file.get_slice(name).get_shape()) for name in file.keys())
