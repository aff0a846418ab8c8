"""`hf-mmembed convert`: a generative multimodal LLM becomes an embedder checkpoint, without training."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .config import ConfigOption
from .embed import LongestEdgeOption
from .models import generative

__all__ = ["convert"]


def convert(
    base: Annotated[str, typer.Argument(help="Generative checkpoint: a directory, a Hub id, or mmembed-tiny.")],
    out: Annotated[Path, typer.Argument(help="Directory to write; it must not exist yet, or be empty.")],
    prompt: Annotated[
        str, typer.Option(help="saha, saha-legacy, unime, e5v, vlm2vec, plain, or a YAML file with a prompt.")
    ] = "saha",
    readout: Annotated[str, typer.Option(help="final, or pre_mlp: the state before the last block's MLP.")] = "final",
    pooling: Annotated[str, typer.Option(help="last, or mean over all tokens.")] = "last",
    embedding_dim: Annotated[int | None, typer.Option(help="Keep this many dimensions. Default: all.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16. Default: as in BASE.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.")] = None,
    longest_edge: LongestEdgeOption = None,
    config: ConfigOption = None,
) -> None:
    """Turn a generative multimodal LLM into an embedder checkpoint.

    The result opens with transformers (`AutoModel`), sentence-transformers and PEFT alike.

    Example: hf-mmembed convert Qwen/Qwen2-VL-2B-Instruct my-embedder
    """
    from transformers.utils import logging

    from hf_mmembed.model.convert import convert as convert_checkpoint

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    written = convert_checkpoint(
        generative(base),
        out,
        prompt=prompt,
        readout=readout,
        pooling=pooling,
        embedding_dim=embedding_dim,
        dtype=dtype,
        revision=revision,
        longest_edge=longest_edge,
    )
    typer.echo(f"wrote {written}")
    typer.echo(f'try: hf-mmembed prompt show {written} --task query "a red circle"')
