"""What a MODEL argument of a command may be: a directory, a Hub id, or the name of the model that ships.

In: the word on the command line. Out: what `MMEmbedder` and `convert` take.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["SHIPPED", "embedder", "generative"]

SHIPPED = "mmembed-tiny"


def embedder(model: str) -> str:
    """The embedder that MODEL means; a directory of the shipped model's name wins over the shipped model.

    Example:
        >>> embedder("Qwen/Qwen2-VL-2B-Instruct")
        'Qwen/Qwen2-VL-2B-Instruct'
    """
    if model != SHIPPED or Path(model).exists():
        return model
    from hf_mmembed import tiny

    return str(tiny.checkpoint_path())


def generative(base: str) -> str:
    """The generative checkpoint that BASE means: the parent of the shipped embedder for its name.

    Example:
        >>> generative("Qwen/Qwen2-VL-2B-Instruct")
        'Qwen/Qwen2-VL-2B-Instruct'
    """
    if base != SHIPPED or Path(base).exists():
        return base
    from hf_mmembed import tiny

    return str(tiny.generative_path())
