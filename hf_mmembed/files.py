"""Files that exist in full or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacing", "saving", "write_atomically"]

# How safetensors and tokenizers, and then torch, tell an error of the system, each in an exception of its own.
_SIGNS = ("(os error ", "inline_container.cc", "PytorchStreamWriter")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ADVICE = ": is the disk full? Make room there, and run the command again; a training goes on with --resume"


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
    # Threads, and containers that share a disk, have the same number of a process.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
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


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Around what libraries write to `path`: an error of the system is an `OSError`, whichever of them meets it.

    Raises:
        OSError: The disk is full, or may not be written to; the message names `path` and says what to do.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise OSError(f"{path}: {error}{_ADVICE}") from error
    except Exception as error:
        if not any(sign in str(error) for sign in _SIGNS):
            raise
        raise OSError(f"{path}: {error}{_ADVICE}") from error
