"""`hf-mmembed prompt show`: exactly what an embedder reads for an input, as a string and token by token."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .config import ConfigOption
from .models import embedder

if TYPE_CHECKING:
    from hf_mmembed.model import MMEmbedProcessor

__all__ = ["prompt", "show", "token_lines"]

prompt = typer.Typer(name="prompt", help="Look at the words that surround every input.", no_args_is_help=True)


@prompt.command()
def show(
    model: Annotated[str, typer.Argument(help="Embedder: a directory, a Hub id, or mmembed-tiny.")],
    text: Annotated[str | None, typer.Argument(help="The text of the input.")] = None,
    image: Annotated[list[Path] | None, typer.Option(help="A picture of the input; may be given again.")] = None,
    task: Annotated[
        Literal["document", "query"], typer.Option(help="Which side of a search the input is.")
    ] = "document",
    instruction: Annotated[str | None, typer.Option(help="Instruction of the input.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.")] = None,
    config: ConfigOption = None,
) -> None:
    """Print what the model reads: the rendered string, then its tokens, of which the last is pooled.

    The head of a unified model reads the states of these tokens, and of the trace where it thinks first.

    A text that is too long is cut at its end: then the string shows it whole, the tokens show what is read.

    Example: hf-mmembed prompt show mmembed-tiny --task query "a red circle"
    """
    from transformers import AutoConfig

    from hf_mmembed.adapters import base_of_adapter, naming_a_lost_base
    from hf_mmembed.model import MMEmbedProcessor
    from hf_mmembed.model.rows_mmembed import rows_of_lists
    from hf_mmembed.opening import has_modules

    path = embedder(model)
    with naming_a_lost_base(path):
        base, of_base = base_of_adapter(path, revision=revision) or (path, revision)
        checkpoint = AutoConfig.from_pretrained(base, revision=of_base)
    if checkpoint.model_type not in ("mmembed", "mmembed_unified"):
        what = model if base == path else base
        raise ValueError(
            f"{what} is a {checkpoint.model_type!r} model, not an embedder; run `hf-mmembed convert` first."
        )
    # As `MMEmbedder` does: PEFT saves an adapter without the files of an embedder, those of its base then hold.
    if has_modules(path, revision=revision):
        processor = MMEmbedProcessor.from_pretrained(path, revision=revision)
    else:
        processor = MMEmbedProcessor.from_pretrained(base, revision=of_base)
    texts = None if text is None else [text]
    images = [list(image)] if image else None
    inputs = {"text": texts, "images": images, "task": task, "instruction": instruction}
    ids, uncut = (processor(**inputs, truncation=cut)["input_ids"][0] for cut in (True, False))
    typer.echo(processor.render(rows_of_lists(texts, images, instruction), task)[0])
    typer.echo()
    if len(ids) < len(uncut):
        typer.echo(f"too long: {len(uncut)} tokens, of which the model reads {len(ids)}; the text is cut at its end\n")
    lines = token_lines(processor, ids)
    pooled = "pooled" if checkpoint.pooling == "last" else "mean of all is pooled"
    if checkpoint.model_type == "mmembed_unified":
        pooled = f"the head {checkpoint.head!r} reads the states up to here"
    typer.echo("\n".join([*lines[:-1], f"{lines[-1]}  <- {pooled}"]))


def token_lines(processor: MMEmbedProcessor, ids: list[int]) -> list[str]:
    """One line per token: its position, its id and its text; a run of equal tokens is one line with their number.

    Args:
        processor ([`MMEmbedProcessor`]): Whose tokenizer made the ids.
        ids (`list[int]`): The tokens of one input.

    Returns:
        `list[str]`.
    """
    lines, position = [], 0
    for token, run in groupby(ids):
        count = len(list(run))
        times = f"  x {count}" if count > 1 else ""
        lines.append(f"{position:5d} {token:7d}  {processor.tokenizer.decode([token])!r}{times}")
        position += count
    return lines
