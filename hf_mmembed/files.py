"""Files that exist in full or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacing", "write_atomically"]


def write_atomically(path: Path, data: bytes) -> None:
    """Writes to a temporary name beside `path`, flushes it to the disk and renames it.

    Raises:
        OSError: It cannot be written; the message names `path`.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; the file there is flushed to the disk and renamed in the end.

    Raises:
        OSError: It cannot be written; the message names `path`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        # A write to an open file fails without naming it.
        error.filename = error.filename or os.fspath(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
