"""Encoding speed: ours, plain sentence-transformers and the loop of research code, in one run (``make bench``).

In: the shipped tiny model and a random Qwen2-VL of about 60 million parameters. Out: a table of items/s and tokens/s
per workload, by the clock and per second of CPU time, with the ratios, the arithmetic each contender does and the share
of torch's rate of matrix products at which it does it, which ours exceeds where it leaves products to oneDNN. Tokens
are those of the whole rows, also where a contender computes what they have in common once. Ours prepares batches in
threads of its own beside `--threads`, which only the ratio by the clock counts in its favour.
The contenders take turns, so that whatever else the machine does hits all of them, and the fastest repetition of each
counts; CPU time suffers least from company.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch.utils.flop_counter import FlopCounterMode, mm_flop, sdpa_flop_count

from hf_mmembed import tiny
from hf_mmembed.data.captions import caption
from hf_mmembed.data.scenes import draw, random_scene
from hf_mmembed.model.product_mmembed import onednn_is_faster, product

from .contenders import Encode, batched_loop, count_tokens, ours, plain_sentence_transformers, research_loop
from .heading import print_heading
from .models import write_random_qwen2_vl

__all__ = ["main", "workloads"]

# Rounding: up to 2.6e-5 was seen in rows of several hundred tokens, whose common prefix we compute apart.
TOLERANCE = 5e-5


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _linear(states: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    return mm_flop(states, weight[::-1])


# Of which torch's counter knows nothing; masked or causal, attention is counted whole.
ON_A_CPU = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
if onednn_is_faster():
    ON_A_CPU[torch.ops.mkldnn._linear_pointwise] = _linear


def workloads(items: int, largest_side: int, seed: int, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Distinct inputs of every kind: short and long texts, pictures of mixed sizes, in memory and in files (JPEG, two to
    four times as large), a mixture, and two small calls.

    Args:
        items: Inputs per workload, but for the small calls; half as many files.
        largest_side: Longest picture side in pixels; the shortest is a quarter of it.
        seed: Seed of everything drawn.
        folder: For the files.
    """
    rng = Random(seed)

    def short(number: int) -> str:
        return f"{number}: {caption(random_scene(rng, None), rng)}"

    def long(number: int) -> str:
        # Document lengths are skewed: most are short, some are many times longer.
        sentences = min(40, max(4, round(rng.lognormvariate(2.2, 0.7))))
        return ". ".join(short(number) for _ in range(sentences))

    def picture() -> Any:
        sides = [rng.randint(largest_side // 4, largest_side) for _ in range(2)]
        return draw(random_scene(rng, None), rng, pixels=largest_side).resize(sides)

    def file(number: int) -> str:
        path = folder / f"{number}.jpg"
        sides = [rng.randint(2 * largest_side, 4 * largest_side) for _ in range(2)]
        draw(random_scene(rng, None), rng, pixels=largest_side).resize(sides).save(path)
        return str(path)

    kinds = [
        lambda number: {"text": short(number)},
        lambda number: {"text": long(number)},
        lambda number: {"image": picture()},
        lambda number: {"image": picture(), "text": short(number)},
    ]
    return {
        "short text": [kinds[0](n) for n in range(items)],
        "long text": [kinds[1](n) for n in range(items)],
        "images": [kinds[2](n) for n in range(items)],
        "mixed": [rng.choice(kinds)(n) for n in range(items)],
        "16 texts": [kinds[0](n) for n in range(16)],
        "one image": [kinds[2](0)],
        "files": [{"image": file(n)} for n in range(items // 2)],
    }


def measure(
    contenders: dict[str, Encode], inputs: list[dict[str, Any]], repeats: int
) -> dict[str, tuple[float, float]]:
    """Fastest (wall seconds, CPU seconds) of each contender, after one untimed round that compares their vectors."""
    reference = None
    for name, encode in contenders.items():
        vectors = encode(inputs)
        reference = vectors if reference is None else reference
        difference = float(np.abs(vectors - reference).max())
        if difference > TOLERANCE:
            raise ValueError(f"{name} embeds something else: vectors differ by {difference:.1e} from the first's")
    best = dict.fromkeys(contenders, (float("inf"), float("inf")))
    for _ in range(repeats):
        for name, encode in contenders.items():
            wall, cpu = time.perf_counter(), time.process_time()
            encode(inputs)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            best[name] = min(best[name][0], wall), min(best[name][1], cpu)
    return best


def arithmetic(contenders: dict[str, Encode], inputs: list[dict[str, Any]]) -> dict[str, int]:
    """Floating-point operations of each contender's matrix products, convolutions and attention."""
    counted = {}
    for name, encode in contenders.items():
        with FlopCounterMode(display=False, custom_mapping=ON_A_CPU) as counter:
            encode(inputs)
        counted[name] = counter.get_total_flops()
    return counted


def product_rate(threads: int, multiply: Callable[..., torch.Tensor], repeats: int = 10) -> float:
    """Operations per second and thread of a large float32 matrix product."""
    left, right = torch.randn(1024, 1024), torch.randn(1024, 1024)
    best = float("inf")
    with torch.inference_mode():
        for _ in range(repeats):
            started = time.perf_counter()
            multiply(left, right)
            best = min(best, time.perf_counter() - started)
    return 2 * 1024**3 / best / threads


def run(
    title: str, base: Path, *, items: int, largest_side: int, batch_size: int, repeats: int, seed: int, rate: float
) -> None:
    """Measure one model on every workload and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        contenders = {
            "ours": ours(base, Path(folder), batch_size),
            "sentence-transformers": plain_sentence_transformers(base, Path(folder), batch_size),
            "research loop": research_loop(base, batch_size),
            "batched loop": batched_loop(base, batch_size),
        }
        print(f"\n{title}: {items} distinct inputs per workload, batch size {batch_size}, best of {repeats}")
        columns = (
            "items/s",
            "tokens/s",
            "ratio",
            "items/CPU s",
            "CPU ratio",
            "GFLOP/item",
            "work ratio",
            "of the rate",
        )
        print(f"{'workload':<12} {'contender':<22} " + " ".join(f"{column:>11}" for column in columns))
        for workload, inputs in workloads(items, largest_side, seed, Path(folder)).items():
            tokens = count_tokens(base, inputs)
            work = arithmetic(contenders, inputs)
            best = measure(contenders, inputs, repeats)
            for name, (wall, cpu) in best.items():
                by_clock = f"{len(inputs) / wall:>11.1f} {tokens / wall:>11.0f} {wall / best['ours'][0]:>10.2f}x"
                by_cpu = f"{len(inputs) / cpu:>11.1f} {cpu / best['ours'][1]:>10.2f}x"
                products = f"{work[name] / len(inputs) / 1e9:>11.3f} {work[name] / work['ours']:>10.2f}x"
                products += f" {work[name] / cpu / rate:>11.0%}"
                print(f"{workload:<12} {name:<22} {by_clock} {by_cpu} {products}", flush=True)


def main(
    base: Annotated[Path | None, typer.Option(help="Generative checkpoint to use for the tiny model.")] = None,
    model: Annotated[Literal["tiny", "60m", "both"], typer.Option(help="Which model.")] = "both",
    items: Annotated[int, typer.Option(help="Inputs per workload on the tiny model; a quarter of it on 60m.")] = 128,
    batch_size: Annotated[int, typer.Option(help="Inputs per batch on the tiny model; a quarter of it on 60m.")] = 32,
    repeats: Annotated[int, typer.Option(help="Timed rounds; the fastest counts.")] = 3,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 2,
    seed: Annotated[int, typer.Option(help="Seed of the inputs and the random weights.")] = 0,
) -> None:
    """Print items/s, tokens/s and the ratios to ours."""
    print_heading(threads, seed)
    rate, own = (product_rate(threads, multiply) for multiply in (F.linear, product))
    print(f"matrix products: {rate / 1e9:.0f} GFLOP/s per thread by torch, {own / 1e9:.0f} by ours")
    if model in ("tiny", "both"):
        path = base or tiny.generative_path()
        whole = {"items": items, "batch_size": batch_size}
        run("mmembed-tiny", path, largest_side=256, repeats=repeats, seed=seed, rate=rate, **whole)
    if model in ("60m", "both"):
        with tempfile.TemporaryDirectory() as folder:
            written = write_random_qwen2_vl(Path(folder), seed)
            quarter = {"items": max(1, items // 4), "batch_size": max(1, batch_size // 4)}
            run("random Qwen2-VL, 60M", written, largest_side=336, repeats=repeats, seed=seed, rate=rate, **quarter)


if __name__ == "__main__":
    typer.run(main)
