"""Blocks computed for the tokens that reach the embedding, where nobody asks for the states of the others.

In: the attention mask `(batch, seq_len)` of a forward pass. Out: last hidden states that are right at the last real
token of each row. What the last block's MLP makes of the other tokens reaches nothing but their own states, so it is
left out: of n blocks, that saves nearly all of one MLP. In the blocks before it, the MLP leaves out the padding. This
file travels with the checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

__all__ = [
    "TokenSelection",
    "blocks_for_pooled",
    "last_real_token",
    "only_pooled",
    "pack",
    "packing",
    "pooled_output",
    "told_about_rows",
    "unpack",
]

# Parts of the last block, by the names that all families give them, but for those with fused projections.
PARTS_OF_LAST = ("self_attn.q_proj", "self_attn.o_proj", "mlp")
# Where less than this share of the tokens is padding, picking out the others can take longer than it saves.
LEAST_PADDING_SHARE = 1 / 16
# What PEFT hands to its layers for each row of a batch.
TOLD_ABOUT_ROWS = frozenset({"adapter_names", "alora_offsets"})


@dataclass(frozen=True)
class TokenSelection:
    """Some tokens of a forward pass, counted through all rows.

    Args:
        places (`torch.Tensor` of shape `(chosen,)`): Where they are.
        stand_ins (`torch.Tensor` of shape `(batch, seq_len)`): For each token the place in `places` of itself or, where
            it was not chosen, of another, whose state takes its place: nobody reads it there, but it is a number.
    """

    places: torch.Tensor
    stand_ins: torch.Tensor

    def pick(self, states: torch.Tensor) -> torch.Tensor:
        """`(batch, seq_len, ...)` → `(chosen, ...)`."""
        return states.flatten(0, 1).index_select(0, self.places.to(states.device))

    def fill(self, states: torch.Tensor) -> torch.Tensor:
        """`(chosen, ...)` → `(batch, seq_len, ...)`."""
        stand_ins = self.stand_ins.to(states.device)
        return states.index_select(0, stand_ins.flatten()).unflatten(0, stand_ins.shape)


@dataclass
class Request:
    """What is asked of a forward pass.

    Args:
        pooled ([`TokenSelection`]): The last real token of each row.
        real ([`TokenSelection`], *optional*): All but the padding; none where there is too little of it.
        packed (`bool`, defaults to `False`): Whether the states are those of `real` now.
    """

    pooled: TokenSelection
    real: TokenSelection | None
    packed: bool = False


# What is asked of the forward pass under way; each thread has its own.
_REQUEST: ContextVar[Request | None] = ContextVar("request", default=None)


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


def blocks_for_pooled(backbone: PreTrainedModel) -> None:
    """Make the blocks of a backbone heed [`only_pooled`], as far as they have parts by these names."""
    *others, last = list(getattr(backbone.get_decoder(), "layers", ())) or [nn.Module()]
    for block in others:
        _hook(block, ("mlp",), _before_real, _behind_real)
    _hook(last, PARTS_OF_LAST, _before_pooled, _behind_pooled)


def _hook(block: nn.Module, names: tuple[str, ...], before: Any, behind: Any) -> None:
    # Hooks are told which module they belong to: replicas of one, on other devices, compute with their own weights.
    for name, part in block.named_modules():
        if name in names and before not in part._forward_pre_hooks.values():
            part.register_forward_pre_hook(before, with_kwargs=True)
            part.register_forward_hook(behind, with_kwargs=True)


@contextmanager
def only_pooled(mask: torch.Tensor | None) -> Iterator[None]:
    """Within this context, the last block reads the last real token of each row, and of the others keys and values.

    Where gradients are off, the MLPs of the other blocks read no padding.

    Args:
        mask (`torch.Tensor` of shape `(batch, seq_len)`, *optional*): Of the tokens that the forward pass reads.
            Without one, every token is real, and all are read.
    """
    token = _REQUEST.set(None if mask is None else _asked(mask))
    try:
        yield
    finally:
        _REQUEST.reset(token)


def pooled_output(part: nn.Module) -> TokenSelection | None:
    """The tokens whose output of `part`, one that [`blocks_for_pooled`] prepared, somebody reads; None for all."""
    asked = _REQUEST.get()
    if asked is None or torch.compiler.is_compiling() or not _is_last(part):
        return None
    return asked.pooled


def pack(states: torch.Tensor) -> torch.Tensor | None:
    """`(batch, seq_len, hidden)` → `(1, real, hidden)`, or None where the padding is to stay."""
    asked = _REQUEST.get()
    if asked is None or asked.real is None:
        return None
    asked.packed = True
    return asked.real.pick(states).unsqueeze(0)


def unpack(states: torch.Tensor) -> torch.Tensor | None:
    """`(1, real, hidden)` → `(batch, seq_len, hidden)`, or None where [`pack`] left the padding."""
    asked = _REQUEST.get()
    if asked is None or asked.real is None or not asked.packed:
        return None
    asked.packed = False
    return asked.real.fill(states.squeeze(0))


def packing() -> TokenSelection | None:
    """The tokens whose states are at hand, one after the other; None where those of all tokens are, row by row."""
    asked = _REQUEST.get()
    return asked.real if asked is not None and asked.packed else None


def told_about_rows(model: nn.Module) -> bool:
    """Whether PEFT tells the layers something about each row, such as its adapter: then they must be given all rows."""
    if not getattr(model, "peft_config", None):  # without adapters there is no need to look
        return False
    hooks = (hook for part in model.modules() for hook in part._forward_pre_hooks.values())
    return any(isinstance(hook, partial) and TOLD_ABOUT_ROWS & hook.keywords.keys() for hook in hooks)


def _asked(mask: torch.Tensor) -> Request:
    batch, length = mask.shape
    rows = torch.arange(batch, device=mask.device)
    pooled = TokenSelection(rows * length + last_real_token(mask), rows[:, None].expand(batch, length))
    if torch.is_grad_enabled():
        return Request(pooled, None)
    places = mask.flatten().nonzero().squeeze(1)
    if not 0 < len(places) <= (1 - LEAST_PADDING_SHARE) * batch * length:
        return Request(pooled, None)
    counted = (mask != 0).flatten().cumsum(0).view(batch, length)
    return Request(pooled, TokenSelection(places, (counted - 1).clamp(min=0)))


def _chosen(kind: str, inputs: tuple[Any, ...], named: dict[str, Any]) -> TokenSelection | None:
    asked = _REQUEST.get()
    # An MLP that is told something about each token, as ERNIE's experts are, is given all of them.
    if asked is None or torch.compiler.is_compiling() or len(inputs) != 1 or named:
        return None
    if kind == "pooled":
        return asked.pooled
    return None if asked.packed else asked.real


def _keep(kind: str, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """`(batch, seq_len, in)` → `(chosen, 1, in)`: still three axes, as mixtures of experts expect."""
    if (choice := _chosen(kind, inputs, named)) is None:
        return None
    return (choice.pick(inputs[0]).unsqueeze(1),), named


def _fill_up(kind: str, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
    """`(chosen, 1, out)` → `(batch, seq_len, out)`."""
    if (choice := _chosen(kind, inputs, named)) is None:
        return None
    # Some mixtures of experts return what their router chose as well.
    states, *rest = output if isinstance(output, tuple) else (output,)
    whole = choice.fill(states.squeeze(1))
    return (whole, *rest) if rest else whole


# Hooks are functions of this file, by whose names a model is pickled for other processes.
def _before_pooled(part: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
    return _keep("pooled", inputs, named)


def _behind_pooled(part: Any, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
    return _fill_up("pooled", inputs, named, output)


def _before_real(part: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
    return None if _is_last(part) else _keep("real", inputs, named)


def _behind_real(part: Any, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
    return None if _is_last(part) else _fill_up("real", inputs, named, output)


def _is_last(part: nn.Module) -> bool:
    """A block can become the last one of a backbone that is cut and wrapped again."""
    return _before_pooled in part._forward_pre_hooks.values()
