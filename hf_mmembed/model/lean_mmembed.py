"""Modules of transformers that compute the same numbers in another way, under the names that their weights have.

In: a module of a backbone, and a class with a `forward` of ours. Out: the same module with its class changed, which
reads: our way, on top of the class of the family. Our way falls back on the family's where it does not apply. This file
travels with the checkpoint.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn

__all__ = ["Lean", "is_plain", "make_lean"]


class Lean(nn.Module):
    """What our ways of computing derive from.

    The classes that [`make_lean`] makes are in no file, so their modules are pickled and copied by what they are made
    of.
    """

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _blank, type(self).__bases__, self.__dict__


def make_lean(module: nn.Module, way: type[Lean]) -> None:
    """Make a module compute in our way, in place.

    Its class changes, rather than its `forward`: a replica of the module then computes with its own weights.
    """
    kinds: tuple[Any, Any] = way, type(module)
    module.__class__ = _lean(*kinds)


@cache
def _lean(way: type, kind: type) -> Any:
    return type(f"Lean{kind.__name__}", (way, kind), {})


def _blank(way: type, kind: type) -> nn.Module:
    lean = _lean(way, kind)
    return lean.__new__(lean)


def is_plain(layer: nn.Module) -> bool:
    """Whether a call of the layer is its matrix product: it has no adapter, and no hook, as offloaded layers have."""
    hooked = "forward" in vars(layer) or layer._forward_pre_hooks or layer._forward_hooks
    return type(layer) is nn.Linear and not hooked
