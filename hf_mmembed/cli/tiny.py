"""`hf-mmembed tiny ...`: train, measure and draw with the model that ships."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .config import ConfigOption
from .embed import DeviceOption, ModelArgument
from .models import SHIPPED

__all__ = ["tiny"]

tiny = typer.Typer(
    name="tiny", help="The shipped model and its drawn world: train, evaluate, draw.", no_args_is_help=True
)


@tiny.command()
def train(
    out: Annotated[Path, typer.Argument(help="Where to keep the state, the log and the finished model.")],
    seed: Annotated[int, typer.Option(help="Seed of weights, tokenizer and data.")] = 0,
    threads: Annotated[int | None, typer.Option(help="CPU threads. Defaults to the number of cores.", min=1)] = None,
    device: DeviceOption = None,
    config: ConfigOption = None,
) -> None:
    """Train the model from scratch, or resume a killed run.

    Example: hf-mmembed tiny train runs/tiny
    """
    from hf_mmembed.tiny.training import Recipe, train

    typer.echo(f"the model is in {train(out, Recipe(seed=seed), threads=threads, device=device)}")


@tiny.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Generative checkpoint: a directory, or mmembed-tiny.")] = SHIPPED,
    out: Annotated[Path | None, typer.Option(help="Also write all scores to this JSON file.")] = None,
    seeds: Annotated[int, typer.Option(help="Number of test sets, seeded 0, 1, ...", min=1)] = 3,
    candidates: Annotated[int, typer.Option(help="Pictures and captions to retrieve from.", min=10)] = 1000,
    config: ConfigOption = None,
) -> None:
    """Print what each prompt makes of the model without training, and how well it answers questions.

    Example: hf-mmembed tiny evaluate --seeds 1
    """
    from hf_mmembed.tiny.evaluate import evaluate, markdown, write

    from .models import generative

    results = evaluate(Path(generative(model)), seeds=range(seeds), candidates=candidates)
    if out is not None:
        write(results, out)
    typer.echo(markdown(results))


@tiny.command()
def draw(
    out: Annotated[Path, typer.Argument(help="Folder for the pictures and metadata.jsonl; made if missing.")],
    number: Annotated[int, typer.Option(help="How many pictures.", min=1)] = 300,
    split: Annotated[str, typer.Option(help="train, mine, val or test.")] = "test",
    seed: Annotated[int, typer.Option(help="Seed of the drawings.")] = 0,
    pixels: Annotated[int, typer.Option(help="Side of a picture in pixels.", min=16)] = 192,
    config: ConfigOption = None,
) -> None:
    """Draw pictures of the tiny model's world, with captions, as an image folder that `datasets` can load.

    Example: hf-mmembed tiny draw pictures --number 100 --split train
    """
    from hf_mmembed.data.drawings import draw_folder

    typer.echo(f"{draw_folder(out, number, split=split, seed=seed, pixels=pixels)} pictures are in {out}")


@tiny.command()
def card() -> None:
    """Render the cards of the shipped models from their recorded evaluations, their weights and their training runs.

    Example: hf-mmembed tiny card
    """
    from hf_mmembed.tiny.card import write_tiny_cards

    for path in write_tiny_cards():
        typer.echo(f"wrote {path}")


@tiny.command()
def benchmark(
    out: Annotated[Path, typer.Argument(help="Folder for mmeb-v1, sugarcrepe and sugarcrepe-pp; made if missing.")],
    rows: Annotated[int, typer.Option(help="Queries of each data set.", min=1)] = 500,
    seed: Annotated[int, typer.Option(help="Seed of the drawings and wordings.")] = 0,
    config: ConfigOption = None,
) -> None:
    """Draw a benchmark in the layouts of MMEB-V1, SugarCrepe and SugarCrepe++, for `hf-mmembed evaluate`.

    Example: hf-mmembed tiny benchmark drawn && hf-mmembed evaluate mmembed-tiny --benchmark mmeb-v1 --data drawn/mmeb-v1
    """
    from hf_mmembed.tiny.benchmark import draw_benchmark

    draw_benchmark(out, rows=rows, seed=seed)
    typer.echo(f"the benchmark is in {out}: mmeb-v1, sugarcrepe, sugarcrepe-pp")


@tiny.command()
def score(
    model: ModelArgument,
    drawn: Annotated[Path, typer.Argument(help="Folder that `hf-mmembed tiny benchmark` drew.")],
    out: Annotated[Path, typer.Argument(help="JSON file for the scores, as model cards hold them.")],
    device: DeviceOption = None,
    config: ConfigOption = None,
) -> None:
    """Measure a model on all three parts of the drawn benchmark.

    Example: hf-mmembed tiny benchmark drawn && hf-mmembed tiny score mmembed-tiny drawn scores.json
    """
    from hf_mmembed.evaluation.encoder import model_name
    from hf_mmembed.tiny.score import score_drawn, tables

    from .models import embedder

    name = model_name(model)
    typer.echo(tables({name: score_drawn(embedder(model), drawn, out, name=name, device=device)}))
