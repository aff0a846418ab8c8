"""What a reasoner wrote about an input, and the store that keeps it.

In: the raw text of a generation. Out: a `Trace`, told apart into reasoning and conclusion, and a `TraceStore`: one
SQLite file that any number of processes fill at once, that survives being killed at any moment, and that gives a trace
back only for exactly the same input, reasoner, prompt and settings.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from hf_mmembed.inputs import pictures

__all__ = ["Origin", "Record", "Trace", "TraceStore", "content_digest"]

Side = Literal["query", "document"]
Status = Literal["complete", "malformed", "cut", "empty"]

_FORM = re.compile(r"(?:<think>)?(?P<think>.*?)</think>(?P<final>.*)", re.DOTALL)
_SCHEMA = 1
_WAIT_SECONDS = 60.0
_AT_ONCE = 500  # SQLite takes a bounded number of parameters


@dataclass(frozen=True)
class Trace:
    """What a reasoner wrote about one input: ``<think> reasoning </think> conclusion``.

    Attributes:
        raw: All of it, as it was generated.
        finish_reason: ``"stop"`` if the reasoner ended it, ``"length"`` if it ran into the limit.
        n_tokens: How many tokens were generated.
        gold_visible: Whether the reasoner was shown the right answer.

    Example:
        >>> trace = Trace("<think> Two discs, one red. </think> red disc")
        >>> trace.status, trace.think, trace.final
        ('complete', 'Two discs, one red.', 'red disc')
        >>> Trace("<think> Two discs, one", finish_reason="length").status
        'cut'
    """

    raw: str
    finish_reason: Literal["stop", "length"] = "stop"
    n_tokens: int = 0
    gold_visible: bool = False

    @cached_property
    def _parts(self) -> tuple[str, str] | None:
        # Some chat templates write the opening tag themselves, so it may be missing from what is generated.
        match = _FORM.fullmatch(self.raw.strip())
        if match is None or "<think>" in match["think"] + match["final"] or "</think>" in match["final"]:
            return None
        think, final = match["think"].strip(), match["final"].strip()
        return (think, final) if final else None

    @property
    def status(self) -> Status:
        """``"complete"``; ``"cut"`` by the limit before there was a conclusion; ``"malformed"``; or ``"empty"``."""
        if not self.raw.strip():
            return "empty"
        if self._parts is not None:
            return "complete"
        return "cut" if self.finish_reason == "length" else "malformed"

    @property
    def think(self) -> str | None:
        """The reasoning; None unless the trace has the right form."""
        return None if self._parts is None else self._parts[0]

    @property
    def final(self) -> str | None:
        """The conclusion; None unless the trace has the right form."""
        return None if self._parts is None else self._parts[1]

    @property
    def text(self) -> str:
        """What the embedder reads: all of it, with the opening tag where the chat template had written it."""
        raw = self.raw.strip()
        return f"<think>{raw}" if self._parts is not None and not raw.startswith("<think>") else raw


@dataclass(frozen=True)
class Origin:
    """Who wrote a trace: two traces of one input are interchangeable only where all of this is equal.

    Attributes:
        reasoner: Hub id, directory or served name.
        revision: Commit, digest of the weights, or what the user calls the version of a served model.
        template_version: Of the prompts.
        settings: Of the generation, as JSON.
    """

    reasoner: str
    revision: str
    template_version: str
    settings: str

    def key(self, content: str, side: Side, family: str, *, answer: str | None = None) -> str:
        """SHA-256 of everything that a trace depends on, hexadecimal."""
        return _sha256([*asdict(self).values(), content, side, family, answer])


@dataclass(frozen=True)
class Record:
    """A trace on its way into the store."""

    key: str
    content: str
    side: Side
    family: str
    origin: Origin
    trace: Trace


def content_digest(messages: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 of an input: its instruction, its text and the bytes of its pictures; never a path or a name.

    A picture in a file and the bytes of that file are the same. A decoded picture (PIL, array, tensor) is told by its
    pixels, so it differs from the file it was read from.

    Args:
        messages: What `hf_mmembed.inputs.as_messages` returns.

    Raises:
        ValueError: A picture file cannot be read, or a picture is of an unknown type.
    """
    words = {
        role: [
            part["text"]
            for message in messages
            if message["role"] == role
            for part in _parts(message["content"])
            if part.get("type") == "text"
        ]
        for role in ("system", "user")
    }
    return _sha256([words, [_media_digest(picture) for picture in pictures(list(map(dict, messages)))]])


def _parts(content: Any) -> Iterable[Mapping[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _media_digest(picture: Any) -> str:
    if isinstance(picture, bytes):
        return hashlib.sha256(picture).hexdigest()
    if isinstance(picture, str):
        try:
            return hashlib.sha256(Path(picture).read_bytes()).hexdigest()
        except OSError as error:
            raise ValueError(f"the picture {picture} cannot be read ({error.strerror})") from error
    if isinstance(picture, Image.Image):
        picture = picture if picture.mode in ("L", "RGB", "RGBA") else picture.convert("RGBA")
        return _sha256([picture.mode, picture.size, hashlib.sha256(picture.tobytes()).hexdigest()])
    if isinstance(picture, torch.Tensor):
        picture = picture.detach().cpu().numpy()
    if isinstance(picture, np.ndarray):
        return _sha256([str(picture.dtype), picture.shape, hashlib.sha256(picture.tobytes()).hexdigest()])
    raise ValueError(f"a picture is a {type(picture).__name__}; give a path, bytes, a PIL image, an array or a tensor")


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()


class TraceStore:
    """Traces in one SQLite file.

    Several processes may read and write it at once; a batch that `put` has returned from is on the disk, and a process
    killed in between leaves no half of one. Use one object per process: a forked child must open its own.

    Args:
        path: The file; created with its directories where there is none.

    Raises:
        OSError: The file cannot be opened or created.
        ValueError: The file is there and is no store of traces, or one of a later version.

    Example:
        >>> store = TraceStore(":memory:")
        >>> origin = Origin("qwen", "main", "1", "{}")
        >>> store.put([Record(origin.key("c0ffee", "query", "qa"), "c0ffee", "query", "qa", origin, Trace("red"))])
        >>> store.get([origin.key("c0ffee", "query", "qa")]).popitem()[1].status
        'malformed'
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._lock = threading.Lock()
        try:
            if self.path != ":memory:":
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            # The rollback journal rather than the write-ahead log, which shared file systems of clusters cannot hold.
            self._connection = sqlite3.connect(self.path, timeout=_WAIT_SECONDS, check_same_thread=False)
        except (OSError, sqlite3.OperationalError) as error:
            raise OSError(
                f"cannot open {path} as a store of traces ({error}); give the path of a file, in a folder that can be "
                "written to"
            ) from error
        [[version]] = self._select("PRAGMA user_version")
        if version not in (0, _SCHEMA):
            raise ValueError(f"{path} was written by a later hf_mmembed (version {version}); upgrade it")
        if version == _SCHEMA:  # may be read where nothing can be written
            return
        with self._transaction() as connection:
            tables = [name for [name] in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            if tables and "traces" not in tables:  # SQLite files of others have version 0 too
                raise ValueError(
                    f"{path} is no store of traces (it holds the tables {', '.join(tables)}); give another path"
                )
            connection.execute(
                "CREATE TABLE IF NOT EXISTS traces (key TEXT PRIMARY KEY, content TEXT NOT NULL, side TEXT NOT NULL, "
                "family TEXT NOT NULL, reasoner TEXT NOT NULL, revision TEXT NOT NULL, template_version TEXT NOT NULL, "
                "settings TEXT NOT NULL, raw TEXT NOT NULL, status TEXT NOT NULL, finish_reason TEXT NOT NULL, "
                "n_tokens INTEGER NOT NULL, gold_visible INTEGER NOT NULL) WITHOUT ROWID"
            )
            connection.execute(f"PRAGMA user_version = {_SCHEMA}")

    def __enter__(self) -> TraceStore:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __len__(self) -> int:
        return self._select("SELECT count(*) FROM traces")[0][0]

    def get(self, keys: Sequence[str]) -> dict[str, Trace]:
        """The traces that are there, by key."""
        found: dict[str, Trace] = {}
        for start in range(0, len(keys), _AT_ONCE):
            some = keys[start : start + _AT_ONCE]
            marks = ",".join("?" * len(some))
            rows = self._select(f"SELECT key, {_TRACE} FROM traces WHERE key IN ({marks})", some)
            found.update({key: _trace(values) for key, *values in rows})
        return found

    def put(self, records: Iterable[Record]) -> None:
        """Add traces, all or none; what is there already stays as it is.

        Halves of surrogate pairs, which are no text, become question marks.
        """
        rows = [
            (r.key, r.content, r.side, r.family, *asdict(r.origin).values(), _as_unicode(r.trace.raw), r.trace.status,
             r.trace.finish_reason, r.trace.n_tokens, int(r.trace.gold_visible))
            for r in records
        ]  # fmt: skip
        with self._transaction() as connection:
            connection.executemany(f"INSERT OR IGNORE INTO traces VALUES ({','.join('?' * 13)})", rows)

    def origins(self) -> list[Origin]:
        """Whose traces the store holds."""
        return [Origin(*row) for row in self._select(f"SELECT DISTINCT {_ORIGIN} FROM traces ORDER BY {_ORIGIN}")]

    def only_origin(self) -> Origin | None:
        """Whose traces the store holds, or None if it is empty.

        Raises:
            ValueError: Traces of several reasoners, versions or settings are there.
        """
        origins = self.origins()
        if len(origins) > 1:
            raise ValueError(
                f"{self.path} holds traces of {len(origins)} origins, and a command takes those of one: let `hf-mmembed "
                "think` write into another file, or choose one with `origin` in Python. They are "
                + "; ".join(", ".join(f"{field}={value!r}" for field, value in asdict(o).items()) for o in origins)
            )
        return next(iter(origins), None)

    def records(self, origin: Origin | None = None) -> Iterator[Record]:
        """Everything of one reasoner, in the order of the keys.

        Args:
            origin: Whose. Defaults to the only one there is.

        Raises:
            ValueError: Traces of several reasoners are there and `origin` does not say which to take.
        """
        if (origin := origin or self.only_origin()) is None:
            return
        query = f"SELECT key, content, side, family, {_TRACE} FROM traces WHERE ({_ORIGIN}) = (?,?,?,?) ORDER BY key"
        for key, content, side, family, *values in self._select(query, list(asdict(origin).values())):
            yield Record(key, content, side, family, origin, _trace(values))

    def by_content(self, origin: Origin | None = None) -> dict[tuple[str, str], Trace]:
        """Traces by side and `content_digest`.

        A query that has several answers may have been thought about in sight of each; it is given the trace of the
        smallest key.

        Args:
            origin: Whose. Defaults to the only one there is.

        Raises:
            ValueError: Traces of several reasoners are there and `origin` does not say which to take; or an input was
                thought about as two task families, or with the answer shown and without.
        """
        found: dict[tuple[str, str], Record] = {}
        for record in self.records(origin):
            first = found.setdefault((record.side, record.content), record)
            alike = (first.family, first.trace.gold_visible) == (record.family, record.trace.gold_visible)
            if first.trace != record.trace and not alike:
                raise ValueError(
                    f"{self.path} holds different traces of one {record.side}: it was thought about as two task "
                    "families, or with the answer shown and without. Keep these in two stores."
                )
        return {place: record.trace for place, record in found.items()}

    def summary(self) -> dict[str, int]:
        """Number of traces by status, and all ``tokens``."""
        rows = self._select("SELECT status, count(*), sum(n_tokens) FROM traces GROUP BY status ORDER BY status")
        return {**{status: count for status, count, _ in rows}, "tokens": sum(tokens for *_, tokens in rows)}

    def _select(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._lock, self._named_errors():
            return self._connection.execute(query, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._named_errors(), self._connection:
            # Wait for other writers now: waiting is not possible in the middle of a transaction.
            self._connection.execute("BEGIN IMMEDIATE")
            yield self._connection

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError as error:
            raise ValueError(
                f"the store {self.path} cannot be used ({error}) If it was closed, open it again."
            ) from error
        except UnicodeEncodeError as error:
            raise ValueError(f"the store {self.path} takes valid Unicode alone ({error})") from error
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise OSError(f"{self.path}: {error}") from error
            raise ValueError(f"{self.path} is no store of traces ({error}); give another path") from error


_TRACE = "raw, finish_reason, n_tokens, gold_visible"
_ORIGIN = "reasoner, revision, template_version, settings"


def _as_unicode(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _trace(values: Sequence[Any]) -> Trace:
    raw, finish_reason, n_tokens, gold_visible = values
    return Trace(raw, finish_reason, n_tokens, bool(gold_visible))
