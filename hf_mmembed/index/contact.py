"""What a contact sheet shows: queries, and the pictures or texts found for each.

In: an `Index`, a query and its hits. Out: a `Panel`, which `contact_sheet` draws as a PNG and `contact_page` writes as
an HTML page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from .search import Hit, Index

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Panel", "Tile", "make_panel"]


@dataclass(frozen=True)
class Tile:
    """One result as it is shown.

    Attributes:
        hit: The result.
        picture: Its picture; None when it has none or it cannot be read any more.
        note: Instead of a picture: why there is none.
        right: Whether it is what was looked for; None when nobody knows.
    """

    hit: Hit
    picture: Image.Image | None = None
    note: str | None = None
    right: bool | None = None


@dataclass(frozen=True)
class Panel:
    """One query and its results, best first."""

    title: str
    text: str | None
    picture: Image.Image | None
    instruction: str | None
    tiles: Sequence[Tile]
    remark: str | None = None


def make_panel(
    index: Index,
    hits: Sequence[Hit],
    *,
    title: str = "Query",
    text: str | None = None,
    picture: Image.Image | None = None,
    instruction: str | None = None,
    right: Sequence[bool | None] | None = None,
    remark: str | None = None,
) -> Panel:
    """Gathers the pictures of some hits; one that cannot be read any more says so in its place.

    Args:
        index: The index that was searched.
        hits: Its answer.
        title: Heading of the panel.
        text: Text of the query.
        picture: Picture of the query.
        instruction: Instruction of the query.
        right: For each hit, whether it is right; None where that is not known or not asked. Defaults to not known.
        remark: A sentence to show below the query.
    """
    tiles = []
    for place, hit in enumerate(hits):
        verdict = None if right is None else right[place]
        try:
            tiles.append(Tile(hit, index.picture(hit), right=verdict))
        except (ValueError, OSError) as error:
            tiles.append(Tile(hit, note=str(error), right=verdict))
    return Panel(title, text, picture, instruction, tiles, remark)
