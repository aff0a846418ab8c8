"""Scores in the sight of what a reasoner writes (Think-Then-Embed, arXiv 2510.05014), and what that costs.

In: the items of a data set, and a `Thinker` or the traces it wrote earlier. Out: the same items, each with its trace, the
tokens and milliseconds of thinking per query, and how many queries have a trace, and a whole one. A thinker with a store
on the disk goes on where it was killed, and several processes that share the store share the work.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from hf_mmembed.processes import world
from hf_mmembed.thinking.families import family_of

from .items import Item, Role, as_input, name_input
from .subsets import Subset

if TYPE_CHECKING:
    from hf_mmembed.thinking import Thinker, Trace, TraceStore
    from hf_mmembed.thinking.traces import Status

__all__ = ["NOT_WHOLE", "ThinkWhen", "Thought", "WrittenTraces", "source_of_traces", "think_about"]

logger = logging.getLogger(__name__)

ThinkWhen = Literal["auto", "always"]

NOT_WHOLE: tuple[Status, ...] = ("cut", "malformed", "empty")
"""What a trace may be that is there but not ``complete``."""

_ROLES: tuple[Role, ...] = ("query", "document")
_AT_ONCE = 1024  # inputs whose pictures are in memory


@dataclass(frozen=True)
class WrittenTraces:
    """What is in a store of traces, read once for all data sets.

    Attributes:
        path: Of the store.
        traces: By role and `hf_mmembed.thinking.traces.content_digest`.
    """

    path: str
    traces: Mapping[tuple[str, str], Trace]


@dataclass(frozen=True)
class Thought:
    """Items with their traces, and what those of the queries cost.

    Attributes:
        items: As they were given, in order; one that was not thought about is as it was.
        tokens_per_query: Tokens written, on average over all items of role ``"query"``.
        ms_per_query: Milliseconds for each trace of a query that was written now, on average; None when none was.
        counts: Queries that have a trace, as ``traced``; of these, whose trace is ``cut``, ``malformed`` or ``empty``; see
            `hf_mmembed.thinking.Trace.status`.
    """

    items: list[Item]
    tokens_per_query: float
    ms_per_query: float | None
    counts: dict[str, int]


def source_of_traces(think: Thinker | TraceStore | None) -> Thinker | WrittenTraces | None:
    """What `think_about` asks: a thinker as it is, a store read.

    Raises:
        ValueError: The store holds traces of several reasoners, or such that contradict each other.
    """
    from hf_mmembed.thinking import TraceStore

    return WrittenTraces(think.path, think.by_content()) if isinstance(think, TraceStore) else think


def think_about(items: Sequence[Item], source: Thinker | WrittenTraces, when: ThinkWhen, subset: Subset) -> Thought:
    """Gives items their traces.

    Args:
        items: Those of a data set.
        source: Who thinks; or traces that are there, whose content then decides what has one.
        when: ``"auto"``: a thinker thinks about queries of families where it pays by its templates; of traces that are
            there, a task family may have none. ``"always"``: about every query and document; each query must have one.
        subset: The data set, which says of which family its queries are.

    Raises:
        ValueError: An item cannot be used, queries that should have a trace in the store have none, or a trace was written
            in sight of the right answer.
        ConnectionError: An endpoint does not answer. What was written before is in the thinker's store.
    """
    found = list(items)
    tokens, new, seconds = 0, 0.0, 0.0
    counts: dict[str, int] = {}
    places_of = {role: [place for place, item in enumerate(items) if item.role == role] for role in _ROLES}
    for role, places in places_of.items():
        before = _spent(source)
        traces = _traces([items[place] for place in places], source, when, role, subset)
        for place, trace in zip(places, traces, strict=True):
            if trace is not None:
                if trace.gold_visible:
                    raise ValueError(
                        f"the trace of {items[place]} was written in sight of the right answer; scores with it say nothing"
                    )
                found[place] = replace(items[place], trace=trace.text)
        if isinstance(source, WrittenTraces):
            _check_coverage([items[place] for place in places], traces, source.path, when, subset)
        if role == "query":
            counts = _count([trace for trace in traces if trace is not None], subset)
            tokens = sum(trace.n_tokens for trace in traces if trace is not None)
            new, seconds = (now - then for now, then in zip(_spent(source), before, strict=True))
    return Thought(found, tokens / max(1, len(places_of["query"])), 1000 * seconds / new if new else None, counts)


def _spent(source: Thinker | WrittenTraces) -> tuple[float, float]:
    """Traces written so far, and the seconds it took."""
    spent = getattr(source, "spent", None)
    return (spent.new, spent.seconds) if spent is not None else (0, 0.0)


def _count(traces: Sequence[Trace], subset: Subset) -> dict[str, int]:
    """Traces of queries by what is wrong with them; a warning where something is."""
    found = Counter(trace.status for trace in traces)
    wrong: dict[str, int] = {status: found[status] for status in NOT_WHOLE}
    if any(wrong.values()) and world().main:
        logger.warning(
            "%s: %d of %d traces of queries are not of the form <think> reasoning </think> conclusion (%s), and the model "
            "reads them as they are: a larger --max-new-tokens helps those that are cut, a better reasoner the others",
            subset.name, sum(wrong.values()), len(traces), ", ".join(f"{n} {status}" for status, n in wrong.items() if n),
        )  # fmt: skip
    return {"traced": len(traces), **wrong}


def _traces(
    items: list[Item], source: Thinker | WrittenTraces, when: ThinkWhen, role: Role, subset: Subset
) -> Sequence[Trace | None]:
    """One per item of this role, or None where there is none."""
    from hf_mmembed.inputs import as_messages
    from hf_mmembed.thinking.traces import content_digest

    if isinstance(source, WrittenTraces):
        return [source.traces.get((role, content_digest(as_messages(as_input(item))))) for item in items]
    if role == "document" and when == "auto":
        return [None] * len(items)
    family = family_of(subset.name, subset.meta_task) if role == "query" else None
    here = world()
    failure = None
    try:
        traces = _think(items[here.rank :: here.size], source, think=when, task=role, task_family=family)
    except ValueError as error:
        failure = str(error)
    if (failure := here.agree(failure)) is not None:
        raise ValueError(failure)
    return traces if here.size == 1 else _think(items, source, think=when, task=role, task_family=family)


def _check_coverage(
    items: list[Item], traces: Sequence[Trace | None], path: str, when: ThinkWhen, subset: Subset
) -> None:
    """Compares the traces in a store with what was to be thought about; all items are of one role.

    Raises:
        ValueError: Queries lack a trace that others of their kind have.
    """
    lacking = [place for place, trace in enumerate(traces) if trace is None]
    if not lacking:
        return
    here, share = world(), f"{len(lacking)} of {len(items)}"
    if items[0].role == "document":
        if len(lacking) < len(items) and here.main:
            logger.warning(
                "%s documents of %s have no trace in %s, but the others have: the model reads the two differently, which "
                "moves the score; make traces of all of them, or of the queries alone (--side query)",
                share, subset.name, path,
            )  # fmt: skip
        return
    if len(lacking) == len(items):
        raise ValueError(f"{path} has no trace of a query of {subset.name}; was it made from other words?")
    from hf_mmembed.inputs import as_messages
    from hf_mmembed.thinking.templates import guess_family, load_templates

    known = family_of(subset.name, subset.meta_task)
    families = [known or guess_family(as_messages(as_input(item)), "query") for item in items]
    without = {families[place] for place in lacking}
    # A thinker with "auto" leaves out whole families, so a part of one was never finished.
    if when == "always" or without & {of for of, trace in zip(families, traces, strict=True) if trace is not None}:
        raise ValueError(
            f"{share} queries of {subset.name} have no trace in {path} (first: {items[lacking[0]]}): `hf-mmembed think` leaves "
            "such a store when it is stopped; the same command goes on where it was, and takes the queries in the words "
            "that they have here"
        )
    pays = load_templates().think
    if (wanted := sorted(of for of in without if pays[of])) and here.main:
        logger.warning(
            "%s queries of %s have no trace in %s, among them all of the task family %s, which gains from thinking: they "
            "are scored without",
            share, subset.name, path, " and ".join(wanted),
        )  # fmt: skip


def _think(items: list[Item], thinker: Thinker, **options: Any) -> list[Trace | None]:
    from hf_mmembed.inputs import as_messages

    traces: list[Trace | None] = []
    for start in range(0, len(items), _AT_ONCE):
        some = items[start : start + _AT_ONCE]
        try:
            traces += thinker([as_messages(as_input(item)) for item in some], **options)
        except ValueError as error:
            raise name_input(error, some) from error
    return traces
