"""What the visitor sees of a ranking: cards, a bump chart, a heat map. HTML and SVG, no scripts.

Everything that a visitor typed is escaped; pictures are `data:` URIs that the Space made itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from engine import Picture
from numpy.typing import NDArray

__all__ = ["bump_chart", "cards", "gallery", "heat_map", "note", "prompt_box"]


def note(text: str) -> str:
    """A quiet line."""
    return f'<div class="note">{escape(text)}</div>'


def cards(hits: Sequence[tuple[Picture, float]], worst: float) -> str:
    """A grid of pictures, best first, each with its cosine and a bar that runs from the `worst` of all to the best."""
    best = hits[0][1]
    items = []
    for rank, (picture, score) in enumerate(hits, 1):
        share = (score - worst) / (best - worst) if best > worst else 1.0
        items.append(
            f'<li class="hit" tabindex="0" style="--delay:{min(rank, 12) * 25}ms">{_image(picture)}'
            f'<div class="hit-line"><span class="rank">{rank}</span>'
            f'<span class="bar" aria-hidden="true"><i style="width:{100 * share:.0f}%"></i></span>'
            f'<span class="score" title="cosine similarity">{score:.3f}</span></div>'
            f'<div class="about">{escape(picture.about)}</div></li>'
        )
    return f'<ol class="hits" aria-label="Results, best first">{"".join(items)}</ol>'


def gallery(pictures: Sequence[Picture]) -> str:
    """The pictures that are searched, without an order."""
    items = [f'<li class="hit">{_image(p)}<div class="about">{escape(p.about)}</div></li>' for p in pictures]
    return f'<ul class="hits" aria-label="Gallery">{"".join(items)}</ul>'


def _image(picture: Picture) -> str:
    return f'<img src="{picture.uri}" alt="{escape(picture.about)}" width="192" height="192">'


def prompt_box(text: str, title: str, remark: str) -> str:
    """A rendered prompt as the model reads it, control tokens told apart."""
    shown = escape(text)
    for opening, closing in (("&lt;|", "|&gt;"), ("&lt;", "&gt;")):
        parts = shown.split(opening)
        shown = parts[0]
        for part in parts[1:]:
            inside, found, rest = part.partition(closing)
            known = found and len(inside) < 32 and " " not in inside and "<" not in inside
            shown += f"<b>{opening}{inside}{closing}</b>{rest}" if known else opening + part
    return (
        f'<section class="prompt"><h4>{escape(title)}</h4><pre tabindex="0">{shown}</pre>'
        f'<div class="note">{escape(remark)}</div></section>'
    )


def bump_chart(columns: Sequence[tuple[str, Sequence[tuple[Picture, float]]]]) -> str:
    """The first six pictures under each prompt, side by side; a line follows each picture from column to column."""
    top, cell, gap, wide, head = 6, 84, 14, 250, 40
    height, width = head + top * (cell + gap), wide * (len(columns) - 1) + cell + 70
    x_of = [20 + wide * number for number in range(len(columns))]
    places = [{picture: rank for rank, (picture, _) in enumerate(hits)} for _, hits in columns]
    shown: list[str] = []
    for number in range(len(columns) - 1):
        left, right = places[number : number + 2]
        for picture, start in left.items():
            end = right[picture]
            if min(start, end) >= top:
                continue
            y1, y2 = (head + min(rank, top + 0.4) * (cell + gap) + cell / 2 for rank in (start, end))
            kind = "up" if end < start else "down" if end > start else "same"
            x1, x2 = x_of[number] + cell, x_of[number + 1]
            middle = (x1 + x2) / 2
            shown.append(
                f'<path class="move {kind}" d="M{x1} {y1:.0f}C{middle} {y1:.0f} {middle} {y2:.0f} {x2} {y2:.0f}"/>'
            )
    for number, (title, hits) in enumerate(columns):
        x = x_of[number]
        shown.append(f'<text class="column" x="{x + cell / 2}" y="22" text-anchor="middle">{escape(title)}</text>')
        for rank, (picture, score) in enumerate(hits[:top]):
            y = head + rank * (cell + gap)
            before = places[number - 1][picture] if number else None
            moved = "" if before is None or before == rank else f"{'▲' if before > rank else '▼'}{abs(before - rank)}"
            kind = "up" if before is not None and before > rank else "down"
            shown.append(
                f'<image href="{picture.uri}" x="{x}" y="{y}" width="{cell}" height="{cell}"><title>'
                f"{escape(picture.about)}: rank {rank + 1}, cosine {score:.3f}</title></image>"
                f'<rect x="{x}" y="{y}" width="{cell}" height="{cell}" rx="9" class="frame"/>'
                f'<text class="moved {kind}" x="{x + cell + 5}" y="{y + 15}">{moved}</text>'
            )
    label = "; ".join(f"{title}: {', '.join(hit[0].about for hit in hits[:3])}" for title, hits in columns)
    return (
        f'<div class="scroll" tabindex="0"><svg class="bump" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(label)}" style="min-width:{width * 0.66:.0f}px">{"".join(shown)}</svg></div>'
    )


def heat_map(texts: Sequence[str], pictures: Sequence[Picture], scores: NDArray[np.float32]) -> str:
    """A table of cosines `(texts, pictures)`; the best picture of each text is outlined."""
    low, high = float(scores.min()), float(scores.max())
    head = "".join(
        f'<th scope="col"><img src="{p.uri}" alt="{escape(p.about)}" title="{escape(p.about)}"></th>' for p in pictures
    )
    rows = []
    for text, row in zip(texts, scores, strict=True):
        cells = []
        for score in row:
            share = (float(score) - low) / (high - low) if high > low else 0.5
            mark = ' class="best"' if score == row.max() else ""
            cells.append(f'<td{mark} style="--heat:{100 * share:.0f}%">{score:.2f}</td>')
        rows.append(f'<tr><th scope="row">{escape(text)}</th>{"".join(cells)}</tr>')
    return (
        f'<div class="scroll" tabindex="0"><table class="heat"><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
