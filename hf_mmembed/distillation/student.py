"""The student: an embedder reduced to its language model for as long as it is distilled.

In: what `open_for_training` takes. Out: an `MMEmbedder` with a fresh adapter on its language model, whose vision tower
and projector are gone: they neither travel to the device nor take part in anything. The result of the training is
merged into the checkpoint on the disk, where they still are.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_mmembed.sentence_transformer import MMEmbedder
from hf_mmembed.training.models import open_for_training

from .arguments import DistillationArguments

__all__ = ["open_student", "set_vision_aside"]


class _SetAside(nn.Module):
    """In the place of a part that is not there."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """There is none.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError(
            f"{self.name} was set aside for the distillation, which reads text alone: open the saved result to embed "
            "pictures."
        )


def open_student(
    model: str | os.PathLike[str],
    args: DistillationArguments,
    *,
    prompt: str | Path = "unime",
    dtype: str | torch.dtype = "auto",
    load_in_4bit: bool = False,
) -> MMEmbedder:
    """An embedder on the CPU, only whose language model is there, with an adapter to train.

    Args:
        model: A multimodal LLM or a converted embedder.
        args: Say of what kind the adapter is.
        prompt: What to convert a multimodal LLM with. Defaults to ``"unime"``.
        dtype: Of the frozen weights. Defaults to ``"auto"``, that of the checkpoint.
        load_in_4bit: Keep the frozen weights in NF4 (QLoRA), on the device from the start; the vision tower too is there
            until it is set aside. Needs bitsandbytes.

    Raises:
        ImportError: bitsandbytes is missing.
        OSError: `model` cannot be read.
        ValueError: `model` is no multimodal LLM.
    """
    options: dict[str, Any] = {"device": "cpu"}
    if load_in_4bit:
        options = {
            "device": None,
            "model_kwargs": {"quantization_config": _four_bits(), "device_map": {"": args.device}},
        }
    embedder = open_for_training(model, args, prompt=prompt, dtype=dtype, **options)
    set_vision_aside(embedder)
    return embedder


def set_vision_aside(embedder: MMEmbedder) -> list[str]:
    """Takes everything but the language model out of the backbone.

    Args:
        embedder: Changed in place.

    Returns:
        Names of the parts that are gone.
    """
    backbone = embedder.transformers_model.backbone
    decoder = backbone.get_decoder()
    gone = [name for name, part in backbone.named_children() if all(inner is not decoder for inner in part.modules())]
    for name in gone:
        setattr(backbone, name, _SetAside(name))
    return gone


def _four_bits() -> Any:
    if find_spec("bitsandbytes") is None:
        raise ImportError("load_in_4bit needs bitsandbytes: pip install bitsandbytes, or leave it out.")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=True,
    )
