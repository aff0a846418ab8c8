"""Does a published model give the numbers it was published with?

In: a repository id or a directory that has golden vectors. Out: for each golden input whether the model reads the same
prompt and returns the same embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download

from hf_mmembed.identity import local_checkpoint
from hf_mmembed.sentence_transformer import MMEmbedder

from .golden import FOLDER, embed_golden, read_golden, render

__all__ = ["LEAST_COSINE", "TOLERANCE", "Comparison", "Verification", "verify"]

# Of one coordinate of a unit vector. float32 differs in the last digits between processors and thread counts; half
# precision, and a model read in another dtype than its vectors were made in, by more.
TOLERANCE = {"float32": 1e-4, "half": 3e-2}
# In thousands of dimensions every coordinate is about as small as the tolerance, so the direction is compared too. Half
# precision alone leaves the small models of the tests above 0.9999; deeper ones may lose more.
LEAST_COSINE = {"float32": 0.99999, "half": 0.99}


@dataclass(frozen=True)
class Comparison:
    """One golden input.

    Attributes:
        name: What it is, in a few words.
        same_prompt: Whether the model reads the same string.
        difference: Largest difference of a coordinate.
        cosine: Between the stored embedding and the one computed now.
    """

    name: str
    same_prompt: bool
    difference: float
    cosine: float


@dataclass(frozen=True)
class Verification:
    """All golden inputs of a model.

    Attributes:
        model: The id or directory that was verified.
        revision: Its commit on the Hub; None for a directory.
        tolerance: The largest difference of a coordinate that counts as the same.
        least_cosine: The smallest cosine that counts as the same.
        comparisons: One per golden input.
    """

    model: str
    revision: str | None
    tolerance: float
    least_cosine: float
    comparisons: tuple[Comparison, ...]

    @property
    def failures(self) -> list[Comparison]:
        """The inputs that are read or embedded differently."""
        return [
            c
            for c in self.comparisons
            if not (c.same_prompt and c.difference <= self.tolerance and c.cosine >= self.least_cosine)
        ]


def verify(model: str | Path, *, revision: str | None = None, device: str | None = None) -> Verification:
    """Embed the golden inputs of `model` and compare them with its golden vectors.

    Args:
        model: A directory, or the id of a repository on the Hub, which is downloaded.
        revision: Branch, tag or commit on the Hub. Defaults to its main branch.
        device: Where to run. Defaults to the best there is.

    Returns:
        What was found; `failures` is empty when all is well.

    Raises:
        ValueError: There is no such directory, or the model has no golden vectors.
    """
    directory, commit = local_checkpoint(model, revision)
    if commit is not None:
        snapshot_download(str(model), revision=commit, allow_patterns=[f"{FOLDER}/*"])
    described, stored, pictures = read_golden(directory)
    # `device=None` lets sentence-transformers choose.
    embedder = MMEmbedder(str(directory), device=device)
    inputs: list[dict[str, Any]] = described["inputs"]
    computed = embed_golden(embedder, inputs, pictures)
    if computed.shape != stored.shape:
        raise ValueError(
            f"{model} returns embeddings of shape {computed.shape[1:]}, its golden ones {stored.shape[1:]}."
        )
    kind = "float32" if described["dtype"] == "float32" and embedder.dtype == torch.float32 else "half"
    comparisons = tuple(
        Comparison(
            name=_describe(item),
            same_prompt=render(embedder, item) == item["rendered"],
            difference=float(np.abs(now - before).max()),
            cosine=float(now @ before / (np.linalg.norm(now) * np.linalg.norm(before))),
        )
        for item, now, before in zip(inputs, computed, stored, strict=True)
    )
    return Verification(str(model), commit, TOLERANCE[kind], LEAST_COSINE[kind], comparisons)


def _describe(item: dict[str, Any]) -> str:
    parts = [item["task"], *(name for name in ("image", "instruction") if name in item)]
    if "text" in item:
        text = item["text"]
        parts.append(repr(text if len(text) <= 28 else text[:27] + "…"))
    return ", ".join(parts)
