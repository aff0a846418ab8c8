"""What rows look like and where they come from: folders, tables, saved datasets, and the drawn world.

In: a path the user names. Out: a `Source`, a sequence of `Row` objects (text, picture or both) that reads nothing
before it is asked to; pictures stay encoded until a worker needs them. `scenes` and `captions` draw and describe the
world that the shipped model was trained on.
"""

from __future__ import annotations

from .rows import Row, Source, Unreadable
from .sources import open_source

__all__ = ["Row", "Source", "Unreadable", "open_source"]
