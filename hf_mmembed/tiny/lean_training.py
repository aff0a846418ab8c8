"""Makes a training of `mmembed-tiny` several times cheaper without changing what it computes.

In: an embedder to train with its vision tower frozen. Out: the same loss and gradients, for less: every picture goes
through the tower once in a process, the system prompt through the language model once in a batch, and the batch, which
is small enough to be kept whole, through the model once instead of the two times that GradCache needs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from hf_mmembed.distillation.loss import SimilarityDistillationLoss
from hf_mmembed.sentence_transformer import MMEmbedder
from hf_mmembed.training.arguments import SaHaTrainingArguments
from hf_mmembed.training.choices import make_loss
from hf_mmembed.training.chunks import ChunkedLoss, Facts, Side
from hf_mmembed.training.hard_negatives import InBatchHardNegativeLoss
from hf_mmembed.training.losses import MaskedInfoNCELoss
from hf_mmembed.training.soft_labels import SoftLabelLoss

__all__ = [
    "OnePassDistillationLoss",
    "OnePassHardNegativeLoss",
    "OnePassInfoNCELoss",
    "OnePassSoftLabelLoss",
    "lean_loss",
    "make_lean_loss",
    "remember_pictures",
    "remember_pictures_of",
]


class _OnePass(ChunkedLoss):
    """Keeps the activations of the whole batch."""

    def forward(self, sides: Sequence[Side], facts: Facts) -> Tensor:
        """As `ChunkedLoss.forward`."""
        self._sides = [self._planned(side) for side in sides]
        embedded = [
            [self._embed(side, chunk) for chunk in side["chunks"]]  # by length, so that little is padding
            for side in self._sides
        ]
        return self.calculate_loss(embedded, facts)

    def _embed(self, side: dict[str, Any], chunk: list[int]) -> Tensor:
        features = self._prepare(side["conversations"], {"task": side["side"].task}, chunk)
        return self.model({**features, **self._shortcuts()})["sentence_embedding"]


class OnePassInfoNCELoss(_OnePass, MaskedInfoNCELoss):
    """`MaskedInfoNCELoss` in one pass."""


class OnePassHardNegativeLoss(_OnePass, InBatchHardNegativeLoss):
    """`InBatchHardNegativeLoss` in one pass."""


class OnePassSoftLabelLoss(_OnePass, SoftLabelLoss):
    """`SoftLabelLoss` in one pass."""


class OnePassDistillationLoss(_OnePass, SimilarityDistillationLoss):
    """`SimilarityDistillationLoss` in one pass."""


_IN_ONE_PASS: dict[type[ChunkedLoss], type[ChunkedLoss]] = {
    MaskedInfoNCELoss: OnePassInfoNCELoss,
    InBatchHardNegativeLoss: OnePassHardNegativeLoss,
    SoftLabelLoss: OnePassSoftLabelLoss,
}


def make_lean_loss(model: MMEmbedder, args: SaHaTrainingArguments, pairs: Dataset) -> ChunkedLoss:
    """What `hf_mmembed.training.choices.make_loss` makes, in one pass."""
    loss = make_loss(model, args, pairs)
    loss.__class__ = _IN_ONE_PASS[type(loss)]  # which has no state of its own
    return loss


def lean_loss(
    temperature: float, *, memory: dict[bytes, Tensor] | None = None
) -> Callable[[MMEmbedder], MaskedInfoNCELoss]:
    """For the ``loss`` of `SaHaTrainer`: InfoNCE of this temperature by all the means of this file."""

    def make(embedder: MMEmbedder) -> MaskedInfoNCELoss:
        remember_pictures(embedder, {} if memory is None else memory)
        return OnePassInfoNCELoss(embedder, temperature=temperature, mini_batch_size=64)

    return make


def remember_pictures(embedder: MMEmbedder, memory: dict[bytes, Tensor]) -> None:
    """Lets the vision tower read each picture once.

    Args:
        embedder: Of the Qwen2-VL family, on a CPU, its tower frozen for as long as it is used.
        memory: Visual tokens `(tokens, hidden)` by the digest of the pixels; may be shared by embedders with the same
            tower.
    """
    remember_pictures_of(embedder.transformers_model.backbone.visual, memory)


def remember_pictures_of(tower: Any, memory: dict[bytes, Tensor]) -> None:
    """`remember_pictures` of a vision tower that is part of something else."""
    read = tower.forward

    def forward(hidden_states: Tensor, grid_thw: Tensor, **kwargs: Any) -> Any:
        sizes = grid_thw.prod(-1).tolist()
        patches = hidden_states.split(sizes)
        keys = [_digest(picture, grid) for picture, grid in zip(patches, grid_thw, strict=True)]
        new = list({key: place for place, key in enumerate(keys) if key not in memory}.values())
        if new:
            with torch.no_grad():
                output = read(torch.cat([patches[place] for place in new]), grid_thw[new], **kwargs)
            tokens = output.pooler_output.split([sizes[place] // tower.spatial_merge_size**2 for place in new])
            # Clones: tensors made in inference mode could not take part in training later.
            with torch.inference_mode(False):
                memory.update((keys[place], own.clone()) for place, own in zip(new, tokens, strict=True))
        return BaseModelOutputWithPooling(pooler_output=torch.cat([memory[key] for key in keys]))

    tower.forward = forward


def _digest(patches: Tensor, grid: Tensor) -> bytes:
    data = patches.numpy().tobytes() + bytes(str(grid.tolist()), "ascii")
    return hashlib.blake2b(data, digest_size=16).digest()
