"""The lines above a speed table: on what, with what, and how to read its ratios."""

from __future__ import annotations

import platform

import torch
import transformers

__all__ = ["print_heading"]


def print_heading(threads: int, seed: int) -> None:
    """Also lets torch use that many threads."""
    torch.set_num_threads(threads)
    print(
        f"{platform.processor() or platform.machine()}, {threads} threads, python {platform.python_version()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}, float32, seed {seed}"
    )
    print("ratios say how many times as long the contender took as ours: above 1, ours is faster")
