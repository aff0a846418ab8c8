"""What the prompt alone makes of a generative model: the zero-shot table of `mmembed-tiny`.

In: a generative checkpoint. Out: for every prompt and read-out the scores of the tests of `testset.py` over several
seeds, and by generation the accuracy of answers beside the guess rate. Ties never favour the right answer: a candidate
that scores as high as the right one counts as ranked before it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen2VLForConditionalGeneration

from hf_mmembed.data.scenes import COLORS, SHAPES
from hf_mmembed.files import write_atomically
from hf_mmembed.model.convert import convert
from hf_mmembed.model.presets import PRESETS
from hf_mmembed.model.processing_mmembed import HierarchicalPrompt
from hf_mmembed.sentence_transformer import MMEmbedder
from hf_mmembed.tiny.probe import Accuracy, probe
from hf_mmembed.tiny.testset import TestSet, build_testset
from hf_mmembed.tiny.wordings import GENERIC_SYSTEM

__all__ = ["PROMPTS", "READOUTS", "evaluate", "markdown", "recall", "weights_of", "write", "zero_shot"]

logger = logging.getLogger(__name__)


_SAHA = PRESETS["saha"]
# A table for each read-out, in which each prompt has a column.
PROMPTS: dict[str, HierarchicalPrompt] = {
    "no prompt": PRESETS["plain"],
    "generic system": HierarchicalPrompt(system=GENERIC_SYSTEM, represent_text="", represent_image=""),
    "one-word user": HierarchicalPrompt(
        system=GENERIC_SYSTEM,
        represent_text="\nSummarize the above text in one word:",
        represent_image="\nSummarize the above image in one word:",
        represent_documents=True,
    ),
    "system only": HierarchicalPrompt(system=_SAHA.system, represent_text="", represent_image=""),
    "hierarchical": _SAHA,
}
READOUTS = ("final", "pre_mlp")
_QUESTIONS = 300  # for each topic


def evaluate(generative: Path, *, seeds: Sequence[int] = (0, 1, 2), candidates: int = 1000) -> dict[str, Any]:
    """All tables of a generative checkpoint, as plain data: `zero_shot`, `answers`, and how they were made."""
    weights = weights_of(generative)
    tables: dict[str, dict[str, list[dict[str, float]]]]
    tables = {readout: {name: [] for name in PROMPTS} for readout in READOUTS}
    rounds = len(seeds) * len(PROMPTS) * len(READOUTS)
    with tempfile.TemporaryDirectory() as folder, tqdm(total=rounds, disable=None) as bar:
        embedders = {
            readout: MMEmbedder(
                str(convert(generative, Path(folder, readout), readout=readout, dtype=torch.float32)), device="cpu"
            )
            for readout in READOUTS
        }
        for seed in seeds:
            test = build_testset(seed, candidates=candidates)
            for (readout, columns), (name, prompt) in product(tables.items(), PROMPTS.items()):
                embedders[readout].processor.prompt = prompt
                columns[name].append(zero_shot(embedders[readout], test))
                bar.update()
                logger.info("seed %d, %s, %s: %s", seed, readout, name, columns[name][-1])
    threads = torch.get_num_threads()
    return {
        "zero_shot": tables,
        "answers": [vars(accuracy) for accuracy in answers(generative)],
        "seeds": list(seeds),
        "candidates": candidates,
        "weights": weights,
        "machine": f"{platform.machine()}, {threads} thread{'s' * (threads > 1)}, torch {torch.__version__}",
    }


def zero_shot(embedder: MMEmbedder, test: TestSet) -> dict[str, float]:
    """Scores in percent, by name, of one embedder on one test set."""
    picture_queries, picture_documents = _both_sides(embedder, [{"image": picture} for picture in test.pictures])
    text_queries, text_documents = _both_sides(embedder, [{"text": text} for text in test.captions])
    text_to_image, image_to_text = text_queries @ picture_documents.T, picture_queries @ text_documents.T
    scores = {
        "text→image R@1": recall(text_to_image, 1),
        "text→image R@10": recall(text_to_image, 10),
        "image→text R@1": recall(image_to_text, 1),
        "image→text R@10": recall(image_to_text, 10),
    }
    for attribute, classes in (("shape", SHAPES), ("color", tuple(COLORS))):
        names = embedder.encode_document([{"text": name} for name in classes])
        asked = [{"image": item.picture, "text": f"what {attribute} is the object?"} for item in test.classified]
        right = np.array([classes.index(getattr(item, attribute)) for item in test.classified])
        scores[f"classify {attribute}"] = recall(embedder.encode_query(asked) @ names.T, 1, right)
    changed = embedder.encode_query([{"image": item.picture, "text": item.instruction} for item in test.composed])
    targets = embedder.encode_document(
        [{"image": item.target} for item in test.composed] + [{"image": item.distractor} for item in test.composed]
    )
    scores["composed R@1"] = recall(changed @ targets.T, 1)
    scores["composed R@10"] = recall(changed @ targets.T, 10)
    for change, pairs in test.pairs.items():
        pictures = embedder.encode_query([{"image": pair.picture} for pair in pairs])
        true = embedder.encode_document([{"text": pair.true} for pair in pairs])
        false = embedder.encode_document([{"text": pair.false} for pair in pairs])
        won = (pictures * true).sum(1) > (pictures * false).sum(1)
        scores[change.replace("_", " ")] = 100 * float(won.mean())
    return scores


def recall(scores: NDArray[np.float32], k: int, right: NDArray[np.int64] | None = None) -> float:
    """Percent of rows of `scores` (queries, documents) whose right document is among the `k` best.

    `right` (queries,) names the right columns; defaults to the diagonal. Other documents with an equal score rank
    before the right one.

    >>> recall(np.array([[0.9, 0.9], [0.1, 0.2]], dtype=np.float32), 1)
    50.0
    """
    rows = np.arange(len(scores))
    right = rows if right is None else right
    ahead = (scores >= scores[rows, right][:, None]).sum(1) - 1
    return 100 * float((ahead < k).mean())


def answers(generative: Path) -> list[Accuracy]:
    """Accuracy of generated answers on the val split, topic by topic, for pictures of one and of two shapes."""
    model = Qwen2VLForConditionalGeneration.from_pretrained(generative, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(generative)
    return [
        *probe(model, tokenizer, "one", questions=_QUESTIONS),
        *probe(model, tokenizer, "two", questions=_QUESTIONS),
        *probe(model, tokenizer, "count", topics=("count", "shape", "color"), questions=_QUESTIONS),
    ]


def weights_of(generative: Path) -> str:
    """SHA-256 of a checkpoint's weight file, which says whose the figures are."""
    return hashlib.sha256((generative / "model.safetensors").read_bytes()).hexdigest()


def markdown(results: dict[str, Any]) -> str:
    """The tables as Markdown: for each read-out mean ± standard deviation over the seeds; answers beside the guess."""
    lines: list[str] = []
    for readout, columns in results["zero_shot"].items():
        lines += [f"| {readout}, % | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
        for name in next(iter(columns.values()))[0]:
            cells = [_spread([scores[name] for scores in runs]) for runs in columns.values()]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    lines += [
        "| shapes in the picture | asked | right % | best constant guess % | questions |",
        "|---|---|---:|---:|---:|",
    ]
    for row in results["answers"]:
        topic = row["topic"].replace("_", " ")
        lines.append(f"| {row['kind']} | {topic} | {row['right']:.1f} | {row['guess']:.1f} | {row['questions']} |")
    seeds = ", ".join(map(str, results["seeds"]))
    lines += ["", f"{results['candidates']} candidates, evaluation seeds {seeds}; {results['machine']}."]
    return "\n".join(lines) + "\n"


def write(results: dict[str, Any], out: Path) -> None:
    """`results` as JSON, from which `markdown` makes the tables again."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, f"{json.dumps(results, indent=1)}\n".encode())


def _both_sides(embedder: MMEmbedder, inputs: list[dict[str, Any]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return embedder.encode_query(inputs), embedder.encode_document(inputs)


def _spread(values: list[float]) -> str:
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")
