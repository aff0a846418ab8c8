"""Train an embedder, or the head of a unified model, in sight of traces: with any sampler and any loss of the package.

In: what `SaHaTrainer` takes, and a store of traces. Out: a `SaHaTrainer` whose batches carry the traces in the
assistant's turn. Some are dropped at random, so that one model works with a trace and without.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from datasets import Dataset

from hf_mmembed.inputs import with_trace
from hf_mmembed.processes import world
from hf_mmembed.sentence_transformer import MMEmbedder
from hf_mmembed.training.arguments import SaHaTrainingArguments
from hf_mmembed.training.chunks import Side
from hf_mmembed.training.collator import ROW, PairCollator
from hf_mmembed.training.trainer import SaHaTrainer

from .coverage import require_traces
from .traces import Origin, TraceStore, content_digest

__all__ = ["AnswerTraces", "TracedCollator", "traced_trainer"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnswerTraces:
    """Traces of queries that were written in sight of an answer: a query has one for each of its answers.

    Args:
        origin: Whose.
        families: Task family by `content_digest` of the query.
        texts: Of the traces, by `Origin.key`.
    """

    origin: Origin
    families: Mapping[str, str]
    texts: Mapping[str, str]

    @classmethod
    def read(cls, store: TraceStore, origin: Origin | None = None) -> AnswerTraces | None:
        """Those of a store; None if it has none."""
        records = [record for record in store.records(origin) if record.trace.gold_visible]
        if not records:
            return None
        families = {record.content: record.family for record in records}
        return cls(records[0].origin, families, {record.key: record.trace.text for record in records})

    def of(self, content: str, answer: str) -> str | None:
        """Text of the trace of a query with this answer."""
        family = self.families.get(content)
        return self.texts.get(self.origin.key(content, "query", family, answer=answer)) if family else None


class TracedCollator:
    """`PairCollator` with a trace behind every input whose side was thought about.

    Args:
        collator: Makes the batches.
        traces: Text of the trace by side and `content_digest`; an empty one is no trace.
        dropout: Share of the traces that are left out, anew in every batch.
        answers: Where queries were thought about in sight of their answers: each row then has its own.

    Attributes:
        sides: Those that were thought about.
        valid_label_columns: Asked for by the trainer of sentence-transformers; there are none.

    Raises:
        ValueError: `dropout` is no share.
    """

    valid_label_columns: Sequence[str] = ()

    def __init__(
        self,
        collator: PairCollator,
        traces: Mapping[tuple[str, str], str],
        dropout: float = 0.1,
        answers: AnswerTraces | None = None,
    ) -> None:
        if not 0 <= dropout < 1:
            raise ValueError(f"trace dropout is {dropout}; use 0 up to, not including, 1")
        self.collator, self.traces, self.dropout, self.answers = collator, traces, dropout, answers
        self.sides = {side for side, _ in traces}

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The batch of `PairCollator`, with traces.

        Raises:
            ValueError: An input has no trace though its side was thought about; the message names its row.
        """
        batch = self.collator(rows)
        return {**batch, "sides": tuple(self._traced(side, rows) for side in batch["sides"])}

    def trace_of(self, side: str, messages: Sequence[Mapping[str, Any]], answer: str) -> str | None:
        """Text of the trace of an input; None where it has none.

        Args:
            side: ``"query"`` or ``"document"``.
            messages: The input.
            answer: Of its row, by which traces of a query that were written in sight of it are told.
        """
        content = content_digest(messages)
        if self.answers is not None and side == "query":
            return self.answers.of(content, answer)
        return self.traces.get((side, content))

    def missing(self, side: str) -> tuple[str, str]:
        """What of a row is without a trace, where one is missing on this side, and the command that makes it."""
        if self.answers is not None and side == "query":
            return "query in sight of its answer", "`hf-mmembed think --show-answers`"
        return "query" if side == "query" else "document, or a negative of it", "`hf-mmembed think`"

    def _traced(self, side: Side, rows: Sequence[Mapping[str, Any]]) -> Side:
        if side.task not in self.sides:
            return side
        answers = [""] * len(side.messages)
        if self.answers is not None and side.task == "query":
            messages = [side.messages[place] for place in side.places]
            side = Side(messages, [int(row[ROW]) for row in rows], torch.arange(len(rows)), side.task)
            answers = [row["pos_text"] for row in rows]
        traces = [self.trace_of(side.task, *of) for of in zip(side.messages, answers, strict=True)]
        if None in traces:
            row, (what, command) = side.rows[traces.index(None)], self.missing(side.task)
            raise ValueError(f"row {row} has no trace for its {what}: make it with {command} from the same pairs")
        kept = torch.rand(len(traces)) >= self.dropout
        messages = [
            with_trace(turns, trace) if keep else turns
            for turns, trace, keep in zip(side.messages, traces, kept.tolist(), strict=True)
        ]
        return replace(side, messages=messages)


def traced_trainer(
    model: MMEmbedder | str | os.PathLike[str],
    args: SaHaTrainingArguments,
    pairs: Dataset,
    store: TraceStore,
    clusters: Any = None,
    *,
    origin: Origin | None = None,
    dropout: float = 0.1,
    allow_gold: bool = False,
    **trainer: Any,
) -> SaHaTrainer:
    """A `SaHaTrainer` that shows the embedder what a reasoner wrote.

    Args:
        model: As for `SaHaTrainer`; with `open_unified` only the head is trained, without generating anything.
        args: The same.
        pairs: The same.
        store: Traces of queries, of documents, or of both. Those of documents get a warning: `index` and `evaluate` read
            documents without.
        clusters: As for `SaHaTrainer`.
        origin: Whose traces. Defaults to the only ones in the store.
        dropout: Share of traces left out. Defaults to 0.1.
        allow_gold: Take traces of a reasoner that was shown the answer. They give it away, so that the embedder learns
            to read what it will not have; an error by default. Each row is given the trace of its own answer.
        **trainer: More arguments of `SaHaTrainer`, such as ``loss``.

    Raises:
        ValueError: There are no traces, those of several reasoners, some that saw the answer, or too few for the pairs.
    """
    found = store.by_content(origin)
    if not found:
        raise ValueError(f"{store.path} holds no traces; make them with `hf-mmembed think`")
    gold = sum(trace.gold_visible for trace in found.values())
    if gold and not allow_gold:
        raise ValueError(
            f"{gold} of {len(found)} traces in {store.path} were written in sight of the answer, which they give away; "
            "make them without --show-answers, or say allow_gold=True"
        )
    made = SaHaTrainer(model, args, pairs, clusters, **trainer)
    texts = {key: trace.text for key, trace in found.items()}
    answers = AnswerTraces.read(store, origin) if gold else None
    made.data_collator = TracedCollator(made.data_collator, texts, dropout, answers)
    world().once(partial(require_traces, pairs, made.ids, made.data_collator, made.clusters))
    if "document" in made.data_collator.sides and world().main:
        logger.warning(
            "documents are shown with traces, but `index`, `embed` and `evaluate` read them without: make traces of the "
            "queries alone (`hf-mmembed think --side query`, into another file), unless you embed documents with theirs"
        )
    # Not the texts: a store only grows, and what is added to it about other inputs changes nothing.
    made.depends_on |= {
        "traces": asdict(origin or store.origins()[0]), "trace_dropout": dropout, "answers_in_sight": bool(gold)
    }  # fmt: skip
    return made
