"""``hf-mmembed quickstart``: draw 300 pictures, index them with the shipped model, search them in four ways.

In: a directory. Out: in the directory, the pictures, the index, and a contact sheet of the searches as PNG and HTML;
on stdout, for each search, whether its first hit is right.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .config import ConfigOption
from .models import SHIPPED

if TYPE_CHECKING:
    from hf_mmembed.data.scenes import Scene
    from hf_mmembed.index import Index, Panel
    from hf_mmembed.sentence_transformer import MMEmbedder

    from .tour import Search

__all__ = ["quickstart"]

_HITS = 5
_ABOUT_RELATIONS = (
    "Shown as it comes out. Without fine-tuning, an embedding gathers which shapes and colours are there; which stands "
    "above which it holds weakly at best (`hf-mmembed tiny evaluate` measures how well). The mirror image, the square "
    "above the triangle, is in the folder too."
)


def quickstart(
    out: Annotated[Path, typer.Option(help="Directory for the pictures, the index and the contact sheet.")] = Path(
        "quickstart"
    ),
    config: ConfigOption = None,
) -> None:
    """Draw 300 pictures, index them, search them by text, by a relation, by picture and by picture and change.

    Example: hf-mmembed quickstart --out quickstart
    """
    started = time.perf_counter()
    from .tour import PICTURES, SEARCHES, draw_folder

    pictures = out / "pictures"
    scenes = draw_folder(pictures)
    typer.echo(f"drew {PICTURES} pictures in {pictures}; the model has seen none of these scenes")

    from hf_mmembed.data import open_source
    from hf_mmembed.files import write_atomically
    from hf_mmembed.index import Index, build_index, draw_contact_sheet, embed_source, write_contact_page

    from .embed import load

    embedder, identity = load(SHIPPED)
    directory = out / f"index-{identity.fingerprint[:8]}"
    report = embed_source(open_source(pictures), embedder, identity, directory)
    build_index(directory, report)
    if report.new:
        speed = report.new / report.seconds
        typer.echo(f"indexed them with {SHIPPED}: {identity.dimension} dimensions, {speed:.0f} pictures/s")
    else:
        typer.echo(f"the index in {directory} is up to date")

    index = Index(directory)
    panels = [_search(search, index, embedder, scenes) for search in SEARCHES]
    subtitle = f"{PICTURES} drawn pictures · {SHIPPED} · trained to generate text, never to retrieve"
    sheet = {"title": "Four searches, one embedding model", "subtitle": subtitle}
    draw_contact_sheet(panels, **sheet).save(out / "contact-sheet.png")
    write_atomically(out / "contact-sheet.html", write_contact_page(panels, **sheet).encode("utf-8"))
    typer.echo(f"\ncontact sheet: {out / 'contact-sheet.png'} and {out / 'contact-sheet.html'}")
    typer.echo(f'your own: hf-mmembed search {directory} --text "two green hearts"')
    typer.echo(f"done in {time.perf_counter() - started:.0f} s")


def _search(search: Search, index: Index, embedder: MMEmbedder, scenes: dict[str, Scene]) -> Panel:
    """Runs one search over all pictures, says how it went, and keeps the first hits for the sheet."""
    from hf_mmembed.index import embed_query, make_panel

    from .tour import describe

    picture = search.picture()
    hits = index.search(embed_query(embedder, text=search.text, image=picture), k=len(index))
    right = [search.is_right(scenes[hit.name]) for hit in hits]
    shown = " + ".join(f"{color} {shape}" for shape, color in search.shown or ())
    query = ", ".join(filter(None, (shown and f"picture of {shown}", search.text and f'"{search.text}"')))
    typer.echo(f"\n{search.title}: {query}")
    verdict = "right" if right[0] else "WRONG"
    typer.echo(f"  first hit {verdict}: {hits[0].name}, {describe(scenes[hits[0].name])}, score {hits[0].score:.3f}")
    ranks = [hit.rank for hit, is_right in zip(hits, right, strict=True) if is_right]
    typer.echo(f"  {len(ranks)} right among {len(hits)} pictures, at rank {', '.join(map(str, ranks[:5]))}")
    remark = f"{len(ranks)} of {len(hits)} pictures are right."
    if search.stands is not None:
        mirrored = [hit.rank for hit in hits if _is_mirrored(search, scenes[hit.name])]
        typer.echo(f"  its mirror image is at rank {', '.join(map(str, mirrored[:5]))}. {_ABOUT_RELATIONS}")
        remark = f"{_ABOUT_RELATIONS} Here the right one is at rank {ranks[0]}, its mirror image at {mirrored[0]}."
    # Once every right picture is found, the hits that follow cannot be right, and are not called wrong.
    verdicts = [right[place] if hits[place].rank < ranks[-1] or right[place] else None for place in range(_HITS)]
    return make_panel(
        index, hits[:_HITS], title=search.title, text=search.text, picture=picture, right=verdicts, remark=remark
    )


def _is_mirrored(search: Search, scene: Scene) -> bool:
    from dataclasses import replace

    from hf_mmembed.data.scenes import OPPOSITE

    assert search.stands is not None
    return replace(search, stands=OPPOSITE[search.stands]).is_right(scene)
