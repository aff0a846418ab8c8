"""`hf-mmembed verify`: does a published model give the numbers it was published with?"""

from __future__ import annotations

from typing import Annotated

import typer

from .config import ConfigOption
from .embed import DeviceOption

__all__ = ["verify"]


def verify(
    model: Annotated[str, typer.Argument(help="ORG/NAME on the Hub, or a directory with golden vectors.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit. Default: main.")] = None,
    device: DeviceOption = None,
    config: ConfigOption = None,
) -> None:
    """Embed a model's sixteen golden inputs and compare prompts and embeddings with the stored ones.

    Exit code 1 when anything differs.

    Example: hf-mmembed verify my-name/my-embedder
    """
    from hf_mmembed.hub import verify as verify_model

    found = verify_model(model, revision=revision, device=device)
    for comparison in found.comparisons:
        verdict = "FAIL" if comparison in found.failures else "ok"
        prompt = "" if comparison.same_prompt else "  the prompt differs"
        numbers = f"max diff {comparison.difference:.1e}  cosine {comparison.cosine:.7f}"
        typer.echo(f"{verdict:>4}  {numbers}  {comparison.name}{prompt}")
    where = f"{found.model} at {found.revision}" if found.revision else found.model
    same = len(found.comparisons) - len(found.failures)
    limits = f"max diff {found.tolerance:g}, cosine {found.least_cosine:g}"
    typer.echo(f"{same} of {len(found.comparisons)} as published (tolerated: {limits}): {where}")
    if found.failures:
        raise typer.Exit(1)
