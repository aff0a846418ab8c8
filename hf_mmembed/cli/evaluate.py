"""``hf-mmembed evaluate``: a model on a benchmark; two results beside each other; the averages of a results file.

In: a model and a folder, or results files. Out: tables on the screen, files in OUT. Exit code 1 when a data set failed.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer.core import TyperGroup

from .config import ConfigOption
from .embed import BatchSizeOption, DeviceOption, LongestEdgeOption, ModelArgument
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

if TYPE_CHECKING:
    from hf_mmembed.thinking import Thinker, TraceStore

__all__ = ["evaluate"]

ResultsArgument = Annotated[Path, typer.Argument(help="A results.json of ours, or a leaderboard file.")]


class _RunByDefault(TyperGroup):
    """``evaluate MODEL ...`` is ``evaluate run MODEL ...``."""

    def parse_args(self, ctx, args):  # type: ignore[no-untyped-def]
        if args and args[0] not in {*self.commands, *ctx.help_option_names}:
            args = ["run", *args]
        return super().parse_args(ctx, args)


evaluate = typer.Typer(
    name="evaluate",
    cls=_RunByDefault,
    help="Measure a model on MMEB, SugarCrepe or retrieval: `evaluate MODEL --benchmark NAME --data DIR`.",
    epilog="Example: hf-mmembed evaluate mmembed-tiny --benchmark mmeb-v1 --data MMEB-eval. "
    "All options: hf-mmembed evaluate run --help",
    no_args_is_help=True,
)


@evaluate.command()
def run(
    model: ModelArgument,
    benchmark: Annotated[
        Literal["mmeb-v1", "mmeb-v2", "sugarcrepe", "sugarcrepe-pp", "retrieval"],
        typer.Option(help="What to measure."),
    ],
    data: Annotated[Path, typer.Option(help="Folder of the benchmark, in its official layout.")],
    subset: Annotated[
        list[str] | None,
        typer.Option(
            help="Data set, meta-task or modality; may be repeated; scores of others stay. Default: all there are."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for results. Default: results/MODEL/BENCHMARK (`--` for `/`); for RUN/model, "
            "results/RUN/BENCHMARK."
        ),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for embeddings, shared by runs. Default: OUT/embeddings.")
    ] = None,
    instruction_in: Annotated[
        Literal["user", "system", "none"],
        typer.Option(help="Where instructions go: as published up to 2025, or since; none for one-word prompts."),
    ] = "user",
    fusion: Annotated[
        Literal["joint", "sum"],
        typer.Option(help="Picture and text of an input together, or apart and added (UniME, stage 1)."),
    ] = "joint",
    tie: Annotated[
        Literal["strict", "legacy"], typer.Option(help="strict: a tie is never right. legacy: as the official code.")
    ] = "strict",
    frames: Annotated[int, typer.Option(min=1, help="Frames per video; recorded with the score.")] = 8,
    think: Annotated[
        str | None,
        typer.Option(
            help="Score with thinking too: a reasoner (directory, Hub id, served name; a unified model is its own), or the "
            "traces of `hf-mmembed think`."
        ),
    ] = None,
    think_when: Annotated[
        Literal["auto", "always"], typer.Option(help="About queries where it pays, or about every query and document.")
    ] = "auto",
    endpoint: EndpointOption = None,
    api_key: ApiKeyOption = None,
    think_revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of the reasoner; or the version that is served.")
    ] = None,
    templates: TemplatesOption = "1",
    max_new_tokens: MaxNewTokensOption = 512,
    temperature: TemperatureOption = 0.0,
    seed: SamplingSeedOption = 0,
    think_longest_edge: Annotated[
        int | None, typer.Option(min=1, help="As --longest-edge, for what the reasoner sees.")
    ] = None,
    batch_size: BatchSizeOption = 32,
    longest_edge: LongestEdgeOption = None,
    device: DeviceOption = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code of a checkpoint that is not ours.")
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Measure a model; run it again to resume. Several processes: accelerate launch -m.

    Example: hf-mmembed evaluate mmembed-tiny --benchmark mmeb-v1 --data MMEB-eval --subset GQA
    """
    from hf_mmembed.evaluation import evaluate as measure
    from hf_mmembed.evaluation.encoder import model_name
    from hf_mmembed.evaluation.run import results_folder
    from hf_mmembed.processes import world

    from .models import embedder

    name = model_name(model)
    folder = out or results_folder(name, benchmark)
    how = HowToThink(
        endpoint, api_key, think_revision, templates, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed,
        longest_edge=think_longest_edge,
    )  # fmt: skip
    try:
        results = measure(
            embedder(model),
            benchmark,
            data,
            subsets=subset,
            out=folder,
            cache=cache,
            instruction_in=instruction_in,
            fusion=fusion,
            tie=tie,
            frames=frames,
            think=_source(think, folder / "traces.sqlite", how, device or world().device),
            think_when=think_when,
            name=name,
            batch_size=batch_size,
            longest_edge=longest_edge,
            device=device,
            trust_remote_code=trust_remote_code,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("finished work is kept: the same command goes on from there") from None
    if world().main:
        typer.echo(str(results))
        typer.echo(f"results: {folder}")
        for name, reason in results.failed.items():
            typer.echo(f"failed: {name}: {reason}", err=True)
    if results.failed:
        raise typer.Exit(1)


def _source(think: str | None, traces: Path, how: HowToThink, device: str | None) -> Thinker | TraceStore | None:
    """The reasoner or the traces that --think names."""
    there = think is not None and how.endpoint is None and Path(think).is_file()
    if (think is None or there) and how != HowToThink():
        given = [field.name for field in fields(how) if getattr(how, field.name) != field.default and field.compare]
        spelled = {"revision": "think-revision", "longest_edge": "think-longest-edge"}
        why = f"{think} holds traces that are written already" if there else "there is no --think with a reasoner"
        hint = ", ".join(f"--{spelled.get(name, name.replace('_', '-'))}" for name in given)
        raise typer.BadParameter(f"it has no effect, since {why}; leave it out", param_hint=hint)
    if think is None:
        return None
    how.check("--think-longest-edge")
    from hf_mmembed.thinking import Thinker, TraceStore

    if there:
        return TraceStore(think)
    return Thinker(reasoner_of(think, how, device=device), TraceStore(traces))


@evaluate.command()
def compare(one: ResultsArgument, other: ResultsArgument) -> None:
    """Print two results beside each other, and what keeps them from being compared.

    Example: hf-mmembed evaluate compare before/results.json after/results.json
    """
    from hf_mmembed.evaluation.compare import compare as table
    from hf_mmembed.evaluation.scoreboard import read_results

    typer.echo(table(read_results(one), read_results(other)))


@evaluate.command()
def aggregate(file: ResultsArgument) -> None:
    """Print the averages of a results file in percent: by modality, by meta-task, overall.

    Example: hf-mmembed evaluate aggregate results/mmembed-tiny/mmeb-v1/results.json
    """
    from hf_mmembed.evaluation.scoreboard import aggregate as means_of
    from hf_mmembed.evaluation.scoreboard import columns, read_results, subsets_of, visdoc_split

    results = read_results(file)
    shown = columns(results)
    for column in shown:
        if len(shown) > 1:
            typer.echo(f"[{column.title}]")
        means = means_of(column.metrics, subsets_of(results), column.measure)
        width = max(map(len, means))
        for name, mean in means.items():
            missing = (
                f"  missing: {', '.join(mean.missing[:5])}{' ...' * (len(mean.missing) > 5)}" if mean.missing else ""
            )
            typer.echo(f"{name:<{width}}  {mean}{missing}")
    if split := visdoc_split(results["metrics"]):
        typer.echo(f"visual documents on {split}")
