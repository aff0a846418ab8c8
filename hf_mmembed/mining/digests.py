"""Digests of picture files that outlive the run, so that the next start reads only the files that have changed.

In: a file to keep them in. Out: a function from the path of a picture to the digest of its bytes. The file holds the
digest of each file's resolved path and state, and of its bytes: 32 bytes per picture, in no order. It can be deleted.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from hf_mmembed.data.rows import file_state
from hf_mmembed.files import write_atomically

__all__ = ["DIGEST_BYTES", "KEPT_DIGESTS", "digest_of", "keeping_digests", "read_digest"]

logger = logging.getLogger(__name__)

DIGEST_BYTES = 16

KEPT_DIGESTS = "picture-digests"
"""Name of the file to keep them in, in a run's output directory."""

_FORMAT = b"hf_mmembed/digests 1\n"
_BODY = len(_FORMAT) + DIGEST_BYTES
# A file system counts in up to two seconds: a file may change again within them and look the same.
_SETTLED = 2_000_000_000


def digest_of(data: bytes) -> bytes:
    """`DIGEST_BYTES` bytes, the same in every run."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def read_digest(path: str) -> bytes:
    """That of the bytes of a file.

    Raises:
        OSError: It cannot be read, or is no file.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for, a device has no end
        raise OSError(errno.EINVAL, "it is no file")
    return digest_of(Path(path).read_bytes())


@contextmanager
def keeping_digests(kept: Path) -> Iterator[Callable[[str], bytes]]:
    """`read_digest`, which reads no file that has the path, size and modification time of one it has read before.

    Several threads may call it. In the end, the digests of the files it was asked for are kept and all others forgotten;
    if something fails on the way, both are kept.

    Args:
        kept: The file to keep them in. One that is broken counts for nothing, and one that cannot be written is a
            warning: it only saves time.
    """
    known = _load(kept)
    asked: dict[bytes, bytes] = {}
    resolved = cache(os.path.realpath)  # of folders: each of its parts is a look at the disk

    def digest(path: str) -> bytes:
        place = os.path.join(resolved(os.path.dirname(path)), os.path.basename(path))
        if os.path.islink(place):
            place = os.path.realpath(place)
        state = digest_of(os.fsencode(place) + b"\0" + file_state(Path(place)).encode())
        found = known.get(state) or asked.get(state)
        if found is None:
            settled = time.time_ns() - os.stat(path).st_mtime_ns >= _SETTLED  # before it is read: it may change then
            found = read_digest(path)
            if not settled:
                return found
        asked[state] = found
        return found

    try:
        yield digest
    except BaseException:
        if not asked.keys() <= known.keys():
            _save(kept, known | asked)
        raise
    if asked.keys() != known.keys():
        _save(kept, asked)


def _load(kept: Path) -> dict[bytes, bytes]:
    try:
        data = kept.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        logger.warning("%s cannot be read (%s): all pictures are read again", kept, error.strerror)
        return {}
    body = data[_BODY:]
    if data[:_BODY] != _FORMAT + digest_of(body) or len(body) % (2 * DIGEST_BYTES):
        logger.warning("%s is broken or of another version: all pictures are read again", kept)
        return {}
    return dict(struct.iter_unpack(f"{DIGEST_BYTES}s{DIGEST_BYTES}s", body))


def _save(kept: Path, digests: dict[bytes, bytes]) -> None:
    body = b"".join(state + digest for state, digest in digests.items())
    try:
        write_atomically(kept, _FORMAT + digest_of(body) + body)
    except OSError as error:
        logger.warning("%s cannot be written (%s): the next run reads all pictures again", kept, error.strerror)
