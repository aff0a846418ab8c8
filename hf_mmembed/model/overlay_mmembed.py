"""Objects of transformers that compute the same in another way: a class of ours on top of the class they have.

In: an object, and an [`Overlay`] with methods of ours. Out: the same object, whose class is a subclass of both, so that
`super()` in our methods is the library's. This file travels with the checkpoint.
"""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

__all__ = ["Overlay", "lay_over"]


class Overlay:
    """What classes for [`lay_over`] derive from.

    The classes that it makes are in no file, so their objects are pickled and copied by what they are made of.
    """

    name_prefix: ClassVar[str] = "Lean"
    """What the class of the result is called, before the name of the library's."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _blank, type(self).__bases__, self.__dict__


def lay_over(instance: Any, overlay: type[Overlay]) -> None:
    """Put `overlay` on top of the class of `instance`, in place.

    The class changes, rather than a method: a copy of the object then computes with its own weights and settings.

    Example:

        >>> class Scale:
        ...     def run(self, number): return 2 * number
        >>> class Shifted(Overlay):
        ...     def run(self, number): return super().run(number) + 1
        >>> scale = Scale()
        >>> lay_over(scale, Shifted)
        >>> scale.run(5), type(scale).__name__, isinstance(scale, Scale)
        (11, 'LeanScale', True)
    """
    kinds: tuple[Any, Any] = overlay, type(instance)
    instance.__class__ = _laid_over(*kinds)


@cache
def _laid_over(overlay: type[Overlay], kind: type) -> Any:
    return type(f"{overlay.name_prefix}{kind.__name__}", (overlay, kind), {})


def _blank(*kinds: Any) -> Any:
    made = _laid_over(*kinds)
    return made.__new__(made)
