"""Every head of the unified variant of Think-Then-Embed, trained at once on one frozen reasoner of the drawn world.

In: a reasoner and riddles with their traces. Out: embeddings by head, `(inputs, hidden)`. Nothing is generated for the
training: the hidden states are those of a pass over prompt and trace, and heads that read the same layer share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import set_seed

from hf_mmembed.bench.riddles import DRAWN_TEMPLATES, Riddle
from hf_mmembed.model.registration import UnifiedModel
from hf_mmembed.thinking.reasoner import open_generative
from hf_mmembed.tiny.lean_training import remember_pictures_of

__all__ = ["HEADS", "Heads"]

HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "last_token": ("last_token", {}),
    "mlp": ("mlp", {}),
    "attention_pool": ("attention_pool", {}),
    "latent_pool": ("latent_pool", {}),
    "qformer": ("qformer", {}),
    "self_init(1)": ("self_init", {"layers": 1}),
    "self_init(3)": ("self_init", {"layers": 3}),
}
"""Kind and options of each head."""

_AT_ONCE = 64


class Heads:
    """`HEADS` on one reasoner.

    Args:
        reasoner: A generative checkpoint of the drawn world.
        memory: Of `remember_pictures`.
        seed: Of the heads that are not copied, and of the order of training.
    """

    def __init__(self, reasoner: Path, memory: dict[bytes, Tensor], *, seed: int) -> None:
        self.reasoner, self.processor = open_generative(reasoner, DRAWN_TEMPLATES, dtype="float32")
        self.processor.tokenizer.padding_side = "left"
        self.memory, self.seed = memory, seed
        remember_pictures_of(self.reasoner.base_model.visual, memory)
        set_seed(seed)
        end = self.processor.tokenizer.eos_token_id
        self.models: dict[str, Any] = {
            name: UnifiedModel.from_reasoner(self.reasoner, head=head, head_options=options, end_token_id=end)
            for name, (head, options) in HEADS.items()
        }
        # A head that copies layers records more, so of those that read a layer it comes last, and is the one to be asked.
        self.readers = {model.layer: model for model in self.models.values()}

    def train(
        self, riddles: Sequence[Riddle], *, block: int, steps: int, learning_rate: float, temperature: float
    ) -> None:
        """Contrast two blocks of `block` riddles in each step, with linear decay."""
        weights = [weight for model in self.models.values() for weight in model.head.parameters()]
        optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
        starts = range(0, len(riddles), block)
        order = cycle(Random(self.seed).sample(starts, len(starts)))
        for _ in range(steps):
            some = [riddle for start in (next(order), next(order)) for riddle in riddles[start : start + block]]
            asked = self._embedded(self._query_batch(some, [riddle.trace for riddle in some]))
            given = self._embedded(self._picture_batch([riddle.target for riddle in some]))
            target = torch.arange(len(some))
            loss = torch.stack(
                [cross_entropy(asked[name] @ given[name].T / temperature, target) for name in self.models]
            ).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

    @torch.no_grad()
    def embed(self, riddles: Sequence[Riddle], traces: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Queries with their traces."""
        batches = [
            self._query_batch(riddles[start : start + _AT_ONCE], traces[start : start + _AT_ONCE])
            for start in range(0, len(riddles), _AT_ONCE)
        ]
        return self._all(batches)

    @torch.no_grad()
    def embed_pictures(self, pictures: Sequence[Image.Image]) -> dict[str, NDArray[np.float32]]:
        """Documents, as they are."""
        starts = range(0, len(pictures), _AT_ONCE)
        return self._all([self._picture_batch(pictures[start : start + _AT_ONCE]) for start in starts])

    def think_and_embed(self, name: str, riddles: Sequence[Riddle], *, max_new_tokens: int) -> Tensor:
        """Queries in one pass that also writes their traces, every picture read anew, by one head."""
        tower = self.reasoner.base_model.visual
        del tower.forward
        try:
            batch = self._query_batch(riddles, None)
            return self.models[name].think_and_embed(**batch, max_new_tokens=max_new_tokens).embeddings
        finally:
            remember_pictures_of(tower, self.memory)

    def _all(self, batches: Sequence[Any]) -> dict[str, NDArray[np.float32]]:
        found = [self._embedded(batch) for batch in batches]
        return {name: torch.cat([some[name] for some in found]).numpy() for name in self.models}

    def _embedded(self, batch: Any) -> dict[str, Tensor]:
        states = {layer: reader.states(**batch) for layer, reader in self.readers.items()}
        return {name: model.embed(states[model.layer]).embeddings for name, model in self.models.items()}

    def _query_batch(self, riddles: Sequence[Riddle], traces: Sequence[str] | None) -> Any:
        texts, pictures = [riddle.text for riddle in riddles], [riddle.picture for riddle in riddles]
        return self.processor(text=texts, images=pictures, trace=traces, return_tensors="pt")

    def _picture_batch(self, pictures: Sequence[Image.Image]) -> Any:
        return self.processor(images=list(pictures), return_tensors="pt")
