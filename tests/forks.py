"""Forked copies of the process of a test, alone or as a gloo group.

They have everything imported already, which takes a new interpreter many seconds of processor time.
"""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState

from hf_mmembed import processes

__all__ = ["exit_code", "exit_codes", "in_processes"]

_FORK = multiprocessing.get_context("fork")


def exit_code(function: Callable[..., Any], *arguments: Any) -> int | None:
    """Calls `function(*arguments)` in a forked process; the negative number of the signal that ended it, if one did."""
    return exit_codes(function, arguments)[0]


def exit_codes(function: Callable[..., Any], *calls: tuple[Any, ...]) -> list[int | None]:
    """The same for several processes at once, each with the arguments of one of `calls`."""
    calling = [_FORK.Process(target=function, args=arguments) for arguments in calls]
    for process in calling:
        process.start()
    for process in calling:
        process.join()
    return [process.exitcode for process in calling]


def in_processes(function: Callable[..., Any], *arguments: Any, world: int = 2, store: Path) -> list[Any]:
    """What `function(rank, *arguments)` returns on each of some forked processes with a gloo group."""
    queue = _FORK.Queue()
    ranks = [
        _FORK.Process(target=_run, args=(function, arguments, rank, world, store, queue)) for rank in range(world)
    ]
    for process in ranks:
        process.start()
    results = dict.fromkeys(range(world))
    for _ in ranks:
        rank, result, error = queue.get(timeout=300)
        assert error is None, error
        results[rank] = result
    for process in ranks:
        process.join()
    return [results[rank] for rank in range(world)]


def _run(function, arguments, rank, world, store, queue):
    try:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world),
        }
        # accelerate looks at these even where the group is made already, and remembers that the parent was alone.
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "1", "ACCELERATE_USE_CPU": "true"}
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        processes.world.cache_clear()
        torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
        queue.put((rank, function(rank, *arguments), None))
        torch.distributed.destroy_process_group()
    except BaseException:  # noqa: BLE001, the parent raises it
        queue.put((rank, None, traceback.format_exc()))
