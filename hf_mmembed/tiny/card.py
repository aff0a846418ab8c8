"""The cards of the shipped models: every figure comes from the weights, from a recorded evaluation or from the run.

In: `mmembed-tiny.json` and `mmembed-tiny-again.json` (written by `hf-mmembed tiny evaluate --out`, the latter of a second
training run), `mmembed-tiny.yaml` (the stages of both runs), `mmembed-tiny-benchmark.json` and
`mmembed-tiny-saha-benchmark.json` (written by `hf-mmembed tiny score`) and the templates, all in `model_cards/` of the
repository; and the record beside the adapter. Out: `mmembed-tiny.md` and `mmembed-tiny-saha.md`.
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
from hf_mmembed.hub.card import card_of, render_card, template_folder
from hf_mmembed.shipped import SHIPPED, SHIPPED_SAHA
from hf_mmembed.tiny.checkpoint import generative_path, saha_path
from hf_mmembed.tiny.evaluate import markdown
from hf_mmembed.tiny.score import tables

__all__ = ["render_saha_card", "render_tiny_card", "write_tiny_cards"]

AGAIN = f"{SHIPPED}-again"


def render_tiny_card() -> str:
    """The card as Markdown, of the data in `model_cards/` of the repository.

    Raises:
        FileNotFoundError: The data are not there; a wheel does not carry them.
    """
    folder = template_folder()
    results, again = (json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in (SHIPPED, AGAIN))
    answers, others = ({(row["kind"], row["topic"]): row for row in run["answers"]} for run in (results, again))
    weights = generative_path() / "model.safetensors"

    def score(prompt: str, test: str, of: dict[str, Any] = results) -> float:
        return mean(run[test] for run in of["zero_shot"]["final"][prompt])

    return render_card(
        f"{SHIPPED}.md.jinja",
        {
            "tables": markdown(results).strip() + "\n",
            "drawn": tables({SHIPPED: _benchmark(folder, SHIPPED)}),
            "candidates": results["candidates"],
            "training": yaml.safe_load((folder / f"{SHIPPED}.yaml").read_text(encoding="utf-8")),
            "megabytes": f"{weights.stat().st_size / 1e6:.1f}",
            "parameters": f"{_parameters(weights) / 1e6:.1f}",
            "score": lambda prompt, test, digits=1: f"{score(prompt, test):.{digits}f}",
            "answer": lambda kind, topic: f"{answers[kind, topic]['right']:.0f}",
            "guess": lambda kind, topic: f"{answers[kind, topic]['guess']:.0f}",
            "both_scores": lambda prompt, test: f"{score(prompt, test):.1f} | {score(prompt, test, again):.1f}",
            "both_answers": lambda kind, topic: " | ".join(
                f"{run[kind, topic]['right']:.1f}" for run in (answers, others)
            ),
        },
    )


def render_saha_card() -> str:
    """The card of the adapter as Markdown: what every adapter's card says, and its scores beside those of its base.

    Raises:
        FileNotFoundError: As in `render_tiny_card`.
    """
    folder = template_folder()
    scores = tables({name: _benchmark(folder, name) for name in (SHIPPED, SHIPPED_SAHA)})
    card = card_of(saha_path(), repo_id=SHIPPED_SAHA).replace(f'"{SHIPPED_SAHA}"', "tiny.saha_path()")
    before, after = card.split("## How it was made\n")
    return f"""{before}## Scores

On `hf-mmembed tiny benchmark`, by `hf-mmembed tiny score`. The scenes are of the test split and in no training
pair; the edited scenes of `DrawnEdit` may be of any split.

{scores}
## How it was made

A single run of `hf-mmembed train --config saha-tiny`.
{after}"""


def write_tiny_cards() -> list[Path]:
    """Render the cards and write them beside their data; returns their paths."""
    folder = template_folder()
    cards = {folder / f"{SHIPPED}.md": render_tiny_card(), folder / f"{SHIPPED_SAHA}.md": render_saha_card()}
    for path, card in cards.items():
        write_atomically(path, card.encode("utf-8"))
    return list(cards)


def _benchmark(folder: Path, name: str) -> dict[str, Any]:
    scores: dict[str, Any] = json.loads((folder / f"{name}-benchmark.json").read_text(encoding="utf-8"))
    return scores


def _parameters(weights: Path) -> int:
    with safe_open(weights, framework="np") as file:
        return sum(prod(file.get_slice(name).get_shape()) for name in file.keys())
