"""Losses over batches of any size in the memory of one chunk: sentence-transformers' GradCache over lazy inputs.

In: both sides of a batch as chat messages (`Side`), pictures still encoded, and what is known about the items
(`Facts`). Out: one loss value that can be back-propagated, and `ChunkedLoss.metrics`.

GradCache (https://huggingface.co/papers/2101.06983) embeds a batch twice, chunk by chunk: once without gradients to
know the loss, once with them. Here a chunk is also tokenized, and its pictures decoded, only when its turn is near, in
threads that work ahead of the model. So the activations alive at a time are those of a chunk, the pixels of a few.
A subclass supplies `ChunkedLoss.losses`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from sentence_transformers.base.losses.gradcache import CachedLossMixin, RandContext
from sentence_transformers.util import batch_to_device
from torch import Tensor, nn

from hf_mmembed.batching import plan_batches, prefetch
from hf_mmembed.preparation import Conversation, estimate_tokens, lookahead_beside, prepare
from hf_mmembed.sentence_transformer import MMEmbedder

from .gather import gather_numbers, gather_rows
from .random_state import draws_at_random

__all__ = ["ChunkedLoss", "Facts", "NonFiniteLossError", "Side"]

logger = logging.getLogger(__name__)

# Padding a text to the length of a picture costs more than another call of the model.
PADDING_PER_CHUNK = 2_048
SHOWN_ROWS = 20

Messages = list[dict[str, Any]]


class NonFiniteLossError(ValueError):
    """The loss or an embedding is NaN or infinite. `rows` are the numbers of the dataset rows it comes from."""

    def __init__(self, what: str, rows: list[int]) -> None:
        self.rows = rows
        shown = ", ".join(map(str, rows[:SHOWN_ROWS])) + (" ..." if len(rows) > SHOWN_ROWS else "")
        super().__init__(
            f"{what} of {len(rows)} rows is NaN or infinite: rows {shown} of the training data. The weights have not "
            "been changed by them. Look at these rows; if they are sound, lower the learning rate or train in "
            "bfloat16 rather than float16."
        )


@dataclass(frozen=True)
class Side:
    """The inputs of one side of a batch.

    Attributes:
        messages: The distinct inputs as conversations, pictures as stored.
        rows: For each of them a row of the dataset that it comes from.
        places: ``(items,)``: which of `messages` each item is.
        task: ``"query"`` or ``"document"``.
    """

    messages: list[Messages]
    rows: list[int]
    places: Tensor
    task: str


@dataclass(frozen=True)
class Facts:
    """What a loss may know about the ``n`` pairs and ``m`` hard negatives of a batch, all int64.

    Attributes:
        rows: ``(n,)``: rows of the dataset.
        document_ids: ``(n,)``: content of the positives.
        positives: ``(n, most)``: all documents that the dataset has as positives of this query, -1 beyond them.
        negative_ids: ``(m,)``: content of the hard negatives.
        negative_rows: ``(m,)``: the row each hard negative belongs to.
    """

    rows: Tensor
    document_ids: Tensor
    positives: Tensor
    negative_ids: Tensor
    negative_rows: Tensor

    def gathered(self, counts: list[list[int]], device: torch.device) -> Facts:
        """Those of all processes; `counts` are each process's n, m and number of columns of `positives`."""
        pairs, negatives, widths = ([count[i] for count in counts] for i in range(3))
        missing = max(widths) - self.positives.shape[1]
        positives = nn.functional.pad(self.positives, [0, missing], value=-1)
        return Facts(
            *(gather_rows(tensor.to(device), pairs) for tensor in (self.rows, self.document_ids, positives)),
            *(gather_rows(tensor.to(device), negatives) for tensor in (self.negative_ids, self.negative_rows)),
        )


class ChunkedLoss(CachedLossMixin, nn.Module):
    """A contrastive loss whose memory does not grow with the batch.

    Args:
        model: The embedder.
        temperature: What `losses` divides similarities by.
        mini_batch_size: At most this many inputs in a chunk. Defaults to 32.
        mini_batch_num_tokens: At most this many tokens in a chunk, text and visual, padding included; an estimate. An
            input longer than that is a chunk of its own. Defaults to 8,192.

    Attributes:
        metrics: Scalars of the last batch, for the log.
        gathered: Whether the processes have exchanged the embeddings of the batch in work.

    Raises:
        ValueError: The temperature is not positive.
    """

    forward_cached: Callable[..., Tensor]  # of the mixin

    def __init__(
        self, model: MMEmbedder, temperature: float, mini_batch_size: int = 32, mini_batch_num_tokens: int = 8_192
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}; it must be positive, usually 0.01 to 0.1.")
        self.model, self.temperature = model, temperature
        # Bound now, since `model` becomes a DistributedDataParallel when the training begins.
        self._estimate_tokens, self._prepare = partial(estimate_tokens, model), partial(prepare, model)
        self._shortens = hasattr(model.transformers_model, "backbone")
        self.chunk_size, self.chunk_tokens = mini_batch_size, mini_batch_num_tokens
        self.mini_batch_size = 1  # of what the mixin counts, which here are whole chunks
        self.metrics: dict[str, Tensor] = {}
        self.gathered = self._asked = False
        self._sides: list[dict[str, Any]] = []

    def losses(self, queries: Tensor, documents: Tensor, negatives: Tensor, facts: Facts, own: slice) -> Tensor:
        """The loss of each pair of this process.

        Args:
            queries: ``(pairs, dim)`` of all processes, unit length, as are the next two.
            documents: ``(pairs, dim)``: the positives.
            negatives: ``(hard negatives, dim)``.
            facts: Of all processes.
            own: Where the pairs of this process are, ``n`` of them.

        Returns:
            ``(n,)``. Should also set `metrics`.
        """
        raise NotImplementedError

    def forward(self, sides: Sequence[Side], facts: Facts) -> Tensor:
        """The mean loss over the pairs of all processes, scaled so that averaging gradients over processes is right.

        Args:
            sides: Queries and documents; the first documents are the positives, the rest hard negatives.
            facts: About the pairs and negatives of this process.

        Raises:
            NonFiniteLossError: An embedding or a loss is NaN or infinite.
            torch.OutOfMemoryError: A chunk does not fit, here or on another process; see `halve_chunks`.
        """
        self.gathered = self._asked = False
        self._sides = [self._planned(side) for side in sides]
        try:
            return self.forward_cached(self._sides, facts)
        except RuntimeError as error:
            if should_reduce_batch_size(error) and not self._asked:
                # The others wait for embeddings; tell them that there will be none.
                gather_numbers([0, 0, 0, 0], self._device)
            raise

    def calculate_loss(self, reps: list[list[Tensor]], labels: Any = None, *, with_backward: bool = False) -> Tensor:
        """Put the chunks back in order, gather over processes, and take the mean of `losses`."""
        facts: Facts = labels
        queries, documents = (
            torch.cat(chunks)[side["order"]][side["side"].places]
            for chunks, side in zip(reps, self._sides, strict=True)
        )
        n = len(facts.rows)
        device = queries.device
        self._asked = True
        counts = gather_numbers([n, len(documents) - n, facts.positives.shape[1], 1], device)
        if not all(alive for *_, alive in counts):
            raise torch.OutOfMemoryError("Another process ran out of memory.")
        self.gathered = True
        of_all = facts.gathered(counts, device)
        pairs = [count[0] for count in counts]
        queries, positives = gather_rows(queries, pairs), gather_rows(documents[:n], pairs)
        negatives = gather_rows(documents[n:], [count[1] for count in counts])
        _require_finite(
            "an embedding",
            torch.cat([of_all.rows, of_all.rows, of_all.negative_rows]),
            torch.cat([queries, positives, negatives]),
        )
        first = sum(pairs[: _rank(len(pairs))])
        # Similarities in bfloat16 would be steps of 0.004, and these are divided by the temperature.
        with torch.autocast(device.type, enabled=False):
            losses = self.losses(queries, positives, negatives, of_all, slice(first, first + n))
        _require_finite("the loss", facts.rows.to(device), losses[:, None])
        loss = losses.sum() * (len(pairs) / sum(pairs))
        if with_backward:
            loss.backward()
            loss = loss.detach()
        return loss

    def embed_minibatch_iter(
        self,
        sentence_feature: dict[str, Any],
        with_grad: bool,
        copy_random_state: bool,
        random_states: list[RandContext] | None = None,
        ranges: list[tuple[int, int]] | None = None,
    ) -> Iterator[tuple[Tensor, RandContext | None]]:
        """Embeddings of one chunk after the other; the next ones are prepared in threads meanwhile."""
        side: Side = sentence_feature["side"]
        chunks = sentence_feature["chunks"]
        chosen = [chunks[begin] for begin, _ in ranges] if ranges is not None else chunks
        prepare_chunk = partial(self._prepare, sentence_feature["conversations"], {"task": side.task})
        with closing(prefetch(prepare_chunk, chosen, lookahead_beside(self._device.type))) as prepared:
            for index, (_, features) in enumerate(prepared):
                features = batch_to_device(features, self._device)
                with random_states[index] if random_states else nullcontext(), torch.set_grad_enabled(with_grad):
                    state = RandContext(*features.values()) if copy_random_state else None
                    yield self.model({**features, **self._shortcuts()})["sentence_embedding"], state

    def halve_chunks(self) -> None:
        """Make the chunks of the next batches half as large as the largest of the last one.

        Raises:
            RuntimeError: A chunk holds a single input already.
        """
        largest = max(len(chunk) for side in self._sides for chunk in side["chunks"])
        if largest == 1:
            raise RuntimeError(
                "out of memory with a single input in a chunk: use smaller images (`image_size` of the recipe), "
                "`activation_checkpointing`, LoRA (`lora_rank`), or a smaller model."
            )
        self.chunk_size, self.chunk_tokens = -(-largest // 2), self.chunk_tokens // 2
        logger.warning(
            "out of memory: chunks now hold at most %d inputs and %d tokens; the effective batch stays the same",
            self.chunk_size,
            self.chunk_tokens,
        )

    def average_gradients(self) -> None:
        """Average the gradients of all processes, by a pass over a short input that adds nothing to them.

        DistributedDataParallel averages in a backward pass only.
        """
        side = self._sides[-1]
        shortest = side["chunks"][-1][-1]
        features = batch_to_device(
            self._prepare(side["conversations"], {"task": side["side"].task}, [shortest]), self._device
        )
        with torch.enable_grad():
            (self.model({**features, **self._shortcuts()})["sentence_embedding"].sum() * 0).backward()

    def _shortcuts(self) -> dict[str, bool]:
        """Arguments of the embedder that save work and change no more than rounding, as long as nothing is drawn.

        With dropout and the like, both passes must draw the same, so they have to compute the same tensors. With
        activation checkpointing, only the pass without gradients could share a prefix, and transformers drops its cache.
        """
        checkpointing = any(getattr(module, "gradient_checkpointing", False) for module in self.model.modules())
        if not self._shortens or checkpointing or draws_at_random(self.model):
            return {"share_prefix": False}
        return {"share_prefix": True, "whole_states": False}

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _planned(self, side: Side) -> dict[str, Any]:
        """What the mixin takes for a batch of features; its units are chunks of similar length, the longest first."""
        conversations = [Conversation(row, messages) for row, messages in zip(side.rows, side.messages, strict=True)]
        chunks = plan_batches(
            self._estimate_tokens(conversations, {}),
            batch_size=self.chunk_size,
            token_budget=self.chunk_tokens,
            batch_cost=PADDING_PER_CHUNK,
        )
        order = torch.tensor([index for chunk in chunks for index in chunk]).argsort()
        return {
            "cu_seq_lens_q": range(len(chunks) + 1),
            "side": side,
            "conversations": conversations,
            "chunks": chunks,
            "order": order,
        }


def _rank(world_size: int) -> int:
    return torch.distributed.get_rank() if world_size > 1 else 0


def _require_finite(what: str, rows: Tensor, values: Tensor) -> None:
    """`values` ``(items, ...)`` must be finite; `rows` ``(items,)`` are those to name otherwise."""
    bad = ~torch.isfinite(values.detach()).all(dim=1)
    if bool(bad.any()):
        raise NonFiniteLossError(what, sorted(set(rows[bad].tolist())))
