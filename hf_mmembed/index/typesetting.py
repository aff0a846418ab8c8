"""Measuring and breaking lines of text for a drawing.

In: all the text that a drawing will hold, so that one font serves it. Out: line breaks, shortened names, and the font.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable
from functools import cache

from PIL import ImageFont

__all__ = ["Typesetter"]

logger = logging.getLogger(__name__)

# Pillow's own font covers ASCII and little else; these cover more, where the system has them.
_WIDE_FONTS = ("NotoSansCJK-Regular.ttc", "NotoSans-Regular.ttf", "DejaVuSans.ttf", "Arial Unicode.ttf", "arial.ttf")
_OURS = str.maketrans("", "", "…·")  # what Pillow's font has beyond ASCII, of what we add ourselves
_LONGEST = 1000  # characters; no line holds more


class Typesetter:
    """Sets text in Pillow's own font, or in one of the system's where the text needs it.

    Args:
        texts: Everything that will be set.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        foreign = {sign for text in texts for sign in text.translate(_OURS) if not sign.isascii()}
        self._plain = not foreign
        if foreign and (boxes := _missing(foreign, self.font(20))):
            logger.warning(
                "no font here has %s: boxes are drawn in their place. Install one that does, such as Noto Sans CJK, or "
                "write a page (HTML), for which the browser has its own", " ".join(sorted(boxes)[:10])
            )  # fmt: skip

    def font(self, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
        """The font in a size, in pixels."""
        return _font(size, self._plain)

    def length(self, text: str, size: int) -> int:
        """Width of a line, in pixels."""
        return round(self.font(size).getlength(text[:_LONGEST]))

    def wrap(self, text: str, size: int, width: int, most: int) -> list[str]:
        """Breaks text into lines that fit; what is beyond `most` lines is cut with an ellipsis."""
        lines: list[str] = []
        line = ""
        for word in text.split():
            joined = f"{line} {word}".strip()
            if self.length(joined, size) <= width:
                line = joined
                continue
            lines += [line] if line else []
            while self.length(word, size) > width and len(lines) <= most:
                start = self._start_of(word, size, width)  # longer than a line: broken anywhere
                lines.append(start)
                word = word[len(start) :]
            line = word
            if len(lines) > most:
                break
        lines += [line] if line else []
        if len(lines) > most:
            lines = [*lines[: most - 1], self.shorten(lines[most - 1] + " …", size, width)]
        return lines

    def shorten(self, text: str, size: int, width: int, *, middle: bool = False) -> str:
        """The text if it fits, else as much of its start (`middle`: of both ends) as does, with an ellipsis."""
        text = " ".join(text.split())
        if self.length(text, size) <= width:
            return text

        def cut(keep: int) -> str:
            head = (keep + 1) // 2 if middle else keep
            return text[:head] + "…" + text[len(text) - (keep - head) :]

        return cut(_fitting(len(text), lambda keep: self.length(cut(keep), size) <= width))

    def _start_of(self, word: str, size: int, width: int) -> str:
        return word[: max(1, _fitting(len(word), lambda keep: self.length(word[:keep], size) <= width))]


def _fitting(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number below `most` that fits, where all smaller ones do too; 0 if none does."""
    return max(0, bisect_left(range(most), True, key=lambda size: not fits(size)) - 1)


def _missing(signs: Iterable[str], font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> set[str]:
    """Those of the signs for which the font draws what it draws for U+FFFF, which is no character."""
    box = bytes(font.getmask("\uffff"))
    return {sign for sign in signs if sign.isprintable() and bytes(font.getmask(sign)) == box}


@cache
def _font(size: int, plain: bool) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    if not plain:
        for name in _WIDE_FONTS:
            try:
                return ImageFont.truetype(name, size)
            except OSError:
                continue
    return ImageFont.load_default(size)
