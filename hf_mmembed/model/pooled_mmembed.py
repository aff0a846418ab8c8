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

# Parts of a block, by the names that all families give them, but for those with fused projections.
PARTS = ("self_attn.q_proj", "self_attn.o_proj", "mlp")

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
    """Make the last block of a backbone heed [`only_pooled`], as far as it has parts by these names."""
    layers = getattr(backbone.get_decoder(), "layers", None)
    for name, part in layers[-1].named_modules() if layers else ():
        if name in PARTS:
            part.forward = partial(_forward, part)


@contextmanager
def only_pooled(mask: torch.Tensor | None) -> Iterator[None]:
    """Within this context, the last block reads the last real token of each row, and of the others keys and values.

    Args:
        mask (`torch.Tensor` of shape `(batch, seq_len)`, *optional*): Of the tokens that the forward pass reads.
            Without one, every token is real, and all are read.
    """
    token = _COLUMNS.set(None if mask is None else last_real_token(mask))
    try:
        yield
    finally:
        _COLUMNS.reset(token)


def _forward(part: Any, states: torch.Tensor, *others: Any, **named: Any) -> Any:
    """`(batch, seq_len, in)` → `(batch, seq_len, out)`, zero where the part was not asked."""
    columns = None if torch.compiler.is_compiling() else _COLUMNS.get()
    # An MLP that is told something about each token, as ERNIE's experts are, is given all of them.
    if columns is None or others or named:
        return type(part).forward(part, states, *others, **named)
    columns = columns.to(states.device)
    rows = torch.arange(states.shape[0], device=states.device)
    # Still three axes, as mixtures of experts expect, some of which return what their router chose as well.
    output = type(part).forward(part, states[rows, columns].unsqueeze(1))
    pooled, *rest = output if isinstance(output, tuple) else (output,)
    whole = pooled.new_zeros(*states.shape[:-1], pooled.shape[-1])
    whole[rows, columns] = pooled.squeeze(1)
    return (whole, *rest) if rest else whole
