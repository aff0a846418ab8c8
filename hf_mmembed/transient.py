"""Transient I/O errors: the disk or the machine is at fault, so a retry may succeed.

In: an error. Out: whether what failed is worth another try.
"""

from __future__ import annotations

import errno

__all__ = ["is_transient"]

_TRANSIENT = {
    errno.EAGAIN, errno.EHOSTDOWN, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOTCONN, errno.ESTALE,
    errno.ETIMEDOUT,
}  # fmt: skip


def is_transient(error: BaseException | None) -> bool:
    """Whether the error, or one that it was raised from, may be gone the next time.

    Example:
        >>> is_transient(OSError(errno.EIO, "Input/output error")), is_transient(FileNotFoundError(errno.ENOENT, "none"))
        (True, False)
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _TRANSIENT:
            return True
        error = error.__cause__
    return False
