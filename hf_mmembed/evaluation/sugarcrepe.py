"""Reads SugarCrepe and SugarCrepe++: captions that are true of a COCO picture against ones that nearly are.

In: the official JSON files and the folder of COCO val2017 pictures. Out: `Comparisons`; each picture and caption is
embedded once. Formats and rules: the repositories RAIVNLab/sugar-crepe and Sri-Harsha/scpp.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .instructions import WORDINGS, Protocol, built_item
from .items import Item
from .media import Pictures
from .subsets import Subset
from .tables import find, read_json
from .tasks import Comparisons

__all__ = ["read_sugarcrepe", "read_sugarcrepe_pp"]

_PICTURES = ("", "val2017", "coco/val2017", "images", "coco/images/val2017")


def read_sugarcrepe(root: Path, subset: Subset, protocol: Protocol) -> Comparisons:
    """One file of SugarCrepe; right where the picture is strictly nearer to its caption than to the negative one.

    Raises:
        Missing: The file is not there.
        ValueError: It is broken, or a picture is missing; the message names it.
    """
    file, rows = _rows(root, subset.name, ("filename", "caption", "negative_caption"))
    things = _Things(root, protocol)
    accuracy = []
    for number, row in enumerate(rows):
        picture = things.picture(row, file, number)
        true, false = (things.caption(row[name]) for name in ("caption", "negative_caption"))
        accuracy.append([(picture, true, picture, false)])
    return Comparisons(list(things.place_of), {"accuracy": accuracy}, {"rows": len(rows)})


def read_sugarcrepe_pp(root: Path, subset: Subset, protocol: Protocol) -> Comparisons:
    """One file of SugarCrepe++, whose rows have two true captions.

    ``itt`` (image to text): the picture is strictly nearer to both true captions than to the false one. ``tot`` (text
    only): the true captions are strictly nearer to each other than each is to the false one.

    Raises:
        Missing: The file is not there.
        ValueError: It is broken, or a picture is missing; the message names it.
    """
    captions = ("caption", "caption2", "negative_caption")
    file, rows = _rows(root, subset.name, ("filename", *captions))
    things = _Things(root, protocol)
    itt, tot = [], []
    for number, row in enumerate(rows):
        picture = things.picture(row, file, number)
        one, two, false = (things.caption(row[name]) for name in captions)
        itt.append([(picture, one, picture, false), (picture, two, picture, false)])
        tot.append([(one, two, one, false), (one, two, two, false)])
    return Comparisons(list(things.place_of), {"itt": itt, "tot": tot}, {"rows": len(rows)})


class _Things:
    """Distinct items, numbered as they come. Captions are read like queries, pictures like documents (Gen2Embed)."""

    def __init__(self, root: Path, protocol: Protocol) -> None:
        self.pictures = Pictures([root / place for place in _PICTURES], [root / "val2017.zip", root / "images.zip"])
        self.protocol = protocol
        self.place_of: dict[Item, int] = {}

    def picture(self, row: dict[str, Any], file: Path, number: int) -> int:
        try:
            return self._place(Item(None, (self.pictures[row["filename"]],)))
        except ValueError as error:
            raise ValueError(f"{file}, row {number}: {error}") from error

    def caption(self, text: str) -> int:
        return self._place(built_item(text, (), WORDINGS["sugarcrepe"].query, self.protocol, "query"))

    def _place(self, item: Item) -> int:
        return self.place_of.setdefault(item, len(self.place_of))


def _rows(root: Path, name: str, keys: tuple[str, ...]) -> tuple[Path, list[dict[str, Any]]]:
    file = find(root, [f"{name}.json", f"data/{name}.json"])
    loaded = read_json(file)
    rows = list(loaded.values()) if isinstance(loaded, dict) else loaded  # SugarCrepe has an object, ++ a list
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{file} has no rows")
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or any(not isinstance(row.get(key), str) for key in keys):
            raise ValueError(f"{file}, row {number} has not the texts {', '.join(keys)}")
    return file, rows
