"""``hf-mmembed bench ...``: experiments that say whether a method is worth its trouble."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer

from .config import ConfigOption
from .models import SHIPPED, embedder, generative, teacher

__all__ = ["bench"]

bench = typer.Typer(
    name="bench", help="Experiments: does SaHa help? Does a teacher? Does thinking?", no_args_is_help=True
)

_ARMS = (
    "zero-shot",
    "random",
    "random-no-prompt",
    "same-subset",
    "top-k",
    "top-k-told",
    "margin",
    "mutual",
    "saha-paper",
    "saha",
    "unime-stage1",
    "unime-stage2",
    "unime-both",
    "saha+unime-loss",
    "unime-v2",
    "unime-v2-told",
)


@bench.command()
def ablation(
    model: Annotated[str, typer.Option(help="Embedder of the drawn world.")] = SHIPPED,
    out: Annotated[Path, typer.Option(help="Directory of the runs; what is done there is not done again.")] = Path(
        "runs/ablation"
    ),
    strategies: Annotated[
        str, typer.Option(help="What to compare, separated by commas; saha-mined-anew mines again every epoch.")
    ] = ",".join(_ARMS),
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each, seeded 0, 1, ...")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of a run.")] = 300,
    families: Annotated[int, typer.Option(min=4, help="Groups of near-duplicate scenes to train on.")] = 300,
    pictures: Annotated[
        int, typer.Option(min=2, help="Of every scene: the more, the more false negatives there are to mine.")
    ] = 2,
    candidates: Annotated[int, typer.Option(min=10, help="Pictures and captions to retrieve from.")] = 500,
    config: ConfigOption = None,
) -> None:
    """Train with every way of making batches, equal in all else, and compare on unseen scenes.

    Interrupt it whenever you like: the same command goes on with the first run that is not finished.

    Example: hf-mmembed bench ablation --seeds 1 --steps 20 --families 20 --candidates 100
    """
    from hf_mmembed.bench.ablation import ARMS, TEACHER, Plan, run_ablation
    from hf_mmembed.bench.ablation_report import markdown, plot
    from hf_mmembed.files import write_atomically

    names = _chosen(strategies, ARMS, "--strategies")
    plan = Plan(embedder(model), steps=steps, families=families, pictures=pictures, candidates=candidates)
    results = run_ablation(
        out, plan, arms=[ARMS[name] for name in names], seeds=range(seeds), teacher=teacher(TEACHER)
    )
    table = markdown(results)
    write_atomically(out / "ablation.md", table.encode("utf-8"))
    typer.echo(table)
    typer.echo(f"table: {out / 'ablation.md'}    plot: {plot(results, out / 'ablation.png')}")


@bench.command()
def distill(
    model: Annotated[str, typer.Option(help="Embedder of the drawn world.")] = SHIPPED,
    teacher_: Annotated[
        str, typer.Option("--teacher", help="Text embedder: a directory or a Hub id.")
    ] = "sentence-transformers/all-MiniLM-L6-v2",
    out: Annotated[Path, typer.Option(help="Directory of the runs; what is done there is not done again.")] = Path(
        "runs/distill"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="Runs, seeded 0, 1, ...")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of a run.")] = 60,
    candidates: Annotated[int, typer.Option(min=10, help="Captions to compare and pictures to retrieve.")] = 300,
    config: ConfigOption = None,
) -> None:
    """Distil a text teacher (UniME, stage 1) and compare before and after: agreement with it, and retrieval.

    Example: hf-mmembed bench distill --seeds 1 --steps 5 --candidates 20
    """
    from hf_mmembed.bench.distillation import DistillationPlan, markdown, run_distillation
    from hf_mmembed.files import write_atomically

    plan = DistillationPlan(embedder(model), teacher(teacher_), steps=steps, candidates=candidates)
    table = markdown(run_distillation(out, plan, range(seeds)), plan)
    write_atomically(out / "distill.md", table.encode("utf-8"))
    typer.echo(table)


@bench.command()
def thinking(
    model: Annotated[str, typer.Option(help="Embedder of the drawn world.")] = SHIPPED,
    reasoner: Annotated[str, typer.Option(help="The generative model it was made of.")] = SHIPPED,
    out: Annotated[Path, typer.Option(help="Directory of the runs; what is done there is not done again.")] = Path(
        "runs/thinking"
    ),
    arms: Annotated[
        str,
        typer.Option(
            help="What to train, separated by commas: embedders without traces (direct), on the scene graph's (oracle, "
            "TTE_t and TTE_s), on the reasoner's own (shipped), and heads (unified, TTE_u)."
        ),
    ] = "direct,oracle,shipped,unified",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each, seeded 0, 1, ...")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of an embedder and of the heads.")] = 80,
    reasoner_steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of the reasoner.")] = 240,
    blocks: Annotated[int, typer.Option(min=4, help="Of 16 riddles each, to train on.")] = 200,
    queries: Annotated[int, typer.Option(min=10, help="Of each task in the test.")] = 150,
    trace_dropout: Annotated[
        float, typer.Option(min=0.0, max=0.99, help="Share of the traces that an embedder is not shown.")
    ] = 0.1,
    config: ConfigOption = None,
) -> None:
    """Think before embedding, in every variant, and compare what it brings and what it costs.

    Example: hf-mmembed bench thinking --seeds 1 --steps 5 --reasoner-steps 5 --blocks 4 --queries 10
    """
    from hf_mmembed.bench.thinking import ARMS, ThinkingPlan, run_thinking
    from hf_mmembed.bench.thinking_report import markdown, plot
    from hf_mmembed.files import write_atomically

    chosen = _chosen(arms, ARMS, "--arms")
    plan = ThinkingPlan(
        embedder(model),
        generative(reasoner),
        steps=steps,
        reasoner_steps=reasoner_steps,
        blocks=blocks,
        queries=queries,
        trace_dropout=trace_dropout,
    )
    results = run_thinking(out, plan, seeds=range(seeds), arms=chosen)
    table = markdown(results)
    write_atomically(out / "thinking.md", table.encode("utf-8"))
    typer.echo(table)
    typer.echo(f"table: {out / 'thinking.md'}    plot: {plot(results, out / 'thinking.png')}")


def _chosen(given: str, known: Collection[str], option: str) -> list[str]:
    names = [name.strip() for name in given.split(",") if name.strip()]
    if not names or (unknown := [name for name in names if name not in known]):
        raise typer.BadParameter(
            f"{', '.join(unknown) if names else 'nothing'} to compare; there are {', '.join(known)}", param_hint=option
        )
    return names
