"""``hf-mmembed index``: files, folders, tables and datasets to a directory that ``hf-mmembed search`` searches.

In: a model, an input and a directory. Out: what ``embed`` writes, plus ``index.faiss``. Exit code 1 when something had
to be skipped.
"""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from .config import ConfigOption
from .embed import (
    BatchSizeOption,
    DeviceOption,
    ImageColumnOption,
    InputArgument,
    ModelArgument,
    OutArgument,
    RevisionOption,
    ShardSizeOption,
    StrictOption,
    TextColumnOption,
    embed_input,
    keeping,
    list_skipped,
)

__all__ = ["index"]


def index(
    model: ModelArgument,
    input: InputArgument,
    out: OutArgument,
    image_column: ImageColumnOption = None,
    text_column: TextColumnOption = None,
    faiss: Annotated[
        Literal["auto", "flat", "hnsw", "ivf"],
        typer.Option(help="auto: flat (exact) up to 200,000 items, hnsw up to 2,000,000, ivf above."),
    ] = "auto",
    batch_size: BatchSizeOption = 32,
    shard_size: ShardSizeOption = 256,
    device: DeviceOption = None,
    revision: RevisionOption = None,
    strict: StrictOption = False,
    config: ConfigOption = None,
) -> None:
    """Build a searchable index of pictures and texts; run it again to resume.

    Files that cannot be read are skipped, listed at the end and in OUT/skipped.jsonl, and the exit code is 1. Run it
    again after files were added, changed or removed: only those are embedded anew. What was begun on a GPU in bfloat16 is
    not continued on a CPU, which computes in float32. A text longer than the model reads is cut at its end.

    Example: hf-mmembed index mmembed-tiny photos photos-index
    """
    report, _, _ = embed_input(
        model,
        input,
        out,
        image_column=image_column,
        text_column=text_column,
        batch_size=batch_size,
        shard_size=shard_size,
        device=device,
        revision=revision,
        strict=strict,
    )
    from hf_mmembed.index import build_index
    from hf_mmembed.index.vectors import describe

    with keeping(out):
        manifest = build_index(out, report, kind=None if faiss == "auto" else faiss)
    assert manifest.faiss is not None
    typer.echo(f"index: {out} ({describe(manifest.faiss)})")
    list_skipped(report, out)
