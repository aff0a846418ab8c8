"""Contact sheets as a picture and as a page."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from hf_mmembed.index import Hit, Panel, Tile, draw_contact_sheet, make_panel, write_contact_page

NASTY = "<script>alert(\"1\")</script> & 'quotes' <img src=x onerror=y>"


def tile(rank=1, picture="red", note=None, text=None, name="a.png", right=None, score=0.9):
    image = None if picture is None else Image.new("RGB", (40, 20), picture)
    return Tile(Hit(rank, score, rank, name, None, text), image, note, right)


def panel(*tiles, **fields):
    return Panel(
        **{"title": "By text", "text": "a red thing", "picture": None, "instruction": None, "tiles": tiles, **fields}
    )


class Page(HTMLParser):
    VOID = {"meta", "img"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_sheet_shows_query_and_hits():
    query = Image.new("RGB", (30, 30), (0, 0, 255))
    sheet = draw_contact_sheet([panel(*(tile(rank) for rank in range(1, 8)), picture=query)], title="Title")
    assert sheet.mode == "RGB" and sheet.width == 1600
    pixels = np.asarray(sheet)
    red = (pixels == (255, 0, 0)).all(axis=2)
    assert (pixels == (0, 0, 255)).all(axis=2).sum() > 10_000, "the picture of the query"
    columns = np.diff(np.concatenate([[False], red.any(axis=0)]).astype(int)) == 1
    rows = np.diff(np.concatenate([[False], red.any(axis=1)]).astype(int)) == 1
    assert columns.sum() == 5 and rows.sum() == 2, "five thumbnails in a row, the other two below"


@pytest.mark.parametrize("right", [None, True, False])
def test_the_verdict_has_its_colour(right):
    colours = {None: (74, 85, 214), True: (22, 128, 74), False: (190, 52, 44)}
    pixels = np.asarray(draw_contact_sheet([panel(tile(picture="white", right=right))], title="T")).reshape(-1, 3)
    shown = {verdict: (pixels == colour).all(axis=1).sum() > 300 for verdict, colour in colours.items()}
    assert [verdict for verdict, seen in shown.items() if seen and verdict is not None] == (
        [] if right is None else [right]
    )


@pytest.mark.parametrize(
    "content",
    [
        panel(),
        panel(tile(picture=None, note="gone " * 100)),
        panel(tile(picture=None, text="words " * 500, name="x" * 400)),
        panel(tile(score=-0.4), text="漢字 " * 300 + "w" * 3000, instruction="do " * 200, remark="so " * 300),
        panel(tile(score=1.0000001), text=None, title="T" * 300),
    ],
)
def test_any_content_fits_on_sheet_and_page(content):
    assert draw_contact_sheet([content], title="t " * 500, subtitle="s " * 500).width == 1600
    assert Page(write_contact_page([content], title="t", subtitle="s")).open == []


def test_the_page_is_self_contained_and_escapes_everything():
    content = panel(
        tile(name=NASTY, text=NASTY),
        tile(picture=None, note=NASTY, right=False),
        tile(picture=None, text=NASTY, right=True),
        text=NASTY,
        instruction=NASTY,
        remark=NASTY,
        title=NASTY,
        picture=Image.new("RGB", (900, 600), "green"),
    )
    text = write_contact_page([content], title=NASTY, subtitle=NASTY)
    page = Page(text)
    assert page.open == [] and not {"script", "link", "iframe"} & {name for name, _ in page.tags}
    pictures = [attributes for name, attributes in page.tags if name == "img"]
    assert len(pictures) == 2 and all(set(attributes) <= {"src", "alt", "loading"} for attributes in pictures)
    assert all(attributes["src"].startswith("data:image/webp;base64,") for attributes in pictures)
    assert "http" not in re.sub(r'http-equiv="[^"]*"', "", text)
    policy = next(attributes["content"] for name, attributes in page.tags if "http-equiv" in attributes)
    assert "default-src 'none'" in policy
    thumbnail = Image.open(io.BytesIO(base64.b64decode(pictures[0]["src"].partition(",")[2])))
    assert thumbnail.size == (384, 256)


def test_a_page_holds_the_beginning_of_a_long_text():
    page = write_contact_page([panel(tile(picture=None, text="x" * 2_000), text="y" * 1_000)], title="t")
    assert "x" * 999 + "…" in page and "x" * 1_000 not in page and "y" * 1_000 in page


def test_the_page_follows_the_readers_colours_and_width():
    text = write_contact_page([panel(tile())], title="T")
    assert "prefers-color-scheme: dark" in text and "max-width: 48rem" in text and 'name="viewport"' in text


def test_a_picture_that_is_gone_says_so_in_its_place():
    class Gone:
        def picture(self, hit):
            raise ValueError("there is no file a.png.")

    made = make_panel(Gone(), [tile().hit])
    assert made.tiles[0].picture is None and made.tiles[0].note == "there is no file a.png."
    assert "there is no file a.png." in write_contact_page([made], title="T")
