"""``hf-mmembed search``: the nearest items of an index to a text, a picture, or a picture with words about it.

In: an index and a query. Out: a table on stdout, or JSON; a contact sheet as HTML or PNG when asked for.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .config import ConfigOption
from .embed import DeviceOption
from .printable import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hf_mmembed.index import Hit, Index

__all__ = ["search"]

_SHOWN = 200  # characters of a text in the table; JSON has it all


def search(
    index: Annotated[Path, typer.Argument(help="Directory that `hf-mmembed index` wrote.")],
    text: Annotated[str | None, typer.Option(help="Words to search for, or about the picture.")] = None,
    image: Annotated[str | None, typer.Option(metavar="<file>", help="Picture file to search for.")] = None,
    instruction: Annotated[str | None, typer.Option(help="What kind of match is wanted.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Number of hits.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a contact sheet as a self-contained web page.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write a contact sheet as a picture.")] = None,
    model: Annotated[str | None, typer.Option(help="Where the index's own model is now, if it has moved.")] = None,
    think: Annotated[
        str | None,
        typer.Option(
            help="Reasoner that writes about the query first: a directory, a Hub id; a unified model is its own."
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The reasoner stops here at the latest.")] = 512,
    device: DeviceOption = None,
    config: ConfigOption = None,
) -> None:
    """Search an index by text, by picture, or by both.

    The query is embedded with the model and prompt that the index was built with; another one is refused. With --think,
    the model reads what a reasoner wrote about the query too; of use where it was trained to (`hf-mmembed think-train`).

    Example: hf-mmembed search photos-index --image dog.jpg --text "the same dog, asleep" -k 5 --html hits.html
    """
    if text is None and image is None:
        raise typer.BadParameter("give --text, --image or both")
    from hf_mmembed.model.images_mmembed import is_url

    if is_url(image):
        raise typer.BadParameter(f"--image {image} is a URL; download the picture and give the file")
    if image == "":
        raise typer.BadParameter("--image is empty; is a variable of the shell not set?")
    for sheet in (html, png):
        if sheet is not None and sheet.is_dir():
            raise typer.BadParameter(f"{sheet} is a directory; give a file for the contact sheet")
    picture = None if image is None else Path(image)
    from hf_mmembed.index import Index, embed_query

    from .embed import load

    opened = Index(index)
    built = opened.manifest.model
    name = model or built.name
    try:
        embedder, identity = load(name, device, revision=built.revision if name == built.name else None)
    except ValueError as error:
        if model is not None:
            raise
        raise ValueError(f"{error}. If the model of the index has moved, say where with --model") from error
    opened.check(identity)
    trace = None
    if think is not None:
        trace = _think(think, max_new_tokens, device, text=text, image=picture, instruction=instruction)
        typer.echo(f"trace: {printable(trace)}", err=True)
    query = embed_query(embedder, text=text, image=picture, instruction=instruction, trace=trace)
    hits = opened.search(query, k)
    if as_json:
        asked = {"text": text, "image": image, "instruction": instruction}
        asked |= {} if trace is None else {"trace": trace}
        found = {"index": str(index), "query": asked, "hits": [hit.as_dict() for hit in hits]}
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        _print_table(hits)
    if len(hits) < min(k, len(opened)):
        kind = (opened.manifest.faiss or {})["kind"]
        typer.echo(
            f"found {len(hits)} of the {k} asked for: an index of the kind {kind} does not look at every item; "
            "one built with --faiss flat does",
            err=True,
        )
    if html is not None or png is not None:
        _write_sheets(opened, hits, text=text, image=picture, instruction=instruction, html=html, png=png)


def _think(
    reasoner: str,
    max_new_tokens: int,
    device: str | None,
    *,
    text: str | None,
    image: Path | None,
    instruction: str | None,
) -> str:
    from hf_mmembed.index import make_query
    from hf_mmembed.inputs import as_messages
    from hf_mmembed.thinking import LocalReasoner, Settings
    from hf_mmembed.thinking.templates import guess_family

    from .models import generative

    query = make_query(text=text, image=image, instruction=instruction)
    thinking = LocalReasoner(generative(reasoner), settings=Settings(max_new_tokens), device=device)
    [trace] = thinking.think([query], guess_family(as_messages(query), "query"))
    return trace.text


def _print_table(hits: Sequence[Hit]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("rank", "score", "item", box=None, pad_edge=False, header_style="bold")
    has_text = any(hit.text for hit in hits)
    if has_text:
        table.add_column("text", overflow="fold")
    for column, justify in zip(table.columns, ("right", "right", "left"), strict=False):
        column.justify, column.overflow = justify, "fold"  # type: ignore[assignment]
    for hit in hits:
        text = hit.text or ""
        text = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
        cells = [str(hit.rank), f"{hit.score:.4f}", hit.path or hit.name, *([text] if has_text else [])]
        table.add_row(*(Text(printable(cell)) for cell in cells))
    # Into a pipe or a file, lines are neither broken nor filled up. Where stdout is closed, there is none.
    console = Console(width=None if sys.stdout is not None and sys.stdout.isatty() else 100_000)
    with console.capture() as captured:
        console.print(table)
    typer.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _write_sheets(
    index: Index,
    hits: Sequence[Hit],
    *,
    text: str | None,
    image: Path | None,
    instruction: str | None,
    html: Path | None,
    png: Path | None,
) -> None:
    from hf_mmembed.files import write_atomically
    from hf_mmembed.index import draw_contact_sheet, make_panel, write_contact_page
    from hf_mmembed.model.images_mmembed import open_image

    picture = None if image is None else open_image(image)
    panel = make_panel(index, hits, text=text, picture=picture, instruction=instruction)
    manifest = index.manifest
    title = f"Nearest {len(hits)} of {len(index):,} items"
    subtitle = f"{manifest.input['path']} · {manifest.model.name} · cosine similarity"
    if html is not None:
        html.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(html, write_contact_page([panel], title=title, subtitle=subtitle).encode("utf-8"))
        typer.echo(f"contact sheet: {html}", err=True)
    if png is not None:
        png.parent.mkdir(parents=True, exist_ok=True)
        draw_contact_sheet([panel], title=title, subtitle=subtitle).save(png, "PNG")
        typer.echo(f"contact sheet: {png}", err=True)
