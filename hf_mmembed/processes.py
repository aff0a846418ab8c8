"""Rank, world size and the few collectives that sharing out work needs.

In: the environment. Out: a `World`: which process this is, of how many, and what the others ran into.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

__all__ = ["World", "world"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

# One process may mine, merge or upload for hours, where the group that trains gives up on it after minutes.
PATIENCE = timedelta(days=7)
# What `accelerate launch` sets for more than one process, and what it or MPI sets if it starts them.
_LEFT_ALONE = ({"ACCELERATE_MIXED_PRECISION", "MASTER_PORT"}, {"WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"})


@dataclass(frozen=True)
class World:
    """This process among those of the run."""

    rank: int = 0
    size: int = 1
    device: str | None = None
    group: Any = field(default=None, repr=False, compare=False)

    @property
    def main(self) -> bool:
        """Whether this process writes the results."""
        return self.rank == 0

    def agree(self, failure: str | None) -> str | None:
        """Waits for all processes; the first failure of any of them."""
        return next((one for one in self.gather(failure) if one is not None), None)

    def gather(self, value: T) -> list[T]:
        """Waits for all processes; the value of each of them."""
        if self.size == 1:
            return [value]
        import torch.distributed

        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value, group=self.group)
        return values

    def share(self, value: T) -> T:
        """The main process's value, on all of them."""
        if self.size == 1:
            return value
        import torch.distributed

        values = [value]
        torch.distributed.broadcast_object_list(values, group=self.group)
        return values[0]

    def wait(self) -> None:
        """Waits for all processes."""
        self.agree(None)

    def once(self, make: Callable[[], T]) -> T:
        """What `make` gives on the main process, on all of them; it and what it raises must pickle.

        Raises:
            OSError: `make` raises it; on all processes.
            ValueError: As above.
        """
        made: Any = None
        failure: OSError | ValueError | None = None
        if self.main:
            try:
                made = make()
            except (OSError, ValueError) as error:
                failure = error
        made, failure = self.share((made, failure))
        if failure is not None:
            raise failure
        return made


@cache
def world() -> World:
    """The processes of this run; one, unless a launcher says otherwise."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        if _LEFT_ALONE[0] <= os.environ.keys() and not _LEFT_ALONE[1] & os.environ.keys():
            logger.warning(
                "accelerate launch was asked for several processes and started one, since it found no several GPUs: add "
                "--multi_gpu, which starts them on a CPU too"
            )
        return World()
    import torch.distributed
    from accelerate import PartialState

    # Without an accelerator it has to be told, or every process takes itself for the only one.
    state = PartialState(cpu=not torch.accelerator.is_available())
    group = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
    return World(state.process_index, state.num_processes, str(state.device), group)
