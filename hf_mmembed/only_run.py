"""One run at a time in one output directory: two would delete and replace each other's files.

In: a directory. Out: a context that the processes of one run are in, and no other run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path

from .lock import only_writer
from .processes import world

__all__ = ["only_run"]

# Of a thread each: another thread is another run.
_held: ContextVar[frozenset[Path]] = ContextVar("held", default=frozenset())


@contextmanager
def only_run(directory: str | Path, out: str | Path | None = None) -> Iterator[None]:
    """Held by the main process, for all processes of a run; where this run holds it already, nothing changes.

    Args:
        directory: Created if needed.
        out: The directory that an error names. Defaults to `directory`.

    Raises:
        OSError: It cannot be created or written to; on all processes.
        ValueError: Another run holds it; as above.
    """
    place = Path(directory).resolve()
    if place in _held.get():
        yield
        return
    with ExitStack() as stack:

        def hold() -> None:
            place.mkdir(parents=True, exist_ok=True)
            stack.enter_context(only_writer(place, Path(out or directory)))

        world().once(hold)
        stack.callback(_held.reset, _held.set(_held.get() | {place}))
        yield
        world().wait()  # or another run could begin while some of this one still read
