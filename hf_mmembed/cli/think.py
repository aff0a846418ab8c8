"""``hf-mmembed think`` and ``hf-mmembed think-train``: traces of pairs, and models that are trained on them.

In: a reasoner and pairs. Out: a store of traces, resumable; then a reasoner, an embedder or a unified model.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from .columns import ColumnOption, columns_named
from .config import ConfigOption, values_set
from .embed import DeviceOption, LongestEdgeOption
from .reasoner import (
    ApiKeyOption,
    EndpointOption,
    HowToThink,
    MaxNewTokensOption,
    SamplingSeedOption,
    TemperatureOption,
    TemplatesOption,
    reasoner_of,
)

__all__ = ["think", "think_train"]


def think(
    model: Annotated[str, typer.Argument(help="Reasoner: a directory, a Hub id, mmembed-tiny, or a served name.")],
    data: Annotated[str, typer.Argument(help="Pairs: a folder, a table, a saved dataset, or a Hub dataset.")],
    out: Annotated[Path, typer.Argument(help="SQLite file for the traces of one reasoner and setting.")],
    side: Annotated[Literal["both", "query", "document"], typer.Option(help="What to think about.")] = "both",
    family: Annotated[
        list[str] | None,
        typer.Option(
            help="Task family of the queries, or SUBSET=FAMILY (repeatable). Default: that of an MMEB data set by its "
            "name, of others by their form."
        ),
    ] = None,
    endpoint: EndpointOption = None,
    api_key: ApiKeyOption = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit; or the version that is served.")] = None,
    templates: TemplatesOption = "1",
    max_new_tokens: MaxNewTokensOption = 512,
    temperature: TemperatureOption = 0.0,
    seed: SamplingSeedOption = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Inputs at a time, or requests on their way at once.")] = 16,
    longest_edge: LongestEdgeOption = None,
    show_answers: Annotated[
        bool, typer.Option("--show-answers", help="Show the reasoner the right document of each query; marked.")
    ] = False,
    column: ColumnOption = None,
    split: Annotated[str, typer.Option(help="Split of the data.")] = "train",
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many pairs, from the start.")] = None,
    device: DeviceOption = None,
    config: ConfigOption = None,
) -> None:
    """Let a reasoner think about queries and documents, and keep what it writes.

    What is in OUT already is not made again, so the same command goes on after an interruption. Several processes may
    fill one file, and those of `accelerate launch -m hf_mmembed.cli think ...` share the work, one device each.

    Example: hf-mmembed think mmembed-tiny pairs.jsonl traces.sqlite --family qa --max-new-tokens 32
    """
    from hf_mmembed.data.pairs import read_pairs
    from hf_mmembed.processes import world
    from hf_mmembed.thinking.filling import think_about_pairs
    from hf_mmembed.thinking.traces import TraceStore

    how = HowToThink(
        endpoint, api_key, revision, templates, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed,
        longest_edge=longest_edge,
    )  # fmt: skip
    how.check("--longest-edge")
    _no_bars_in_a_file()
    families = _families(family or [])
    process = world()
    pairs = read_pairs(data, columns=columns_named(column), split=split)
    pairs = pairs if limit is None else pairs.select(range(min(limit, len(pairs))))
    reasoner = reasoner_of(model, how, device=device or process.device, batch_size=batch_size)
    with TraceStore(out) as store:
        try:
            done = think_about_pairs(
                store,
                reasoner,
                pairs,
                sides=("query", "document") if side == "both" else (side,),
                families=families,
                show_answers=show_answers,
                part=(process.rank, process.size),
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{len(store)} traces are kept in {out}: the same command goes on there") from None
        parts = process.gather(done)
        if not process.main:
            return
        seconds = max(part.seconds for part in parts)
        speed = f", {sum(part.tokens for part in parts) / seconds:.1f} tokens/s" if seconds else ""
        new, kept = sum(part.new for part in parts), sum(part.kept for part in parts)
        typer.echo(f"{new} new traces, {kept} kept{speed}")
        summary = store.summary()
        for status, count in summary.items():
            typer.echo(f"  {status:<10} {count}")
        if len(store) and "complete" not in summary:
            typer.echo(
                "none has the form <think> reasoning </think> conclusion: an embedder can read them as they are, but "
                "there is nothing for tte-sft to learn; try a larger reasoner, or --max-new-tokens if they are cut, and "
                "write into another file: a training or an evaluation takes the traces of one reasoner and setting",
                err=True,
            )


def think_train(
    recipe: Annotated[str, typer.Argument(help="tte-sft, tte-embedder, tte-unified, or a YAML file of that form.")],
    model: Annotated[str | None, typer.Option(help="Reasoner or embedder to train, in place of the recipe's.")] = None,
    data: Annotated[str | None, typer.Option(help="Pairs, in place of the recipe's.")] = None,
    traces: Annotated[str | None, typer.Option(help="What `hf-mmembed think` has filled.")] = None,
    output: Annotated[str | None, typer.Option(help="Directory of the run; the result is in `model` inside.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE that wins over the file, e.g. training.max_steps=10.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the last checkpoint of the run.")] = False,
) -> None:
    """Train on traces: a reasoner (sft), an embedder that reads them (embedder), or a head on a reasoner (unified).

    Example: hf-mmembed think-train tte-sft --model mmembed-tiny --data pairs.jsonl --traces traces.sqlite
    """
    from hf_mmembed.thinking.recipes import load_thinking_recipe, train_thinking

    from .models import embedder, generative

    _no_bars_in_a_file()
    overrides = {"model": model, "data.source": data, "traces": traces, "output": output}
    overrides = {key: value for key, value in overrides.items() if value is not None}
    overrides |= values_set(set_ or [])
    loaded = load_thinking_recipe(recipe, overrides)
    shipped = embedder if loaded.variant == "embedder" else generative
    typer.echo(train_thinking(replace(loaded, model=shipped(loaded.model)), resume=resume))


def _no_bars_in_a_file() -> None:
    from transformers.utils.logging import disable_progress_bar

    if not sys.stderr.isatty():
        disable_progress_bar()


def _families(given: list[str]) -> str | dict[str, str] | None:
    if not given:
        return None
    if len(given) == 1 and "=" not in given[0]:
        return given[0]
    if wrong := [item for item in given if "=" not in item]:
        raise typer.BadParameter(f"--family {wrong[0]} beside others must name a subset: SUBSET={wrong[0]}")
    return {subset: family for subset, _, family in (item.rpartition("=") for item in given)}
