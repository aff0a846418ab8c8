"""Thinking at the moment of embedding: a reasoner, optionally with a store that remembers, and the choice when to.

In: conversations on their way to the embedder. Out: a `Trace` for each, or None where there is nothing to think.
Set it as `MMEmbedder.thinker`; `MMEmbedder.encode(..., think="auto")` then asks it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from typing import Any, Literal

from .filling import Filled, Thought, fill
from .reasoner import Reasoner
from .templates import guess_family
from .traces import Side, Trace, TraceStore, content_digest

__all__ = ["Thinker"]


class Thinker:
    """Decides what to think about, and thinks.

    Args:
        reasoner: Who thinks.
        store: Remembers traces over calls and processes. Defaults to one in memory.

    Attributes:
        spent: What thinking has taken so far, over all calls.

    Example:
        ::

            model = MMEmbedder("my-embedder")
            model.thinker = Thinker(LocalReasoner("Qwen/Qwen2.5-VL-7B-Instruct"), TraceStore("traces.sqlite"))
            vectors, traces = model.encode_query(questions, think="auto", return_traces=True)
    """

    def __init__(self, reasoner: Reasoner, store: TraceStore | None = None) -> None:
        self.reasoner = reasoner
        self.store = TraceStore(":memory:") if store is None else store
        self.spent = Filled()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: a process that embeds for another one gets its traces from there."""
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Thinker:
        return self

    def __call__(
        self,
        conversations: Sequence[list[dict[str, Any]]],
        *,
        think: Literal["always", "auto"],
        task: str | None,
        task_family: str | None = None,
    ) -> list[Trace | None]:
        """Traces of conversations.

        Args:
            conversations: What `hf_mmembed.inputs.as_messages` returns.
            think: ``"always"``, or ``"auto"``: about queries of families where it pays by the templates (questions,
                classification, grounding, changes to a picture), and never about documents.
            task: ``"query"``, ``"document"`` or None, which is a document.
            task_family: One of `FAMILIES`. Defaults to a guess from the form of each query, and to ``"content"`` for
                documents.

        Returns:
            One per conversation; None where there was no thinking.

        Raises:
            ValueError: An input cannot be used, or the family is unknown.
            ConnectionError: An endpoint does not answer.
        """
        templates = self.reasoner.templates
        if task_family is not None and task_family not in templates.requests:
            raise ValueError(
                f"there is no task family {task_family!r}; use one of {', '.join(map(repr, templates.requests))}"
            )
        side: Side = "query" if task == "query" else "document"
        families = [task_family or guess_family(messages, task) for messages in conversations]
        wanted = [
            index
            for index, family in enumerate(families)
            if think == "always" or (side == "query" and templates.think[family])
        ]
        taken = fill(
            self.store,
            self.reasoner,
            [Thought(f"inputs[{index}]", conversations[index], side, families[index]) for index in wanted],
            total=len(wanted),
        )
        self.spent = Filled(*map(sum, zip(astuple(self.spent), astuple(taken), strict=True)))
        key_of = {
            index: self.reasoner.origin.key(content_digest(conversations[index]), side, families[index])
            for index in wanted
        }
        there = self.store.get(list(set(key_of.values())))
        return [there[key_of[index]] if index in key_of else None for index in range(len(conversations))]
