"""A contact sheet as one picture: the query on the left, what was found for it on the right, with rank and score.

In: `Panel` objects. Out: a `PIL.Image` in RGB, 1600 pixels wide, drawn with Pillow alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from PIL import Image, ImageDraw, ImageOps

from .contact import Panel, Tile
from .typesetting import Typesetter

__all__ = ["draw_contact_sheet"]

_WIDTH = 1600
_MARGIN = 40
_PADDING = 32
_QUERY = 330  # width of the left column
_QUERY_THUMB = 210
_GAP = 20
_COLUMNS = 5
_TILE = (_WIDTH - 2 * _MARGIN - 2 * _PADDING - _QUERY - _COLUMNS * _GAP) // _COLUMNS
_FOOT = 62  # below a thumbnail: score line and name
_RADIUS = 14

_PAGE = (244, 243, 240)
_CARD = (255, 255, 255)
_EDGE = (228, 226, 221)
_WELL = (240, 239, 236)
_INK = (28, 27, 26)
_SOFT = (122, 118, 112)
_ACCENT = (74, 85, 214)
_RIGHT = (22, 128, 74)
_WRONG = (190, 52, 44)


def draw_contact_sheet(panels: Sequence[Panel], *, title: str, subtitle: str = "") -> Image.Image:
    """Draws panels below each other.

    Args:
        panels: Queries with their results.
        title: Heading of the sheet.
        subtitle: A line below it.
    """
    top = _MARGIN + 44 + (34 if subtitle else 8)
    setter = Typesetter([title, subtitle, *(text for panel in panels for text in _texts(panel))])
    heights = [_panel_height(panel, setter) for panel in panels]
    sheet = Image.new("RGB", (_WIDTH, top + sum(heights) + _GAP * (len(panels) - 1) + _MARGIN), _PAGE)
    pen = _Pen(sheet, setter)
    pen.write((_MARGIN, _MARGIN - 8), setter.shorten(title, 32, _WIDTH - 2 * _MARGIN), 32, _INK)
    pen.write((_MARGIN, _MARGIN + 34), setter.shorten(subtitle, 17, _WIDTH - 2 * _MARGIN), 17, _SOFT)
    for panel, height in zip(panels, heights, strict=True):
        _draw_panel(pen, panel, top, height)
        top += height + _GAP
    return sheet


class _Pen:
    """The sheet, and what draws on it."""

    def __init__(self, sheet: Image.Image, setter: Typesetter) -> None:
        self.sheet = sheet
        self.setter = setter
        self.draw = ImageDraw.Draw(sheet)

    def write(self, at: tuple[int, int], text: str, size: int, colour: tuple[int, int, int]) -> None:
        self.draw.text(at, text, fill=colour, font=self.setter.font(size))


def _texts(panel: Panel) -> list[str]:
    shown = [panel.title, panel.text, panel.instruction, panel.remark]
    shown += [text for tile in panel.tiles for text in (tile.hit.name, tile.note, tile.hit.text)]
    return [text for text in shown if text]


def _panel_height(panel: Panel, setter: Typesetter) -> int:
    rows = max(1, -(-len(panel.tiles) // _COLUMNS))
    tiles = rows * (_TILE + _FOOT) + (rows - 1) * _GAP
    return max(tiles, _query_height(panel, setter)) + 2 * _PADDING


def _query_lines(panel: Panel, setter: Typesetter) -> list[tuple[str, int, tuple[int, int, int], int]]:
    """The left column as (text, size, colour, space before it)."""
    lines = [(panel.title.upper(), 14, _ACCENT, 0)]
    for text, size, colour, most, gap in (
        (panel.text, 25, _INK, 6, 12),
        (panel.instruction, 17, _SOFT, 4, 12),
        (panel.remark, 15, _SOFT, 8, 14),
    ):
        if text:
            wrapped = setter.wrap(text, size, _QUERY - 12, most)
            lines += [(line, size, colour, gap if place == 0 else 3) for place, line in enumerate(wrapped)]
    return lines


def _query_height(panel: Panel, setter: Typesetter) -> int:
    words = sum(round(1.25 * size) + gap for _, size, _, gap in _query_lines(panel, setter))
    return words + (_QUERY_THUMB + 14 if panel.picture is not None else 0)


def _draw_panel(pen: _Pen, panel: Panel, top: int, height: int) -> None:
    _rounded(pen.sheet, (_MARGIN, top, _WIDTH - _MARGIN, top + height), _CARD, _EDGE)
    x, y = _MARGIN + _PADDING, top + _PADDING
    lines = _query_lines(panel, pen.setter)
    for place, (text, size, colour, gap) in enumerate(lines):
        y += gap
        pen.write((x, y), text, size, colour)
        y += round(1.25 * size)
        if place == 0 and panel.picture is not None:
            _paste(pen.sheet, panel.picture, x, y + 14, _QUERY_THUMB)
            y += _QUERY_THUMB + 14
    left = x + _QUERY + _GAP
    pen.draw.line((left - _GAP, top + _PADDING, left - _GAP, top + height - _PADDING), fill=_EDGE)
    if not panel.tiles:
        pen.write((left + _GAP, top + _PADDING), "nothing found", 17, _SOFT)
    for place, tile in enumerate(panel.tiles):
        row, column = divmod(place, _COLUMNS)
        _draw_tile(pen, tile, left + column * (_TILE + _GAP), top + _PADDING + row * (_TILE + _FOOT + _GAP))


def _draw_tile(pen: _Pen, tile: Tile, x: int, y: int) -> None:
    if tile.picture is not None:
        _paste(pen.sheet, tile.picture, x, y, _TILE)
    else:
        _rounded(pen.sheet, (x, y, x + _TILE, y + _TILE), _WELL, None)
        words = tile.note or tile.hit.text or ""
        for place, line in enumerate(pen.setter.wrap(words, 15, _TILE - 28, 9)):
            pen.write((x + 14, y + 14 + 20 * place), line, 15, _SOFT if tile.note else _INK)
    colour = _ACCENT if tile.right is None else _RIGHT if tile.right else _WRONG
    foot = y + _TILE + 9
    bar = max(0.0, min(1.0, tile.hit.score))
    pen.draw.rounded_rectangle((x, foot, x + _TILE, foot + 4), 2, fill=_EDGE)
    if bar > 0.02:
        pen.draw.rounded_rectangle((x, foot, x + round(bar * _TILE), foot + 4), 2, fill=colour)
    score = f"{tile.hit.score:.3f}"
    pen.write((x, foot + 10), f"{tile.hit.rank}", 17, colour)
    pen.write((x + _TILE - pen.setter.length(score, 17), foot + 10), score, 17, _INK)
    if tile.right is not None:
        verdict = "right" if tile.right else "wrong"
        pen.write((x + 26, foot + 11), verdict, 15, colour)
    pen.write((x, foot + 33), pen.setter.shorten(tile.hit.name, 14, _TILE, middle=True), 14, _SOFT)


def _paste(sheet: Image.Image, picture: Image.Image, x: int, y: int, side: int) -> None:
    """A picture, whole, centred in a square with round corners."""
    small = ImageOps.contain(picture.convert("RGB"), (side, side), Image.Resampling.LANCZOS)
    if max(small.size) < side // 2:
        small = small.resize((small.width * 2, small.height * 2), Image.Resampling.NEAREST)
    well = Image.new("RGB", (side, side), _WELL)
    well.paste(small, ((side - small.width) // 2, (side - small.height) // 2))
    sheet.paste(well, (x, y), _corner_mask(side, side))
    ImageDraw.Draw(sheet).rounded_rectangle((x, y, x + side - 1, y + side - 1), _RADIUS, outline=_EDGE)


def _rounded(
    sheet: Image.Image, box: tuple[int, int, int, int], fill: tuple[int, int, int], edge: tuple[int, int, int] | None
) -> None:
    width, height = box[2] - box[0], box[3] - box[1]
    sheet.paste(Image.new("RGB", (width, height), fill), box[:2], _corner_mask(width, height))
    if edge is not None:
        ImageDraw.Draw(sheet).rounded_rectangle((*box[:2], box[2] - 1, box[3] - 1), _RADIUS, outline=edge)


@cache
def _corner_mask(width: int, height: int) -> Image.Image:
    mask = Image.new("L", (4 * width, 4 * height), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, 4 * width - 1, 4 * height - 1), 4 * _RADIUS, fill=255)
    return mask.reduce(4)
