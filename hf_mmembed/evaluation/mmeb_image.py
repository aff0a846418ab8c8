"""Reads the image data sets of MMEB: V1 as `TIGER-Lab/MMEB-eval` lays them out, V2 as `ziyjiang/MMEB_Test_Instruct` does.

In: a folder with ``<data set>/test-*.parquet``, and the pictures in ``images.zip`` or unpacked. Out: a `Ranking` whose
queries have candidates of their own, the gold at index 0 of the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .instructions import IMAGE_MARKER, WORDINGS, Protocol, Wording, built_item, split_item
from .items import Item
from .media import Pictures
from .subsets import Subset
from .tables import find, read_rows
from .tasks import Ranking

__all__ = ["read_v1", "read_v2_image"]

_LISTS = ("tgt_text", "tgt_img_path")
_V1 = ("qry_text", "qry_img_path", *_LISTS)
_V2 = ("qry_inst", "tgt_inst", *_V1)
# Whose "user" texts end without a line break: candidates of these in V2, where they have no caption.
_IMAGE_TO_IMAGE = frozenset("CIRR NIGHTS OVEN FashionIQ MSCOCO RefCOCO RefCOCO-Matching Visual7W-Pointing".split())


def read_v1(root: Path, subset: Subset, protocol: Protocol, wording: Wording | None = None) -> Ranking:
    """One data set of MMEB-V1, or of a benchmark in its layout.

    Args:
        root: The folder that holds the data sets.
        subset: Which one.
        protocol: Where instructions go; see `instructions`.
        wording: What its texts begin with, for a benchmark of your own. Defaults to MMEB's.

    Raises:
        Missing: It is not there.
        ValueError: It is broken, a picture is missing, or a row makes no sense; the message names it.
    """
    file = find(root, _named(root, subset.name, [subset.name]))
    rows = read_rows(file, _V1)
    pictures = Pictures([root, root / "images", root / "MMEB", root / "eval_images"], [root / "images.zip"])
    wording = wording or WORDINGS.get(subset.name, Wording(None))
    role = wording.candidate_role

    def query(row: dict[str, Any]) -> Item:
        images = pictures.optional(row["qry_img_path"])
        return split_item(row["qry_text"], images, wording.on(candidate=False), protocol, "query")

    def candidate(row: dict[str, Any], text: str | None, path: str | None) -> Item:
        images = pictures.optional(path)
        instructions = wording.on(candidate=True) if images else ()
        return split_item(text, images, instructions, protocol, role, candidate=True)

    return _ranking(rows, query, candidate, file, legacy="stable")


def read_v2_image(root: Path, subset: Subset, protocol: Protocol) -> Ranking:
    """One image data set of MMEB-V2.

    Raises:
        Missing: It is not there.
        ValueError: As `read_v1`.
    """
    name = subset.name
    places = [
        f"image-tasks/{name}",
        f"image-query/{name}",
        f"MMEB_Test_Instruct/{name}",
        f"image-tasks/MMEB_Test_Instruct/{name}",
        f"annotation/ziyjiang/MMEB_Test_Instruct/{name}",
        name,
    ]
    file = find(root, _named(root, name, places))
    rows = read_rows(file, _V2)
    media = [root / "image-tasks", root / "image-tasks" / "MMEB", root, root / "MMEB"]
    pictures = Pictures(media, [root / "images.zip", root / "image-tasks" / "images.zip"])
    wording = WORDINGS.get(name, Wording(None))
    image_to_image = name in _IMAGE_TO_IMAGE

    def query(row: dict[str, Any]) -> Item:
        images = pictures.optional(row["qry_img_path"])
        end = "\n\n" if name == "VisDial" else "\n"
        return _after(images, built_item(row["qry_text"], images, _bare(row["qry_inst"]), protocol, "query", end=end))

    def candidate(row: dict[str, Any], text: str | None, path: str | None) -> Item:
        images = pictures.optional(path)
        if not images:
            return Item(text or "", (), None, wording.candidate_role)
        caption = (text or "").strip() or None
        end = "" if image_to_image and caption is None else "\n"
        instruction = _bare(row["tgt_inst"])
        item = built_item(caption, images, instruction, protocol, wording.candidate_role, candidate=True, end=end)
        return _after(images, item)

    return _ranking(rows, query, candidate, file, legacy="quicksort")


def _bare(instruction: str | None) -> str | None:
    return (instruction or "").replace(IMAGE_MARKER, "").strip() or None


def _after(images: tuple[Any, ...], item: Item) -> Item:
    """The official "user" text stands on the line after the picture's marker."""
    if images and item.instruction is None and item.text and item.text.endswith("\n"):
        return Item("\n" + item.text, item.images, None, item.role)
    return item


def _named(root: Path, name: str, places: list[str]) -> list[str]:
    """The places; or an error where a folder is there under nearly the right name."""
    if root.is_dir() and not any((root / place).exists() for place in places):
        near = [p.name for p in root.iterdir() if p.is_dir() and p.name != name and _same(p.name, name)]
        if near:
            raise ValueError(f"{root} has a folder {near[0]!r}; this benchmark spells it {name!r}: rename the folder")
    return places


def _same(one: str, other: str) -> bool:
    return one.lower().replace("_", "-") == other.lower().replace("_", "-")


def _ranking(rows: Sequence[dict[str, Any]], query: Any, candidate: Any, file: Path, *, legacy: Any) -> Ranking:
    queries: list[Item] = []
    pools: list[list[int]] = []
    place_of: dict[Item, int] = {}
    # The same candidates stand in row after row, and a million of them take a minute to build.
    built: dict[tuple[str | None, ...], int] = {}
    for number, row in enumerate(rows):
        texts, paths = (list(row[name]) if row[name] is not None else [] for name in _LISTS)
        if not texts or len(texts) != len(paths):
            raise ValueError(f"{file}, row {number}: {len(texts)} texts and {len(paths)} pictures of candidates")
        try:
            queries.append(query(row))
            pool = []
            for text, path in zip(texts, paths, strict=True):
                key = (row.get("tgt_inst"), text, path)
                if (place := built.get(key)) is None:
                    item = candidate(row, text, path)
                    place = built[key] = place_of.setdefault(item, len(place_of))
                pool.append(place)
        except ValueError as error:
            raise ValueError(f"{file}, row {number}: {error}") from error
        pools.append(pool)
    relevance = [{pool[0]: 1} for pool in pools]
    return Ranking(queries, list(place_of), relevance, pools, legacy, {"rows": len(rows), "candidates": len(place_of)})
