"""Fill a store with traces: only what is missing, a batch at a time, each on the disk before the next begins.

In: a reasoner, and inputs or pairs. Out: a `TraceStore` that has a trace of each, and a `Filled` that says what it took.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from datasets import Dataset
from tqdm import tqdm

from hf_mmembed.data.pairs import NEGATIVE_FEATURES, document_of, negatives_of, query_of
from hf_mmembed.inputs import as_messages

from .families import family_of
from .reasoner import Reasoner
from .templates import FAMILIES, guess_family
from .traces import Record, Side, Trace, TraceStore, content_digest

__all__ = ["Filled", "Thought", "fill", "think_about_pairs", "thoughts_of_pairs"]

_WINDOW = 1024


@dataclass(frozen=True)
class Thought:
    """Something to think about.

    Attributes:
        name: For error messages, such as ``"row 7"``.
        input: As for `MMEmbedder.encode`.
        side: ``"query"`` or ``"document"``.
        family: One of `FAMILIES`.
        answer: To be shown to the reasoner. Defaults to None.
    """

    name: str
    input: Any
    side: Side
    family: str
    answer: str | None = None


@dataclass
class Filled:
    """What filling a store took.

    Attributes:
        new: Traces made.
        kept: Inputs whose trace was there already.
        tokens: Of the new traces.
        seconds: Of thinking.
    """

    new: int = 0
    kept: int = 0
    tokens: int = 0
    seconds: float = 0.0


def fill(store: TraceStore, reasoner: Reasoner, thoughts: Iterable[Thought], *, total: int | None = None) -> Filled:
    """Make the traces that are not there yet.

    Args:
        store: Where they go; those of other reasoners, prompts and settings in it do not count.
        reasoner: Who thinks.
        thoughts: About what. Read lazily, 1,024 at a time.
        total: Their number, for the progress bar.

    Raises:
        ValueError: An input cannot be used; the message names it. What was made before is in the store.
        ConnectionError: An endpoint does not answer; the same.
        KeyboardInterrupt: Ctrl-C was pressed; the same.
    """
    done = Filled()
    with tqdm(total=total, desc="thinking", unit="input", delay=2, disable=None) as progress:
        for window in _windows(thoughts):
            keyed: dict[str, tuple[Thought, str]] = {}
            for thought in window:
                try:
                    content = content_digest(as_messages(thought.input))
                except ValueError as error:
                    raise ValueError(f"{thought.name}: {error}") from error
                key = reasoner.origin.key(content, thought.side, thought.family, answer=thought.answer)
                keyed.setdefault(key, (thought, content))
            there = store.get(list(keyed))
            missing = [(key, *value) for key, value in keyed.items() if key not in there]
            done.kept += len(window) - len(missing)
            progress.update(len(window) - len(missing))
            for some in _alike(missing, reasoner.batch_size):
                begun = time.monotonic()
                traces, failure = _think(reasoner, [thought for _, thought, _ in some])
                done.seconds += time.monotonic() - begun
                made = [(*some[place], trace) for place, trace in sorted(traces.items())]
                store.put(
                    Record(key, content, thought.side, thought.family, reasoner.origin, trace)
                    for key, thought, content, trace in made
                )
                if failure is not None:
                    raise failure
                done.new += len(some)
                done.tokens += sum(trace.n_tokens for trace in traces.values())
                progress.update(len(some))
                progress.set_postfix({"tokens/s": round(done.tokens / max(done.seconds, 1e-9), 1)})
    return done


def think_about_pairs(
    store: TraceStore,
    reasoner: Reasoner,
    pairs: Dataset,
    *,
    sides: Sequence[Side] = ("query", "document"),
    families: str | Mapping[str, str] | None = None,
    show_answers: bool = False,
    part: tuple[int, int] = (0, 1),
) -> Filled:
    """Make traces of both sides of pairs.

    Args:
        store: Where they go.
        reasoner: Who thinks.
        pairs: What `read_pairs` returns.
        sides: ``"query"``, ``"document"`` or both, the default. Documents are of the family ``content``; the negatives
            that a row brings along are documents too.
        families: Of the queries: one for all, or by subset. Defaults to that of the data set if the subset is one of
            MMEB's, and else to a guess from the form of each query.
        show_answers: Show the text of its document to the reasoner when it thinks about a query. Such traces leak the
            answer to the embedder, which therefore takes them only when told so. Defaults to False.
        part: ``(i, n)`` for the i-th of n processes that share the work. Defaults to all of it.

    Raises:
        ValueError: As `fill`; or a side, a family or a subset is unknown, or an answer is to be shown that is a picture.
        ConnectionError: As `fill`.
    """
    thoughts = thoughts_of_pairs(pairs, sides=sides, families=families, show_answers=show_answers, part=part)
    total = len(sides) * len(range(part[0], len(pairs), part[1]))
    unknown = "document" in sides and not set(NEGATIVE_FEATURES).isdisjoint(pairs.column_names)
    return fill(store, reasoner, thoughts, total=None if unknown else total)


def thoughts_of_pairs(
    pairs: Dataset,
    *,
    sides: Sequence[Side] = ("query", "document"),
    families: str | Mapping[str, str] | None = None,
    show_answers: bool = False,
    part: tuple[int, int] = (0, 1),
    negatives: bool = True,
) -> Iterator[Thought]:
    """What there is to think about in pairs; the arguments are those of `think_about_pairs`, but for `negatives`.

    Without `negatives` there is one thought per side and row.
    """
    if wrong := sorted(set(sides) - {"query", "document"}):
        raise ValueError(f"there is no side {wrong[0]!r}; use 'query' and 'document'")
    named = {families} if isinstance(families, str) else set((families or {}).values())
    if unknown := sorted(named - set(FAMILIES)):
        raise ValueError(f"there is no task family {unknown[0]!r}; use one of {', '.join(FAMILIES)}")
    if isinstance(families, Mapping) and (unknown := sorted(set(families) - set(pairs.unique("subset")))):
        raise ValueError(f"the pairs have no subset {unknown[0]!r}; they have {', '.join(pairs.unique('subset'))}")
    rows = pairs.with_format(None)
    for side in sides:
        for number in range(part[0], len(pairs), part[1]):
            row = rows[number]
            item = query_of(row) if side == "query" else document_of(row)
            name, answer = f"row {number}, {side}", None
            if side == "query" and show_answers:
                answer = row["pos_text"]
                if not answer:
                    raise ValueError(f"{name}: its answer is a picture, which cannot be shown as one")
            family = "content"
            if side == "query":
                given = families if isinstance(families, str) else (families or {}).get(row["subset"])
                family = given or family_of(row["subset"]) or guess_family(as_messages(item), side)
            yield Thought(name, item, side, family, answer)
            if side == "document" and negatives:
                yield from (Thought(f"row {number}, negative", item, side, "content") for item in negatives_of(row))


def _windows(thoughts: Iterable[Thought]) -> Iterator[list[Thought]]:
    iterator = iter(thoughts)
    while window := [thought for _, thought in zip(range(_WINDOW), iterator, strict=False)]:
        yield window


def _alike(missing: list[Any], size: int) -> Iterator[list[Any]]:
    """Batches of one family, all with an answer shown or all without."""

    def kind(item: Any) -> tuple[str, bool]:
        return item[1].family, item[1].answer is not None

    for _, group in groupby(sorted(missing, key=kind), key=kind):
        alike = list(group)
        yield from (alike[start : start + size] for start in range(0, len(alike), size))


def _think(reasoner: Reasoner, thoughts: list[Thought]) -> tuple[dict[int, Trace], BaseException | None]:
    """The traces by the place of their thought, and why some are missing; what is paid for is never thrown away."""

    def traces_of(some: list[Thought]) -> list[Trace]:
        answers = [thought.answer for thought in some if thought.answer is not None]
        return reasoner.think([thought.input for thought in some], some[0].family, answers=answers or None)

    try:
        return dict(enumerate(traces_of(thoughts))), None
    except (ValueError, ConnectionError, KeyboardInterrupt) as error:
        finished: dict[int, Trace] = dict(getattr(error, "finished", {}))
        failure: BaseException = error
    if not isinstance(failure, ValueError):
        return finished, failure
    # The reasoner counts from the start of the batch; find the culprit to name it properly.
    for place, thought in enumerate(thoughts):
        if place not in finished:
            try:
                [finished[place]] = traces_of([thought])
            except (ConnectionError, KeyboardInterrupt) as error:
                return finished, error
            except ValueError as error:
                named = ValueError(f"{thought.name}: {error}")
                named.__cause__ = error
                return finished, named
    return finished, failure
