"""``hf-mmembed quickstart``: draw 300 pictures, search them in four ways, fine-tune the model with SaHa, search again.

In: a directory. Out: in the directory, the pictures, the indexes, a contact sheet of the searches before and after as
PNG and HTML, and the fine-tuned adapter; on stdout, for each search, whether its first hit is right.
"""

from __future__ import annotations

import shutil
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .config import ConfigOption
from .models import SHIPPED

if TYPE_CHECKING:
    from hf_mmembed.data.scenes import Scene
    from hf_mmembed.identity import ModelIdentity
    from hf_mmembed.index import Index, Panel
    from hf_mmembed.sentence_transformer import MMEmbedder

    from .tour import Search

__all__ = ["quickstart"]

_HITS = 5
_FAMILIES, _STEPS = 100, 120  # of the fine-tuning: a minute and a half on two cores of Zen 5, some four on slower ones
_ABOUT_RELATIONS = (
    "Shown as it comes out. A summary in one word gathers which shapes and colours are there, not which stands above "
    "which (hf-mmembed tiny evaluate measures it), and minutes of fine-tuning need not change that. The mirror image, "
    "the square above the triangle, is in the folder too."
)


def quickstart(
    out: Annotated[Path, typer.Option(help="Directory for the pictures, the index and the contact sheet.")] = Path(
        "quickstart"
    ),
    train: Annotated[
        bool, typer.Option(help="Afterwards mine hard negatives, fine-tune, and ask the same again.")
    ] = True,
    config: ConfigOption = None,
) -> None:
    """Draw 300 pictures, index them, search them by text, by a relation, by picture and by picture and change.

    Then the model mines hard negatives with its own eyes and is fine-tuned on them, on scenes that are not among the
    pictures, and the same four searches are run again.

    Example: hf-mmembed quickstart --out quickstart
    """
    if train and find_spec("peft") is None:
        raise ImportError('to fine-tune needs peft: pip install "hf-mmembed[train]", or leave it out with --no-train')
    started = time.perf_counter()
    from .embed import load
    from .tour import PICTURES, SEARCHES, draw_folder

    scenes = draw_folder(out / "pictures")
    typer.echo(f"drew {PICTURES} pictures in {out / 'pictures'}; the model has seen none of these scenes")
    embedder, identity = load(SHIPPED)
    before = _tour(
        out, scenes, embedder, identity, called=SHIPPED, remark="trained to generate text, never to retrieve"
    )
    typer.echo(f"done in {time.perf_counter() - started:.0f} s")
    if not train:
        return

    started = time.perf_counter()
    tuned = _fine_tune(out / f"fine-tuning-{identity.fingerprint[:8]}")
    embedder, identity = load(str(tuned))
    after = _tour(out, scenes, embedder, identity, called="fine-tuned", remark=f"{SHIPPED} fine-tuned with SaHa")
    typer.echo("\nrank of the first right picture before → after fine-tuning")
    for search, first, then in zip(SEARCHES, before, after, strict=True):
        typer.echo(f"  {search.title}: {first} → {then}")
    typer.echo(f"the fine-tuned model: {tuned}, done in {time.perf_counter() - started:.0f} s")


def _tour(
    out: Path, scenes: dict[str, Scene], embedder: MMEmbedder, identity: ModelIdentity, *, called: str, remark: str
) -> list[int]:
    """Indexes the pictures, runs the searches, draws their sheet; returns the rank of each one's first right picture."""
    from hf_mmembed.data import open_source
    from hf_mmembed.files import write_atomically
    from hf_mmembed.index import Index, build_index, draw_contact_sheet, embed_source, write_contact_page

    from .tour import PICTURES, SEARCHES

    directory = out / f"index-{identity.fingerprint[:8]}"
    report = embed_source(open_source(out / "pictures"), embedder, identity, directory)
    build_index(directory, report)
    if report.new:
        speed = report.new / report.seconds
        typer.echo(f"indexed them with {called}: {identity.dimension} dimensions, {speed:.0f} pictures/s")
    else:
        typer.echo(f"the index in {directory} is up to date")

    index = Index(directory)
    panels, ranks = [], []
    for search in SEARCHES:
        panel, rank = _search(search, index, embedder, scenes, tuned=called != SHIPPED)
        panels.append(panel)
        ranks.append(rank)
    sheet = {
        "title": "Four searches, one embedding model",
        "subtitle": f"{PICTURES} drawn pictures · {called} · {remark}",
    }
    path = out / ("contact-sheet.png" if called == SHIPPED else f"contact-sheet-{called}.png")
    draw_contact_sheet(panels, **sheet).save(path)
    write_atomically(path.with_suffix(".html"), write_contact_page(panels, **sheet).encode("utf-8"))
    typer.echo(f"\ncontact sheet: {path} and {path.with_suffix('.html')}")
    # Started by make, the program is in .venv/bin and seldom on the path.
    program = "hf-mmembed" if shutil.which("hf-mmembed") else sys.argv[0]
    typer.echo(f'your own: {program} search {directory} --text "two green hearts"')
    return ranks


def _fine_tune(out: Path) -> Path:
    """Mines, trains an adapter and returns its directory; goes on where a killed run stopped."""
    from transformers import PrinterCallback

    from hf_mmembed.tiny.lean_training import lean_loss
    from hf_mmembed.tiny.pairs import draw_pairs
    from hf_mmembed.training.recipes import load_recipe, prepare

    from .models import embedder

    pairs = draw_pairs(0, families=_FAMILIES).pairs
    typer.echo(f"\nfine-tuning: {len(pairs):,} pairs of other scenes, mined with the model's own embeddings (SaHa)")
    changes = {"model": embedder(SHIPPED), "output": str(out), "training.max_steps": _STEPS}
    recipe = load_recipe("saha-tiny", {**changes, "training.dataloader_pin_memory": False})
    trainer = prepare(recipe, pairs=pairs, resume=True, loss=lean_loss(recipe.training["temperature"]))
    trainer.remove_callback(PrinterCallback)  # where there is no bar, it would print every log
    trainer.train(True)
    return trainer.save_result(out / "model")


def _search(
    search: Search, index: Index, embedder: MMEmbedder, scenes: dict[str, Scene], *, tuned: bool
) -> tuple[Panel, int]:
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
        about = "" if tuned else f" {_ABOUT_RELATIONS}"
        typer.echo(f"  its mirror image is at rank {', '.join(map(str, mirrored[:5]))}.{about}")
        remark = f"The right one is at rank {ranks[0]}, its mirror image at {mirrored[0]}.{about}"
    # Once every right picture is found, the hits that follow cannot be right, and are not called wrong.
    verdicts = [right[place] if hits[place].rank < ranks[-1] or right[place] else None for place in range(_HITS)]
    panel = make_panel(
        index, hits[:_HITS], title=search.title, text=search.text, picture=picture, right=verdicts, remark=remark
    )
    return panel, ranks[0]


def _is_mirrored(search: Search, scene: Scene) -> bool:
    from dataclasses import replace

    from hf_mmembed.data.scenes import OPPOSITE

    assert search.stands is not None
    return replace(search, stands=OPPOSITE[search.stands]).is_right(scene)
