"""One run at a time in one output directory: two would delete and replace each other's checkpoints.

In: the output directory. Out: a context that the processes of one run are in, and no other run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hf_mmembed.lock import only_writer
from hf_mmembed.processes import world

__all__ = ["only_run"]

_held: set[Path] = set()


@contextmanager
def only_run(output_dir: str | Path) -> Iterator[None]:
    """Held by the main process, for all processes of a run; where this run holds it already, nothing changes.

    Args:
        output_dir: Of the run; created if needed.

    Raises:
        OSError: It cannot be created; on all processes.
        ValueError: Another run holds it; as above.
    """
    directory = Path(output_dir).resolve()
    if directory in _held:
        yield
        return
    with ExitStack() as stack:

        def hold() -> None:
            directory.mkdir(parents=True, exist_ok=True)
            stack.enter_context(only_writer(directory))

        world().once(hold)
        _held.add(directory)
        stack.callback(_held.discard, directory)
        yield
