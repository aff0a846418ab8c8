"""Does it pay to think before embedding? Every variant of Think-Then-Embed on the riddles of the drawn world.

In: an embedder and the generative model it was made of. Out: for every arm and seed a JSON file with, for each of its
rows, R@1 by task, tokens and milliseconds per query. Runs that are done are not done again. `reasoning_report` makes
the table and the plot.

All runs of a seed have the same riddles, steps, riddles per step and initial weights. Only queries are thought about:
the documents are indexed as they are.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import PrinterCallback, TrainingArguments, set_seed

from hf_mmembed.bench.riddles import (
    DRAWN_TEMPLATES,
    FAMILY_OF,
    Riddle,
    RiddleTest,
    as_pairs,
    build_riddles,
    draw_riddles,
)
from hf_mmembed.bench.runs import ALL_LINEAR, check_plan
from hf_mmembed.bench.thinking_heads import HEADS, Heads
from hf_mmembed.data.pairs import query_of
from hf_mmembed.files import write_atomically
from hf_mmembed.inputs import as_messages
from hf_mmembed.sentence_transformer import MMEmbedder
from hf_mmembed.thinking.filling import think_about_pairs
from hf_mmembed.thinking.reasoner import LocalReasoner, PrecomputedReasoner, Settings
from hf_mmembed.thinking.sft import fine_tune
from hf_mmembed.thinking.traced import traced_trainer
from hf_mmembed.thinking.traces import Origin, Trace, TraceStore, content_digest
from hf_mmembed.tiny.evaluate import recall
from hf_mmembed.tiny.lean_training import lean_loss
from hf_mmembed.training.arguments import SaHaTrainingArguments
from hf_mmembed.training.trainer import SaHaTrainer

__all__ = ["ARMS", "ThinkingPlan", "run_thinking"]

logger = logging.getLogger(__name__)

TEST_SEED = 0
ARMS = ("direct", "oracle", "shipped", "unified")
"""What is trained: an embedder without traces, one on the oracle's, one on those of the generative model as it is, heads."""

_ORACLE = Origin("scene graph", "1", DRAWN_TEMPLATES.version, "{}")


@dataclass(frozen=True)
class ThinkingPlan:
    """What all runs share; a directory holds the runs of one plan.

    Attributes:
        model: Directory or Hub id of the embedder.
        generative: The generative checkpoint it was made of.
        steps: Optimizer steps of an embedder and of the heads.
        reasoner_steps: Of the fine-tuning of the reasoner.
        blocks: Of 16 riddles of one task each, to train on.
        queries: Of each task in the test.
        timed: Of each task, to measure milliseconds with.
        learning_rate: Of adapters and heads.
        reasoner_learning_rate: Of the reasoner.
        temperature: Of InfoNCE.
        lora_rank: Of the embedder's adapter on all linear layers of the language model, scaled by 2.
        max_new_tokens: A trace is cut here.
        trace_dropout: Share of the traces that an embedder is not shown.
    """

    model: str
    generative: str
    steps: int = 80
    reasoner_steps: int = 240
    blocks: int = 200
    queries: int = 150
    timed: int = 10
    learning_rate: float = 1e-3
    reasoner_learning_rate: float = 5e-4
    temperature: float = 0.03
    lora_rank: int = 8
    max_new_tokens: int = 80
    trace_dropout: float = 0.1


def run_thinking(out: Path, plan: ThinkingPlan, *, seeds: Sequence[int], arms: Sequence[str] = ARMS) -> list[Any]:
    """Runs what is not done yet, seed by seed, and returns the results of all runs asked for.

    Args:
        out: Directory of this plan: ``plan.json``, ``runs/``, the traces and the fine-tuned reasoners.
        plan: What all runs share.
        seeds: Of riddles, adapters, heads and order.
        arms: Of `ARMS`.

    Raises:
        ValueError: `out` holds the runs of another plan.
    """
    (out / "runs").mkdir(parents=True, exist_ok=True)
    check_plan(out, plan)
    done = {(arm, seed): out / "runs" / f"{arm}-{seed}.json" for seed in seeds for arm in arms}
    missing = [run for run, path in done.items() if not path.is_file()]
    test: dict[str, RiddleTest] | None = None
    memory: dict[bytes, torch.Tensor] = {}
    benches: dict[int, _Bench] = {}
    for arm, seed in tqdm(missing, desc="runs", disable=None):
        test = test or build_riddles(TEST_SEED, queries=plan.queries)
        bench = benches.setdefault(seed, _Bench(out, plan, seed, test, memory))
        began = time.process_time()
        result = {"arm": arm, "seed": seed, "rows": bench.run(arm), "cpu_seconds": time.process_time() - began}
        write_atomically(done[arm, seed], (json.dumps(result, indent=1) + "\n").encode())
        logger.info("%s, seed %d: %.0f CPU seconds", arm, seed, result["cpu_seconds"])
    return [json.loads(path.read_text(encoding="utf-8")) for path in done.values()]


class _Bench:
    """What the runs of one seed have in common."""

    def __init__(
        self, out: Path, plan: ThinkingPlan, seed: int, test: dict[str, RiddleTest], memory: dict[bytes, torch.Tensor]
    ) -> None:
        self.out, self.plan, self.seed, self.test, self.memory = out, plan, seed, test, memory
        self.queries = [riddle for part in test.values() for riddle in part.riddles]
        self.pictures = [picture for part in test.values() for picture in part.pictures]
        self.timed = [task * plan.queries + place for task in range(len(test)) for place in range(plan.timed)]

    def run(self, arm: str) -> list[dict[str, Any]]:
        """The rows of an arm; see `reasoning_report` for what they hold."""
        if arm == "direct":
            return self._rows(self._embedder(None), {"direct": None})
        if arm == "shipped":
            traces = self._think(self.shipped, self.queries)
            model = self._embedder(self._traces_of(self.shipped))
            return self._rows(model, {"TTE_t, shipped model": traces}, self.shipped)
        if arm == "unified":
            return self._rows_of_heads()
        oracle = [riddle.trace for riddle in self.queries]
        model = self._embedder(self._traces_of(self.oracle))
        conditions: dict[str, list[str] | None] = {
            "TTE_t, oracle": oracle,
            "final only": [str(Trace(trace).final) for trace in oracle],
            "no trace": None,
            "empty trace": ["<think> </think>"] * len(oracle),
            "shuffled trace": self._shuffled(oracle),
        }
        rows = self._rows(model, conditions)
        return rows + self._rows(model, {"TTE_s": self._student_traces}, self.student)

    # What is trained

    @cached_property
    def riddles(self) -> list[Riddle]:
        return draw_riddles(self.seed, blocks=self.plan.blocks)

    @cached_property
    def pairs(self) -> Any:
        return as_pairs(self.riddles)

    @cached_property
    def oracle(self) -> PrecomputedReasoner:
        rows = zip(self.pairs.with_format(None), self.riddles, strict=True)
        traces = {content_digest(as_messages(query_of(row))): Trace(riddle.trace) for row, riddle in rows}
        return PrecomputedReasoner(traces, origin=_ORACLE)

    @cached_property
    def shipped(self) -> LocalReasoner:
        return self._reasoner(self.plan.generative)

    @cached_property
    def student(self) -> LocalReasoner:
        return self._reasoner(self._student_path())

    @cached_property
    def _student_traces(self) -> list[str]:
        return self._think(self.student, self.queries)

    def _reasoner(self, path: str | Path) -> LocalReasoner:
        settings = Settings(self.plan.max_new_tokens, stop=())
        return LocalReasoner(path, settings=settings, templates=DRAWN_TEMPLATES, batch_size=64, device="cpu")

    @cached_property
    def _stopwatch(self) -> MMEmbedder:
        """An embedder that is as fast as the trained ones will be, with their adapters merged, and knows no picture."""
        return MMEmbedder(self.plan.model, device="cpu")

    @property
    def _tokenizer(self) -> Any:
        return self._stopwatch.tokenizer

    def _traces_of(self, reasoner: Any) -> tuple[TraceStore, Origin]:
        """Traces of the riddles to train on, made where they are missing."""
        store = TraceStore(self.out / f"traces-{self.seed}.sqlite")
        think_about_pairs(store, reasoner, self.pairs, sides=("query",), families=FAMILY_OF)
        return store, reasoner.origin

    def _student_path(self) -> Path:
        path = self.out / f"student-{self.seed}"
        if (path / "config.json").is_file():
            return path
        store, origin = self._traces_of(self.oracle)
        with tempfile.TemporaryDirectory() as scratch:
            args = TrainingArguments(
                scratch,
                max_steps=self.plan.reasoner_steps,
                per_device_train_batch_size=32,
                learning_rate=self.plan.reasoner_learning_rate,
                lr_scheduler_type="cosine",
                warmup_steps=0.1,
                seed=self.seed,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
            )
            return fine_tune(
                self.plan.generative, self.pairs, store, args, path,
                origin=origin, sides=("query",), families=FAMILY_OF, templates=DRAWN_TEMPLATES,
            )  # fmt: skip

    def _embedder(self, traces: tuple[TraceStore, Origin] | None) -> MMEmbedder:
        plan = self.plan
        clusters = np.arange(len(self.pairs)).reshape(plan.blocks, -1)
        loss = lean_loss(plan.temperature, memory=self.memory)
        with tempfile.TemporaryDirectory() as scratch:
            args = SaHaTrainingArguments(
                scratch,
                max_steps=plan.steps,
                global_batch_size=2 * clusters.shape[1],
                learning_rate=plan.learning_rate,
                warmup_steps=0.1,
                lora_rank=plan.lora_rank,
                lora_alpha=2 * plan.lora_rank,
                lora_dropout=0.0,
                use_dora=False,
                lora_target_modules=ALL_LINEAR,
                seed=self.seed,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
            )
            set_seed(self.seed)
            if traces is None:
                trainer = SaHaTrainer(plan.model, args, self.pairs, clusters, loss=loss)
            else:
                store, origin = traces
                trainer = traced_trainer(
                    plan.model, args, self.pairs, store, clusters,
                    origin=origin, dropout=plan.trace_dropout, loss=loss,
                )  # fmt: skip
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return trainer.model.eval()

    def _heads(self) -> Heads:
        heads = Heads(self._student_path(), self.memory, seed=self.seed)
        heads.train(
            self.riddles,
            block=len(self.riddles) // self.plan.blocks,
            steps=self.plan.steps,
            learning_rate=self.plan.learning_rate,
            temperature=self.plan.temperature,
        )
        return heads

    # What is measured

    def _rows(
        self, model: MMEmbedder, conditions: dict[str, list[str] | None], reasoner: LocalReasoner | None = None
    ) -> list[dict[str, Any]]:
        """A row for each way to give traces; with `reasoner`, who wrote them, its time counts too."""
        queries = [riddle.query for riddle in self.queries]
        timed = [queries[place] for place in self.timed]
        index = model.encode_document([{"image": picture} for picture in self.pictures])
        rows = []
        for name, traces in conditions.items():
            own = None if traces is None else [traces[place] for place in self.timed]
            ms = _milliseconds(partial(self._stopwatch.encode_query, timed, traces=own), len(timed))
            if reasoner is not None:
                asked_about = [self.queries[place] for place in self.timed]
                ms += _milliseconds(partial(self._think, reasoner, asked_about), len(timed))
            rows.append(self._as_row(name, model.encode_query(queries, traces=traces), index, traces, ms))
        return rows

    def _rows_of_heads(self) -> list[dict[str, Any]]:
        traces, heads = self._student_traces, self._heads()
        asked, index = heads.embed(self.queries, traces), heads.embed_pictures(self.pictures)
        timed = [self.queries[place] for place in self.timed]
        rows = []
        for name in HEADS:
            think_and_embed = partial(heads.think_and_embed, name, timed, max_new_tokens=self.plan.max_new_tokens)
            ms = _milliseconds(think_and_embed, len(timed))
            rows.append(self._as_row(f"TTE_u, {name}", asked[name], index[name], traces, ms))
        return rows

    def _as_row(
        self, name: str, asked: Any, index: Any, traces: list[str] | None, milliseconds: float
    ) -> dict[str, Any]:
        scores, first, offset = {}, 0, 0
        for task, part in self.test.items():
            queries = asked[first : (first := first + len(part.riddles))]
            documents = index[offset : (offset := offset + len(part.pictures))]
            scores[task] = recall(queries @ documents.T, 1, np.array(part.right))
        written = [""] * len(self.queries) if traces is None else traces
        finals = [Trace(trace).final or trace for trace in written]
        right = [Trace(riddle.trace).final == final for riddle, final in zip(self.queries, finals, strict=True)]
        tokens = [len(self._tokenizer(trace)["input_ids"]) for trace in written]
        return {
            "row": name,
            "scores": scores,
            "right": None if traces is None else 100 * float(np.mean(right)),
            "tokens": float(np.mean(tokens)),
            "milliseconds": milliseconds,
        }

    def _think(self, reasoner: LocalReasoner, riddles: Sequence[Riddle]) -> list[str]:
        # The templates ask the same of every family, so one call does for all.
        return [trace.text for trace in reasoner.think([riddle.query for riddle in riddles], "content")]

    def _shuffled(self, traces: list[str]) -> list[str]:
        """Every query with the trace of another one of its task."""
        shuffled, first = [], 0
        for part in self.test.values():
            own = traces[first : (first := first + len(part.riddles))]
            shuffled += own[1:] + own[:1]
        return shuffled


def _milliseconds(call: Callable[[], object], queries: int) -> float:
    """CPU milliseconds per query, of all threads together: what else the machine does then does not count."""
    began = time.process_time()
    call()
    return 1000 * (time.process_time() - began) / queries
