"""One job at a time in one directory: two would delete and replace each other's files.

In: a directory. Out: a context that the processes of one job are in, and no other job.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hf_mmembed.lock import only_writer
from hf_mmembed.processes import world

__all__ = ["held"]


@contextmanager
def held(directory: Path, out: Path | None = None) -> Iterator[None]:
    """Held by the main process, for all processes of a job.

    Args:
        directory: Created if needed.
        out: The directory that an error names. Defaults to `directory`.

    Raises:
        OSError: It cannot be created or written to; on all processes.
        ValueError: Another job holds it; as above.
    """
    with ExitStack() as stack:

        def hold() -> None:
            directory.mkdir(parents=True, exist_ok=True)
            stack.enter_context(only_writer(directory, out))

        world().once(hold)
        yield
