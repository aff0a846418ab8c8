"""A contact sheet as one HTML page that needs nothing else: pictures are embedded, there is no script.

In: `Panel` objects. Out: the page as a string. It follows the reader's light or dark setting and the width of the
window. Texts and names are escaped, and a content security policy forbids everything but embedded pictures and styles.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

from PIL import Image, ImageOps

from .contact import Panel, Tile

__all__ = ["write_contact_page"]

_THUMBNAIL = 384  # pixels; twice what is shown, for dense screens
_MOST = 1_000  # characters of a text

_STYLE = """
:root { color-scheme: light dark; --page: #f4f3f0; --card: #fff; --edge: #e4e2dd; --well: #efeeeb; --ink: #1c1b1a;
  --soft: #6b6762; --accent: #4a55d6; --right: #16804a; --wrong: #be342c; }
@media (prefers-color-scheme: dark) { :root { --page: #141416; --card: #1d1d20; --edge: #313136; --well: #27272b;
  --ink: #ededea; --soft: #a3a09a; --accent: #9aa4ff; --right: #5fcf96; --wrong: #ff8f85; } }
* { box-sizing: border-box; margin: 0; }
body { background: var(--page); color: var(--ink); font: 16px/1.45 system-ui, sans-serif; padding: clamp(1rem, 3vw, 3rem); }
main { max-width: 1500px; margin: auto; display: grid; gap: 1.25rem; }
h1 { font-size: clamp(1.4rem, 2.5vw, 2rem); font-weight: 650; letter-spacing: -.01em; overflow-wrap: anywhere; }
header p, .remark, .instruction { color: var(--soft); overflow-wrap: anywhere; }
section { background: var(--card); border: 1px solid var(--edge); border-radius: 16px; padding: clamp(1rem, 2vw, 2rem);
  display: grid; grid-template-columns: minmax(0, 17rem) minmax(0, 1fr); gap: clamp(1rem, 2.5vw, 2.5rem); }
@media (max-width: 48rem) { section { grid-template-columns: minmax(0, 1fr); } }
h2 { font-size: .78rem; letter-spacing: .09em; text-transform: uppercase; color: var(--accent); font-weight: 650; }
.query { display: grid; gap: .75rem; align-content: start; }
.query .words { font-size: 1.35rem; line-height: 1.3; overflow-wrap: anywhere; white-space: pre-line; }
.query img { width: min(100%, 13rem); }
.remark { font-size: .88rem; }
ol { list-style: none; padding: 0; display: grid; gap: 1.1rem; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); }
.well { aspect-ratio: 1; background: var(--well); border: 1px solid var(--edge); border-radius: 12px; overflow: hidden;
  display: grid; }
img { display: block; width: 100%; border-radius: 12px; }
.well img { height: 100%; object-fit: contain; }
.well p { padding: .8rem; font-size: .88rem; overflow: auto; overflow-wrap: anywhere; white-space: pre-line; }
.well .note { color: var(--soft); }
meter { width: 100%; height: 5px; margin-top: .55rem; display: block; border: 0; background: var(--edge);
  border-radius: 3px; appearance: none; }
meter::-webkit-meter-bar { background: var(--edge); border: 0; border-radius: 3px; height: 5px; }
meter::-webkit-meter-optimum-value, meter::-webkit-meter-suboptimum-value { background: var(--tone); border-radius: 3px; }
meter::-moz-meter-bar { background: var(--tone); border-radius: 3px; }
li { --tone: var(--accent); min-width: 0; }
li.right { --tone: var(--right); }
li.wrong { --tone: var(--wrong); }
.line { display: flex; gap: .5rem; font-variant-numeric: tabular-nums; }
.line b, .line i { color: var(--tone); font-style: normal; }
.line span { margin-left: auto; }
.name { color: var(--soft); font-size: .8rem; overflow-wrap: anywhere; }
"""


def write_contact_page(panels: Sequence[Panel], *, title: str, subtitle: str = "") -> str:
    """The page as a string, with pictures as data URIs.

    It holds thumbnails of at most 384 pixels and the first 1,000 characters of each text.

    Args:
        panels: Queries with their results.
        title: Heading of the page.
        subtitle: A line below it.
    """
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{_escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<header>
<h1>{_escape(title)}</h1>
<p>{_escape(subtitle)}</p>
</header>
{"".join(_panel(panel) for panel in panels)}</main>
</body>
</html>
"""


def _panel(panel: Panel) -> str:
    query = [f"<h2>{_escape(panel.title)}</h2>"]
    if panel.picture is not None:
        query.append(f'<img src="{_data_uri(panel.picture)}" alt="the picture of the query">')
    for css, text in (("words", panel.text), ("instruction", panel.instruction), ("remark", panel.remark)):
        if text:
            query.append(f'<p class="{css}">{_words(text)}</p>')
    tiles = "\n".join(_tile(tile) for tile in panel.tiles) or "<li>nothing found</li>"
    return f'<section>\n<div class="query">{"".join(query)}</div>\n<ol>\n{tiles}\n</ol>\n</section>\n'


def _tile(tile: Tile) -> str:
    hit = tile.hit
    if tile.picture is not None:
        inside = f'<img src="{_data_uri(tile.picture)}" alt="{_words(hit.text or hit.name)}" loading="lazy">'
    else:
        css = "note" if tile.note else "text"
        inside = f'<p class="{css}">{_words(tile.note or hit.text or "")}</p>'
    verdict = "" if tile.right is None else "right" if tile.right else "wrong"
    score = max(0.0, min(1.0, hit.score))
    return (
        f'<li class="{verdict}"><div class="well">{inside}</div>'
        f'<meter value="{score:.4f}" aria-label="cosine similarity"></meter>'
        f'<p class="line"><b>{hit.rank}</b><i>{verdict}</i><span>{hit.score:.3f}</span></p>'
        f'<p class="name">{_escape(hit.name)}</p></li>'
    )


def _data_uri(picture: Image.Image) -> str:
    small = picture.convert("RGB")
    if max(small.size) > _THUMBNAIL:
        small = ImageOps.contain(small, (_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=86, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _words(text: str) -> str:
    return _escape(text if len(text) <= _MOST else f"{text[: _MOST - 1]}…")


def _escape(text: str) -> str:
    return escape(text, quote=True)
