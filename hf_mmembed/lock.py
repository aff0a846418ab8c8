"""One writer at a time: two processes that write to one directory would mix up their files.

In: a directory. Out: a context that only one process can be in.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["LOCK", "only_writer"]

LOCK = ".lock"


@contextmanager
def only_writer(directory: Path, out: Path | None = None) -> Iterator[None]:
    """Holds a directory for writing. The lock ends with the process, however that ends; its empty file stays.

    Args:
        directory: Where the lock's file is.
        out: The directory that an error names. Defaults to `directory`.

    Raises:
        ValueError: Somebody else holds it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(directory / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(
            f"another process is writing to {out or directory}: wait until it has finished, or choose another directory"
        ) from error
    try:
        yield
    finally:
        lock.release()
