"""The last block computed for the token that is pooled, where nobody asks for the states of the others.

In: the attention mask `(batch, seq_len)` of a forward pass. Out: last hidden states that are right at the last real
token of each row. What the last block's MLP makes of the other tokens reaches nothing but their own states, so it is
left out: of n blocks, that saves nearly all of one MLP. This file travels with the checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

__all__ = ["last_block_for_pooled", "last_real_token", "only_pooled"]

# Columns of the pooled tokens in the forward pass under way, `(batch,)`; each thread has its own.
_COLUMNS: ContextVar[torch.Tensor | None] = ContextVar("columns", default=None)


def last_real_token(mask: torch.Tensor) -> torch.Tensor:
    """The column of the last real token of each row.

    Args:
        mask (`torch.Tensor` of shape `(batch, seq_len)`): 1 for real tokens, 0 for padding on either side.

    Returns:
        `torch.Tensor` of shape `(batch,)`.

    Example:

        >>> last_real_token(torch.tensor([[1, 1, 0], [0, 1, 1]]))
        tensor([1, 2])
    """
    return (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(dim=1)


def last_block_for_pooled(backbone: PreTrainedModel) -> None:
    """Make the last block of a backbone heed [`only_pooled`], if it has an MLP by that name."""
    mlp = getattr(backbone.get_decoder().layers[-1], "mlp", None)
    if mlp is not None:
        mlp.forward = partial(_forward, mlp)


@contextmanager
def only_pooled(mask: torch.Tensor | None) -> Iterator[None]:
    """Within this context, the last block's MLP reads the last real token of each row alone.

    Args:
        mask (`torch.Tensor` of shape `(batch, seq_len)`, *optional*): Of the tokens that the forward pass reads.
            Without one, every token is real, and all are read.
    """
    token = _COLUMNS.set(None if mask is None else last_real_token(mask))
    try:
        yield
    finally:
        _COLUMNS.reset(token)


def _forward(mlp: Any, hidden: torch.Tensor) -> torch.Tensor:
    """`(batch, seq_len, hidden)` → the same shape, zero where the MLP was not asked."""
    columns = None if torch.compiler.is_compiling() else _COLUMNS.get()
    if columns is None:
        return type(mlp).forward(mlp, hidden)
    columns = columns.to(hidden.device)
    rows = torch.arange(hidden.shape[0], device=hidden.device)
    output = torch.zeros_like(hidden)
    output[rows, columns] = type(mlp).forward(mlp, hidden[rows, columns])
    return output
