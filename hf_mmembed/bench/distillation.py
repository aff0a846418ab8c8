"""Does distilling a text teacher help? UniME's first stage on the drawn world, measured before and after.

In: an embedder of the drawn world and a teacher. Out: per seed a JSON file with the rank correlation of the embedder's
similarities with the teacher's, over sentences of the test split, and its cross-modal retrieval, which the distillation
never trains. Runs that are done are not done again.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr  # type: ignore[import-untyped]
from sentence_transformers import SentenceTransformer

from hf_mmembed.bench.runs import ALL_LINEAR, check_plan
from hf_mmembed.distillation.arguments import DistillationArguments
from hf_mmembed.distillation.student import open_student
from hf_mmembed.distillation.teacher import embed_with_teacher, open_teacher
from hf_mmembed.distillation.trainer import DistillationTrainer
from hf_mmembed.files import write_atomically
from hf_mmembed.sentence_transformer import MMEmbedder
from hf_mmembed.tiny.evaluate import recall
from hf_mmembed.tiny.lean_training import OnePassDistillationLoss
from hf_mmembed.tiny.sentences import draw_sentences
from hf_mmembed.tiny.testset import TestSet, build_testset

__all__ = ["DistillationPlan", "markdown", "measure", "run_distillation", "train_once"]

TEST_SEED = 0


@dataclass(frozen=True)
class DistillationPlan:
    """What all runs share; a directory holds the runs of one plan.

    Attributes:
        model: Directory or Hub id of the embedder.
        teacher: Directory or Hub id of the teacher.
        steps: Optimizer steps.
        batch: Pairs of sentences per step.
        pairs: Pairs to draw from.
        candidates: Pictures and captions to retrieve from, and sentences to compare, in the test.
        learning_rate: Peak of the schedule: linear, after a tenth of the steps of warm-up.
        temperature: Of the loss.
        lora_rank: Of the adapter on all linear layers of the language model, scaled by 2.
    """

    model: str
    teacher: str
    steps: int = 60
    batch: int = 32
    pairs: int = 1000
    candidates: int = 300
    learning_rate: float = 2e-4
    temperature: float = 0.05
    lora_rank: int = 32


def run_distillation(out: Path, plan: DistillationPlan, seeds: range) -> list[dict[str, Any]]:
    """Runs what is not done yet; the first result is that of the embedder as it is.

    Args:
        out: Directory of this plan: ``plan.json``, ``runs/`` and the teacher's embeddings.
        plan: What all runs share.
        seeds: Of sentences, adapter and order.

    Raises:
        ValueError: `out` holds the runs of another plan, or the teacher's vectors cannot be used.
    """
    (out / "runs").mkdir(parents=True, exist_ok=True)
    check_plan(out, plan)
    done = {seed: out / "runs" / ("before.json" if seed is None else f"{seed}.json") for seed in (None, *seeds)}
    if missing := [seed for seed, path in done.items() if not path.is_file()]:
        teacher = open_teacher(plan.teacher, device="cpu")
        test = build_testset(TEST_SEED, candidates=plan.candidates, small=1)
        for seed in missing:
            with tempfile.TemporaryDirectory() as scratch:
                model: str | Path = plan.model
                if seed is not None:
                    model = train_once(plan, seed, teacher, out / "teacher", Path(scratch))
                scores = measure(MMEmbedder(model, device="cpu"), teacher, test)
            write_atomically(done[seed], (json.dumps({"seed": seed, "scores": scores}, indent=1) + "\n").encode())
    return [json.loads(path.read_text(encoding="utf-8")) for path in done.values()]


def train_once(plan: DistillationPlan, seed: int, teacher: SentenceTransformer, vectors: Path, scratch: Path) -> Path:
    """Distils with one seed.

    Args:
        plan: How.
        seed: Of sentences, adapter and order.
        teacher: From whom.
        vectors: Directory of the teacher's embeddings.
        scratch: Directory of the run.

    Returns:
        The distilled embedder.
    """
    pairs = draw_sentences(seed, pairs=plan.pairs)
    args = DistillationArguments(
        str(scratch / "run"),
        max_steps=plan.steps,
        global_batch_size=plan.batch,
        mini_batch_size=2 * plan.batch,
        learning_rate=plan.learning_rate,
        warmup_steps=0.1,
        temperature=plan.temperature,
        lora_rank=plan.lora_rank,
        lora_alpha=2 * plan.lora_rank,
        lora_dropout=0.0,
        lora_target_modules=ALL_LINEAR,
        seed=seed,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
    )
    found = embed_with_teacher(pairs, teacher, vectors / str(seed))
    student = open_student(plan.model, args)
    loss = OnePassDistillationLoss(student, found, temperature=plan.temperature, mini_batch_size=args.mini_batch_size)
    trainer = DistillationTrainer(student, args, pairs, found, loss=loss)
    trainer.train()
    return trainer.save_result(scratch / "model")


def measure(embedder: MMEmbedder, teacher: SentenceTransformer, test: TestSet) -> dict[str, float]:
    """Rank correlations with the teacher over held-out captions, and retrieval in percent."""
    texts = [{"text": text} for text in test.captions]
    pictures = [{"image": picture} for picture in test.pictures]
    queries, documents = embedder.encode_query(texts), embedder.encode_document(texts)
    theirs = teacher.encode(test.captions, normalize_embeddings=True)
    return {
        "Spearman, queries": _agreement(queries, theirs),
        "Spearman, documents": _agreement(documents, theirs),
        "text→image R@1": recall(queries @ embedder.encode_document(pictures).T, 1),
        "image→text R@1": recall(embedder.encode_query(pictures) @ documents.T, 1),
    }


def markdown(results: list[dict[str, Any]], plan: DistillationPlan) -> str:
    """The table: before, and after as mean ± standard deviation over the seeds."""
    before, *after = results
    lines = ["| | before | after | change |", "|---|---:|---:|---:|"]
    for name, value in before["scores"].items():
        values = [run["scores"][name] for run in after]
        spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
        lines.append(f"| {name} | {value:.1f} | {mean(values):.1f}{spread} | {mean(values) - value:+.1f} |")
    seeds = ", ".join(str(run["seed"]) for run in after)
    lines += ["", f"All times 100. {plan.candidates} held-out captions and their pictures; {plan.steps} steps of {plan.batch} pairs of "
              f"sentences, LoRA rank {plan.lora_rank}; seeds {seeds}."]  # fmt: skip
    return "\n".join(lines) + "\n"


def _agreement(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    """Spearman correlation, times 100, of the cosines of all pairs of sentences."""
    above = np.triu_indices(len(ours), 1)
    return 100 * float(spearmanr((ours @ ours.T)[above], (theirs @ theirs.T)[above]).statistic)
