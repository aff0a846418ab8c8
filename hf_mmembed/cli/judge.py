"""``hf-mmembed judge``: hard negatives with the scores of a multimodal LLM (UniME-V2).

In: a judge and pairs. Out: the pairs with hard negatives and scores, in OUT/pairs; resumable.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .columns import ColumnOption, columns_named
from .config import ConfigOption
from .embed import DeviceOption, LongestEdgeOption, load

__all__ = ["judge"]


def judge(
    model: Annotated[str, typer.Argument(help="Judge, a generative MLLM: a directory, a Hub id, or mmembed-tiny.")],
    data: Annotated[str, typer.Argument(help="Pairs: a folder, a table, a saved dataset, or a Hub dataset.")],
    out: Annotated[Path, typer.Argument(help="Directory for scores and result.")],
    miner: Annotated[
        str | None, typer.Option(help="Embedder that mines candidates. Default: the pairs' own hard negatives.")
    ] = None,
    depth: Annotated[int, typer.Option(min=1, help="Mined candidates per query.")] = 50,
    cap: Annotated[float, typer.Option(help="Candidates more similar than this are not looked at.")] = 1.0,
    margin: Annotated[
        float, typer.Option(help="A candidate that scores above the document's own score less this is an answer.")
    ] = 0.1,
    keep: Annotated[int, typer.Option(min=1, help="Hard negatives per row.")] = 8,
    stride: Annotated[int, typer.Option(min=1, help="Every so many of the candidates that are left.")] = 5,
    yes: Annotated[str, typer.Option(help="How the judge says yes.")] = "Yes",
    no: Annotated[str, typer.Option(help="How the judge says no.")] = "No",
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at a time.")] = 16,
    column: ColumnOption = None,
    split: Annotated[str, typer.Option(help="Split of the data.")] = "train",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the judge.")] = None,
    longest_edge: LongestEdgeOption = None,
    device: DeviceOption = None,
    config: ConfigOption = None,
) -> None:
    """Mine hard negatives and let a judge score them; what it takes for answers is left out.

    What is scored already is not asked again, so the same command goes on after an interruption, and another --margin
    costs nothing. The processes of `accelerate launch -m hf_mmembed.cli judge ...` share the work.

    Example: hf-mmembed judge mmembed-tiny pairs.jsonl judged --miner mmembed-tiny --yes yes --no no
    """
    from hf_mmembed.data.pairs import read_pairs
    from hf_mmembed.judging import Judge, judge_pairs
    from hf_mmembed.judging.candidates import mined, of_pairs
    from hf_mmembed.processes import world

    from .models import generative

    process = world()
    device = device or process.device
    pairs = read_pairs(data, columns=columns_named(column), split=split)
    if miner is None:
        pool = of_pairs(pairs)
    else:
        opened, identity = load(miner, device)
        pool = mined(
            pairs, opened, out / "embeddings", model=identity.as_dict(), depth=depth, cap=cap, device=opened.device
        )
        del opened  # before the judge needs the memory
    asked = Judge(
        generative(model), revision=revision, words=(yes, no), batch_size=batch_size, longest_edge=longest_edge,
        device=device,
    )  # fmt: skip
    judged = judge_pairs(pairs, asked, pool, out, margin=margin, keep=keep, stride=stride)
    if process.main:
        typer.echo(
            f"{len(pairs)} pairs, {int((pool.places >= 0).sum())} candidates, {judged.false_negatives} of them taken for "
            f"answers, {judged.without} pairs without a negative; wrote {out / 'pairs'}"
        )
