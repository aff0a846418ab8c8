"""A contact sheet as one picture: the query on the left, what was found for it on the right, with rank and score.

In: `Panel` objects. Out: a `PIL.Image` in RGB, 1600 pixels wide, drawn with Pillow alone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import cache

from PIL import Image, ImageDraw, ImageFont, ImageOps

from .contact import Panel, Tile

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

_LONGEST = 1000  # characters; no line of a sheet holds more

# Pillow's own font covers ASCII and little else; these cover more, where the system has them.
_WIDE_FONTS = ("NotoSansCJK-Regular.ttc", "NotoSans-Regular.ttf", "DejaVuSans.ttf", "Arial Unicode.ttf", "arial.ttf")


def draw_contact_sheet(panels: Sequence[Panel], *, title: str, subtitle: str = "") -> Image.Image:
    """Draws panels below each other.

    Args:
        panels: Queries with their results.
        title: Heading of the sheet.
        subtitle: A line below it.
    """
    top = _MARGIN + 44 + (34 if subtitle else 8)
    heights = [_panel_height(panel) for panel in panels]
    sheet = Image.new("RGB", (_WIDTH, top + sum(heights) + _GAP * (len(panels) - 1) + _MARGIN), _PAGE)
    pen = ImageDraw.Draw(sheet)
    _write(pen, (_MARGIN, _MARGIN - 8), _shorten(title, 32, _WIDTH - 2 * _MARGIN), 32, _INK)
    _write(pen, (_MARGIN, _MARGIN + 34), _shorten(subtitle, 17, _WIDTH - 2 * _MARGIN), 17, _SOFT)
    for panel, height in zip(panels, heights, strict=True):
        _draw_panel(sheet, panel, top, height)
        top += height + _GAP
    return sheet


def _panel_height(panel: Panel) -> int:
    rows = max(1, -(-len(panel.tiles) // _COLUMNS))
    tiles = rows * (_TILE + _FOOT) + (rows - 1) * _GAP
    return max(tiles, _query_height(panel)) + 2 * _PADDING


def _query_lines(panel: Panel) -> list[tuple[str, int, tuple[int, int, int], int]]:
    """The left column as (text, size, colour, space before it)."""
    lines = [(panel.title.upper(), 14, _ACCENT, 0)]
    for text, size, colour, most, gap in (
        (panel.text, 25, _INK, 6, 12),
        (panel.instruction, 17, _SOFT, 4, 12),
        (panel.remark, 15, _SOFT, 8, 14),
    ):
        if text:
            wrapped = _wrap(text, size, _QUERY - 12, most)
            lines += [(line, size, colour, gap if place == 0 else 3) for place, line in enumerate(wrapped)]
    return lines


def _query_height(panel: Panel) -> int:
    words = sum(round(1.25 * size) + gap for _, size, _, gap in _query_lines(panel))
    return words + (_QUERY_THUMB + 14 if panel.picture is not None else 0)


def _draw_panel(sheet: Image.Image, panel: Panel, top: int, height: int) -> None:
    pen = ImageDraw.Draw(sheet)
    _rounded(sheet, (_MARGIN, top, _WIDTH - _MARGIN, top + height), _CARD, _EDGE)
    x, y = _MARGIN + _PADDING, top + _PADDING
    lines = _query_lines(panel)
    for place, (text, size, colour, gap) in enumerate(lines):
        y += gap
        _write(pen, (x, y), text, size, colour)
        y += round(1.25 * size)
        if place == 0 and panel.picture is not None:
            _paste(sheet, panel.picture, x, y + 14, _QUERY_THUMB)
            y += _QUERY_THUMB + 14
    left = x + _QUERY + _GAP
    pen.line((left - _GAP, top + _PADDING, left - _GAP, top + height - _PADDING), fill=_EDGE)
    if not panel.tiles:
        _write(pen, (left + _GAP, top + _PADDING), "nothing found", 17, _SOFT)
    for place, tile in enumerate(panel.tiles):
        row, column = divmod(place, _COLUMNS)
        _draw_tile(sheet, tile, left + column * (_TILE + _GAP), top + _PADDING + row * (_TILE + _FOOT + _GAP))


def _draw_tile(sheet: Image.Image, tile: Tile, x: int, y: int) -> None:
    pen = ImageDraw.Draw(sheet)
    if tile.picture is not None:
        _paste(sheet, tile.picture, x, y, _TILE)
    else:
        _rounded(sheet, (x, y, x + _TILE, y + _TILE), _WELL, None)
        words = tile.note or tile.hit.text or ""
        for place, line in enumerate(_wrap(words, 15, _TILE - 28, 9)):
            _write(pen, (x + 14, y + 14 + 20 * place), line, 15, _SOFT if tile.note else _INK)
    colour = _ACCENT if tile.right is None else _RIGHT if tile.right else _WRONG
    foot = y + _TILE + 9
    bar = max(0.0, min(1.0, tile.hit.score))
    pen.rounded_rectangle((x, foot, x + _TILE, foot + 4), 2, fill=_EDGE)
    if bar > 0.02:
        pen.rounded_rectangle((x, foot, x + round(bar * _TILE), foot + 4), 2, fill=colour)
    score = f"{tile.hit.score:.3f}"
    _write(pen, (x, foot + 10), f"{tile.hit.rank}", 17, colour)
    _write(pen, (x + _TILE - _length(score, 17), foot + 10), score, 17, _INK)
    if tile.right is not None:
        verdict = "right" if tile.right else "wrong"
        _write(pen, (x + 26, foot + 11), verdict, 15, colour)
    _write(pen, (x, foot + 33), _shorten(tile.hit.name, 14, _TILE, middle=True), 14, _SOFT)


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


def _write(pen: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, colour: tuple[int, int, int]) -> None:
    pen.text(at, text, fill=colour, font=_font(size, _is_plain(text)))


def _length(text: str, size: int) -> int:
    return round(_font(size, _is_plain(text[:_LONGEST])).getlength(text[:_LONGEST]))


def _is_plain(text: str) -> bool:
    return text.replace("…", "").replace("·", "").isascii()


@cache
def _font(size: int, plain: bool) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    if not plain:
        for name in _WIDE_FONTS:
            try:
                return ImageFont.truetype(name, size)
            except OSError:
                continue
    return ImageFont.load_default(size)


def _wrap(text: str, size: int, width: int, most: int) -> list[str]:
    """Breaks text into lines that fit; what is beyond `most` lines is cut with an ellipsis."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        joined = f"{line} {word}".strip()
        if _length(joined, size) <= width:
            line = joined
            continue
        lines += [line] if line else []
        while _length(word, size) > width:  # a word longer than a line is broken anywhere
            start = _start_of(word, size, width)
            lines.append(start)
            word = word[len(start) :]
            if len(lines) > most:
                break
        line = word
        if len(lines) > most:
            break
    lines += [line] if line else []
    if len(lines) > most:
        lines = [*lines[: most - 1], _shorten(lines[most - 1] + " …", size, width)]
    return lines


def _start_of(word: str, size: int, width: int) -> str:
    return word[: max(1, _fitting(range(len(word)), lambda keep: _length(word[:keep], size) <= width))]


def _shorten(text: str, size: int, width: int, *, middle: bool = False) -> str:
    """The text if it fits, else as much of its start (`middle`: of both ends) as does, with an ellipsis."""
    text = " ".join(text.split())
    if _length(text, size) <= width:
        return text

    def cut(keep: int) -> str:
        head = (keep + 1) // 2 if middle else keep
        return text[:head] + "…" + text[len(text) - (keep - head) :]

    return cut(_fitting(range(len(text)), lambda keep: _length(cut(keep), size) <= width))


def _fitting(sizes: range, fits: Callable[[int], bool]) -> int:
    """The largest of `sizes` that fits, if those that fit come first."""
    return max(0, bisect_left(sizes, True, key=lambda size: not fits(size)) - 1)
