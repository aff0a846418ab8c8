"""InfoNCE that knows which documents of the batch are no negatives.

In: unit embeddings of queries, positives and hard negatives, and the content ids of all. Out: a loss per pair.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hf_mmembed.sentence_transformer import MMEmbedder

from .chunks import ChunkedLoss, Facts

__all__ = ["MaskedInfoNCELoss", "known_positives"]


class MaskedInfoNCELoss(ChunkedLoss):
    """Contrastive loss over all documents of the global batch but the known positives of each query.

    For each pair the positive is to score higher than every other positive and every hard negative of the batch, on all
    processes (InfoNCE, https://huggingface.co/papers/1807.03748). Not counted are documents that the training data
    names as a positive of the same query: the same document once more, another positive, or either on another process.
    They are told by content, so duplicates under other row numbers are met too. Gradients are those of the loss over
    the whole batch, however small the chunks.

    Args:
        model: The embedder.
        temperature: Similarities are divided by it. Defaults to 0.02, the value of SaHa
            (https://arxiv.org/abs/2508.00955).
        symmetric: Average with the loss of finding the query of each document. Defaults to False.
        false_negative_margin: Leave out what scores higher than the positive by more than this, as a probable false
            negative. May be negative. Defaults to None, which leaves nothing out.
        mini_batch_size: See `ChunkedLoss`.
        mini_batch_num_tokens: See `ChunkedLoss`.

    Raises:
        ValueError: The temperature is not positive.
    """

    def __init__(
        self,
        model: MMEmbedder,
        *,
        temperature: float = 0.02,
        symmetric: bool = False,
        false_negative_margin: float | None = None,
        mini_batch_size: int = 32,
        mini_batch_num_tokens: int = 8_192,
    ) -> None:
        super().__init__(model, temperature, mini_batch_size, mini_batch_num_tokens)
        self.symmetric = symmetric
        self.false_negative_margin = false_negative_margin

    def losses(self, queries: Tensor, documents: Tensor, negatives: Tensor, facts: Facts, own: slice) -> Tensor:
        """See `ChunkedLoss.losses`. Metrics: ``positive``, ``hardest_negative``, ``hardness`` (their difference), ``masked``."""
        target = torch.arange(own.start, own.stop, device=queries.device)
        scores = queries[own] @ torch.cat([documents, negatives]).T  # (n, pairs + hard negatives)
        masked = known_positives(facts.positives[own], torch.cat([facts.document_ids, facts.negative_ids]))
        losses, masked = self._cross_entropy(scores, masked, target)
        self._measure(scores.detach(), masked, target)
        if self.symmetric:
            scores = documents[own] @ queries.T  # (n, pairs)
            masked = known_positives(facts.positives, facts.document_ids[own]).T
            backwards, _ = self._cross_entropy(scores, masked, target)
            losses = (losses + backwards) / 2
        return losses

    def _cross_entropy(self, scores: Tensor, masked: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        if self.false_negative_margin is not None:
            positive = scores.detach().gather(1, target[:, None])
            masked = masked | (scores.detach() > positive + self.false_negative_margin)
        masked = masked.scatter(1, target[:, None], False)
        logits = (scores / self.temperature).masked_fill(masked, -torch.inf)
        return cross_entropy(logits, target, reduction="none"), masked

    def _measure(self, scores: Tensor, masked: Tensor, target: Tensor) -> None:
        positive = scores.gather(1, target[:, None]).squeeze(1)
        hardest = scores.masked_fill(masked, -torch.inf).scatter(1, target[:, None], -torch.inf).amax(dim=1)
        with_negatives = hardest.isfinite()
        self.metrics = {
            "positive": positive.mean(),
            "hardest_negative": hardest[with_negatives].mean(),
            "hardness": (positive - hardest)[with_negatives].mean(),
            "masked": masked.sum(dim=1).float().mean(),
        }


def known_positives(positives: Tensor, document_ids: Tensor) -> Tensor:
    """Which documents are positives of which queries.

    Args:
        positives: ``(queries, most)``: ids of the positives of each query, -1 beyond them.
        document_ids: ``(documents,)``.

    Returns:
        Boolean ``(queries, documents)``.

    Example:
        >>> known_positives(torch.tensor([[7, -1], [8, 7]]), torch.tensor([7, 8, 9])).tolist()
        [[True, False, False], [True, True, False]]
    """
    found = torch.zeros(len(positives), len(document_ids), dtype=torch.bool, device=positives.device)
    for column in positives.T:
        found |= column[:, None] == document_ids
    return found
