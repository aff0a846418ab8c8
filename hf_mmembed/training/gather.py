"""Tensors of all processes in one, where each process may have another number of rows.

In: a tensor of each process, ``(rows, ...)``. Out: the same on every process, in the order of the ranks. Without
``torch.distributed``, what comes in goes out.
"""

from __future__ import annotations

import torch
from sentence_transformers.util.distributed import all_gather, all_gather_with_grad, get_world_size
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["any_process", "gather_numbers", "gather_rows"]


def gather_numbers(numbers: list[int], device: torch.device) -> list[list[int]]:
    """What each process has to say in a few integers.

    Args:
        numbers: As many on every process.
        device: Where the backend of ``torch.distributed`` wants tensors to be.

    Returns:
        One list per process.

    Example:
        >>> gather_numbers([3, 4], torch.device("cpu"))
        [[3, 4]]
    """
    if get_world_size() == 1:
        return [numbers]
    return all_gather(torch.tensor([numbers], device=device)).tolist()


def any_process(fact: bool, device: torch.device) -> bool:
    """Whether something is so on at least one process."""
    return any(answer for [answer] in gather_numbers([int(fact)], device))


def gather_rows(rows: Tensor, counts: list[int]) -> Tensor:
    """The rows of all processes, with gradients that flow back to the process they came from.

    Args:
        rows: ``(rows, ...)``; the same in every axis but the first.
        counts: Number of rows on each process.

    Returns:
        ``(sum(counts), ...)``.
    """
    most = max(counts)
    if get_world_size() == 1 or most == 0:
        return rows
    # The collective wants equal shapes.
    padded = pad(rows, [0, 0] * (rows.ndim - 1) + [0, most - len(rows)])
    gather = all_gather_with_grad if rows.is_floating_point() else all_gather
    parts = gather(padded.contiguous()).split(most)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
