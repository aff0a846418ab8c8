"""Directories that are written elsewhere first, so that what stands in their place is complete.

In: the directory wanted. Out: one beside it, or in it, to write to; at the end its files are put in place.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_mmembed.files import saving
from hf_mmembed.lock import only_writer
from hf_mmembed.visible import is_litter

__all__ = ["replaced", "require_empty", "staged"]


def require_empty(out: Path) -> None:
    """Makes sure that nothing is overwritten; what a killed `staged` left there, or macOS, does not count.

    Raises:
        FileExistsError: `out` holds something, or is a file.
    """
    own = _staging_name(out)
    if out.exists() and (not out.is_dir() or not all(is_litter(e.name) or e.name == own for e in out.iterdir())):
        raise FileExistsError(f"{out} exists and is not an empty directory; choose another one or remove it.")


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """An empty directory to write to. Its files end up in `out` if all goes well; else nothing is left of them.

    What is there already, the working directory or a mount point perhaps, is filled, ``config.json`` last, without which
    nothing opens it; what is not there appears at once.

    Raises:
        FileExistsError: `out` holds something.
        OSError: The disk is full; the message names `out` and says what to do.
        ValueError: Another process is writing to `out`.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with staged(Path(folder, "model")) as written:
        ...         size = (written / "config.json").write_text("{}")
        ...     print([str(file.relative_to(folder)) for file in Path(folder).rglob("*.json")])
        ['model/config.json']
    """
    fill = out.is_dir()
    # A fixed name, so that the next run removes what a killed one left.
    held = (out if fill else out.parent) / _staging_name(out)
    with _held(held, out) as written:
        require_empty(out)  # once more: it may have been filled while the caller loaded a model
        with saving(out):
            yield written
        if fill:
            for file in sorted(written.iterdir(), key=lambda file: file.name == "config.json"):
                os.replace(file, out / file.name)
        else:
            os.replace(written, out)


@contextmanager
def replaced(out: Path) -> Iterator[Path]:
    """As `staged`, in the place of what `out` holds: that is removed once the new files are complete and in place.

    Raises:
        OSError: The disk is full, or `out` cannot be moved away, being a mount point perhaps; the message names `out`
            and says what to do. In the second case the new files stay where the message says, and the old ones in `out`.
        ValueError: Another process is writing to `out`.
    """
    out = out.resolve()  # a link to another disk stays one
    held = out.with_name(_staging_name(out))
    with _held(held, out) as written:
        with saving(out):
            yield written
        old = held / "old"
        try:
            if out.exists():
                shutil.rmtree(old, ignore_errors=True)  # a run was killed while it removed it
                os.replace(out, old)
            os.replace(written, out)
        except OSError as error:
            kept = out.with_name(f"{out.name}-{secrets.token_hex(4)}")
            new_moved = _moved(written, kept)
            old_is_back = out.exists() or not old.exists() or _moved(old, out)
            places = f"the new files are in {kept if new_moved else written}"
            if not old_is_back:
                places += f", the old ones in {old}"
            message = f"{out} cannot be replaced ({error.strerror}); {places}"
            if new_moved and old_is_back:
                raise OSError(f"{message}.") from error
            raise _Stuck(
                f"{message}: move what {held} holds elsewhere before the next run, which removes it."
            ) from error


class _Stuck(OSError):
    """Files that are nowhere else are still where they were written."""


def _moved(source: Path, target: Path) -> bool:
    """Whether it is now at `target`, where nothing was."""
    try:
        os.rename(source, target)
    except OSError:
        return False
    return True


@contextmanager
def _held(held: Path, out: Path) -> Iterator[Path]:
    """An empty directory in `held`, which no other process has meanwhile, and which is gone at the end.

    Raises:
        _Stuck: From within; then `held` stays.
    """
    held.mkdir(parents=True, exist_ok=True)
    with only_writer(held, out):
        stuck = False
        try:
            written = held / "files"
            shutil.rmtree(written, ignore_errors=True)
            written.mkdir()
            yield written
        except _Stuck:
            stuck = True
            raise
        finally:
            if not stuck:
                shutil.rmtree(held, ignore_errors=True)


def _staging_name(out: Path) -> str:
    return f".{out.resolve().name}.unfinished"
