"""The last block computed for the token that is pooled, where nobody asks for the states of the others.

In: the attention mask `(batch, seq_len)` of a forward pass. Out: last hidden states that are right at the last real
token of each row. What the last block's MLP makes of the other tokens reaches nothing but their own states, so it is
left out: of n blocks, that saves nearly all of one MLP. This file travels with the checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from transformers import PreTrainedModel

__all__ = ["last_block_for_pooled", "last_real_token", "only_pooled"]

# Parts of a block, by the names that all families give them, but for those with fused projections.
PARTS = ("self_attn.q_proj", "self_attn.o_proj", "mlp")

# Columns of the pooled tokens in the forward pass under way, `(batch,)`, and its length; each thread has its own.
_POOLED: ContextVar[tuple[torch.Tensor, int] | None] = ContextVar("pooled", default=None)


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
        # Hooks are told which module they belong to: replicas of one, on other devices, compute with their own weights.
        if name in PARTS and _keep_pooled not in part._forward_pre_hooks.values():
            part.register_forward_pre_hook(_keep_pooled, with_kwargs=True)
            part.register_forward_hook(_fill_up, with_kwargs=True)


@contextmanager
def only_pooled(mask: torch.Tensor | None) -> Iterator[None]:
    """Within this context, the last block reads the last real token of each row, and of the others keys and values.

    Args:
        mask (`torch.Tensor` of shape `(batch, seq_len)`, *optional*): Of the tokens that the forward pass reads.
            Without one, every token is real, and all are read.
    """
    token = _POOLED.set(None if mask is None else (last_real_token(mask), mask.shape[1]))
    try:
        yield
    finally:
        _POOLED.reset(token)


def _asked(inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[torch.Tensor, int] | None:
    # An MLP that is told something about each token, as ERNIE's experts are, is given all of them.
    return None if torch.compiler.is_compiling() or len(inputs) != 1 or named else _POOLED.get()


def _keep_pooled(part: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """Before a part runs, `(batch, seq_len, in)` → `(batch, 1, in)`."""
    if (asked := _asked(inputs, named)) is None:
        return None
    (states,), (columns, _) = inputs, asked
    rows = torch.arange(states.shape[0], device=states.device)
    # Still three axes, as mixtures of experts expect.
    return (states[rows, columns.to(states.device)].unsqueeze(1),), named


def _fill_up(part: Any, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
    """Behind it, `(batch, 1, out)` → `(batch, seq_len, out)`, zero where the part was not asked."""
    if (asked := _asked(inputs, named)) is None:
        return None
    columns, length = asked
    # Some mixtures of experts return what their router chose as well.
    pooled, *rest = output if isinstance(output, tuple) else (output,)
    whole = pooled.new_zeros(pooled.shape[0], length, pooled.shape[-1])
    whole[torch.arange(pooled.shape[0], device=pooled.device), columns.to(pooled.device)] = pooled.squeeze(1)
    return (whole, *rest) if rest else whole
