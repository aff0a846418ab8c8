"""Pictures and texts of one input embedded apart and added, as by UniME after its first stage.

In: an `Encoder`. Out: an `Encoder` that shows it one modality at a time. Its language model has learned from texts alone,
each prompt asks for one modality, and the sum stands for both (arXiv 2504.17432, section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hf_mmembed.data.rows import hash_parts

from .encoder import Encoder
from .items import Item

__all__ = ["Fusion", "SumOfModalities"]

Fusion = Literal["joint", "sum"]


class SumOfModalities:
    """Element-wise sum of the unit vectors of an input's pictures and of its text.

    Args:
        encoder: Embeds the parts. An input of one modality is embedded as it is.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.name = encoder.name
        self.key = hash_parts(encoder.key, "sum of modalities")
        self.metadata: dict[str, Any] = encoder.metadata

    def __call__(self, items: Sequence[Item]) -> NDArray[np.float32]:
        """Vectors of the items, ``(items, dim)``; see `Encoder`."""
        parts: list[Item] = []
        places: list[int] = []
        for place, item in enumerate(items):
            own = [item]
            if item.images and item.text:
                own = [replace(item, text=None, trace=None), replace(item, images=())]
            parts += own
            places += [place] * len(own)
        vectors = self.encoder(parts)
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        sums = np.zeros((len(items), vectors.shape[1]), np.float32)
        np.add.at(sums, places, vectors)
        return sums
