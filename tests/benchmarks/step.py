"""Speed of a fine-tuning step: `python -m tests.benchmarks.step`.

In: the shipped tiny model and a random Qwen2-VL of about 60 million parameters. Out: pairs/s of forward and backward of
a contrastive batch in chunks, of: our loss on our model; the same with all products by torch; and sentence-transformers'
own cached loss on the same backbone as plain files. Each tokenizes and reads its pictures within the step. All weights
are trained. The contenders take turns, and the fastest repetition of each counts.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal

import torch
import typer
from datasets import Dataset
from PIL import Image
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

from hf_mmembed import MMEmbedder, convert, load_prompt, tiny
from hf_mmembed.data.captions import caption
from hf_mmembed.data.pairs import document_of, query_of, read_pairs
from hf_mmembed.data.scenes import draw, random_scene
from hf_mmembed.mining import content_ids
from hf_mmembed.training.collator import ROW, PairCollator
from hf_mmembed.training.losses import MaskedInfoNCELoss

from .contenders import plain_model
from .heading import print_heading
from .models import write_random_qwen2_vl

__all__ = ["main"]

TEMPERATURE = 0.02
# Of the losses: rounding, divided by the temperature.
TOLERANCE = 1e-2

Step = Callable[[], float]


def pairs_of(kind: str, number: int, largest_side: int, seed: int) -> Dataset:
    """`number` pairs of distinct queries and documents: short texts, or a short text and a picture each.

    Args:
        kind: ``"texts"`` or ``"pictures"``.
        number: Of pairs.
        largest_side: Longest picture side in pixels; the shortest is half of it.
        seed: Seed of everything drawn.
    """
    rng = Random(seed)
    rows: dict[str, list[Any]] = {"query": [], "document": []}
    for index in range(number):
        scene = random_scene(rng, None)
        rows["query"].append(f"{index}: {caption(scene, rng)}")
        sides = [rng.randint(largest_side // 2, largest_side) for _ in range(2)]
        picture = draw(scene, rng, pixels=largest_side).resize(sides)
        rows["document"].append(f"{index}: {caption(scene, rng)}" if kind == "texts" else picture)
    column = "pos_text" if kind == "texts" else "pos_image"
    return read_pairs(Dataset.from_dict(rows), columns={"query_text": "query", column: "document"})


def ours(model: MMEmbedder, pairs: Dataset, chunk: int) -> Step:
    """`MaskedInfoNCELoss`."""
    collate = PairCollator(content_ids(pairs))
    loss = MaskedInfoNCELoss(model, temperature=TEMPERATURE, mini_batch_size=chunk, mini_batch_num_tokens=10**9)

    def step() -> float:
        value = loss(*collate([{**row, ROW: index} for index, row in enumerate(pairs)]).values())
        value.backward()
        return value.item()

    return step


def by_torch(step: Step) -> Step:
    """The same step without oneDNN, which also is what other processors do."""

    def slower() -> float:
        with torch.backends.mkldnn.flags(enabled=False):
            return step()

    return slower


def sentence_transformers(model: SentenceTransformer, pairs: Dataset, chunk: int) -> Step:
    """`CachedMultipleNegativesRankingLoss`."""
    loss = CachedMultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE, mini_batch_size=chunk)
    represent = load_prompt("saha").represent_text

    def step() -> float:
        queries = [{"text": query_of(row)["text"] + represent} for row in pairs]
        features = [model.preprocess(side) for side in (queries, [_opened(document_of(row)) for row in pairs])]
        value = loss(features, None)
        value.backward()
        return value.item()

    return step


def _opened(item: dict[str, Any]) -> dict[str, Any]:
    """The input with its picture, if it has one, decoded from the bytes that the pairs hold."""
    return {name: Image.open(BytesIO(v)) if name == "image" else v for name, v in item.items() if v}


def measure(contenders: dict[str, Step], models: Sequence[torch.nn.Module], repeats: int) -> dict[str, float]:
    """Fastest wall seconds of each contender, after one untimed round that compares their losses."""
    best = dict.fromkeys(contenders, float("inf"))
    for round_ in range(repeats + 1):
        losses = []
        for name, step in contenders.items():
            for model in models:
                model.zero_grad(set_to_none=True)
            started = time.perf_counter()
            losses.append(step())
            if round_:
                best[name] = min(best[name], time.perf_counter() - started)
        if max(losses) - min(losses) > TOLERANCE:
            raise ValueError(f"the contenders compute something else: losses are {losses}")
    return best


def run(title: str, base: Path, *, number: int, chunk: int, largest_side: int, repeats: int, seed: int) -> None:
    """Measure one model on both kinds of pairs and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        own = MMEmbedder(str(convert(base, Path(folder, "converted"), dtype=torch.float32)), device="cpu").train()
        plain = plain_model(base, Path(folder, "plain")).train()
        print(f"\n{title}: {number} pairs in chunks of {chunk}, best of {repeats}")
        print(f"{'pairs':<10} {'contender':<24} {'pairs/s':>9} {'ratio':>7}")
        for kind in ("texts", "pictures"):
            pairs = pairs_of(kind, number, largest_side, seed)
            step = ours(own, pairs, chunk)
            contenders = {
                "ours": step,
                "ours, products by torch": by_torch(step),
                "sentence-transformers": sentence_transformers(plain, pairs, chunk),
            }
            best = measure(contenders, (own, plain), repeats)
            for name, seconds in best.items():
                print(f"{kind:<10} {name:<24} {number / seconds:>9.1f} {seconds / best['ours']:>6.2f}x", flush=True)


def main(
    model: Annotated[Literal["tiny", "60m", "both"], typer.Option(help="Which model.")] = "both",
    repeats: Annotated[int, typer.Option(help="Timed rounds; the fastest counts.")] = 3,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 2,
    seed: Annotated[int, typer.Option(help="Seed of the inputs and the random weights.")] = 0,
) -> None:
    """Print pairs/s and the ratios to ours."""
    print_heading(threads, seed)
    if model in ("tiny", "both"):
        run("mmembed-tiny", tiny.generative_path(), number=64, chunk=16, largest_side=256, repeats=repeats, seed=seed)
    if model in ("60m", "both"):
        with tempfile.TemporaryDirectory() as folder:
            written = write_random_qwen2_vl(Path(folder), seed)
            run("random Qwen2-VL, 60M", written, number=16, chunk=8, largest_side=336, repeats=repeats, seed=seed)


if __name__ == "__main__":
    typer.run(main)
