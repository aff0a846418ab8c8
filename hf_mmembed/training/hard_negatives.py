"""UniME's loss: each pair against the few hardest negatives of the batch, without what may be an answer.

In: unit embeddings of queries, positives and hard negatives, and the content ids of all. Out: a loss per pair.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hf_mmembed.sentence_transformer import MMEmbedder

from .chunks import ChunkedLoss, Facts
from .losses import known_positives

__all__ = ["FALSE_NEGATIVE_MARGIN", "InBatchHardNegativeLoss", "repeated"]

FALSE_NEGATIVE_MARGIN = 0.1
"""β of UniME."""


class InBatchHardNegativeLoss(ChunkedLoss):
    """InfoNCE over the positive and the `k` hardest documents of the global batch that are no answers.

    The second stage of UniME (https://arxiv.org/abs/2504.17432, section 3.3). For each query, out of all positives and
    hard negatives on all processes:

    1. What the training data names as a positive of the query goes, told by content; of equal documents one is kept.
    2. What scores higher than the positive by more than `margin` goes, as a probable false negative.
    3. The `k` most similar of the rest are the negatives. Where fewer are left, there are fewer: the loss never takes
       back what it has filtered, as the published code does, nor repeats a negative, as the paper does.

    Which documents are chosen has no gradient; their scores have one, across processes too.

    Args:
        model: The embedder.
        k: Negatives per query. Defaults to 8.
        margin: β, the margin of false negatives. Defaults to 0.1. Infinite: none are filtered.
        temperature: Similarities are divided by it. Defaults to 0.02.
        mini_batch_size: See `ChunkedLoss`.
        mini_batch_num_tokens: See `ChunkedLoss`.

    Raises:
        ValueError: `k` or the temperature is not positive.
    """

    def __init__(
        self,
        model: MMEmbedder,
        *,
        k: int = 8,
        margin: float = FALSE_NEGATIVE_MARGIN,
        temperature: float = 0.02,
        mini_batch_size: int = 32,
        mini_batch_num_tokens: int = 8_192,
    ) -> None:
        super().__init__(model, temperature, mini_batch_size, mini_batch_num_tokens)
        if k < 1:
            raise ValueError(f"k is {k}; a query needs at least one negative.")
        self.k, self.margin = k, margin

    def losses(self, queries: Tensor, documents: Tensor, negatives: Tensor, facts: Facts, own: slice) -> Tensor:
        """See `ChunkedLoss.losses`. Metrics: ``positive``, ``hardest_negative``, ``hardness`` (their difference),
        ``false_negatives`` (filtered by the margin, per query) and ``negatives`` (left, per query)."""
        ids = torch.cat([facts.document_ids, facts.negative_ids])
        positive = (queries[own] * documents[own]).sum(dim=1, keepdim=True)  # (n, 1)
        scores = queries[own] @ torch.cat([documents, negatives]).T  # (n, pairs + hard negatives)
        known = known_positives(facts.positives[own], ids) | (ids == facts.document_ids[own, None]) | repeated(ids)
        suspect = ~known & (scores.detach() > positive.detach() + self.margin)
        # Not an index into the documents: where too few are left, the rest of the places are empty, not filled anew.
        hardest = scores.masked_fill(known | suspect, -torch.inf).topk(min(self.k, len(ids))).values  # (n, k)
        self._measure(positive.detach(), hardest.detach(), suspect)
        logits = torch.cat([positive, hardest], dim=1) / self.temperature
        first = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        return cross_entropy(logits, first, reduction="none")

    def _measure(self, positive: Tensor, hardest: Tensor, suspect: Tensor) -> None:
        there = hardest.isfinite()
        with_negatives = there[:, 0]
        self.metrics = {
            "positive": positive.mean(),
            "hardest_negative": hardest[with_negatives, 0].mean(),
            "hardness": (positive[with_negatives, 0] - hardest[with_negatives, 0]).mean(),
            "false_negatives": suspect.sum(dim=1).float().mean(),
            "negatives": there.sum(dim=1).float().mean(),
        }


def repeated(ids: Tensor) -> Tensor:
    """Which of the documents stand further ahead already.

    Args:
        ids: ``(documents,)``, int64.

    Returns:
        Boolean ``(documents,)``.

    Example:
        >>> repeated(torch.tensor([7, 8, 7, 7])).tolist()
        [False, False, True, True]
    """
    places = torch.arange(len(ids), device=ids.device)
    _, group = ids.unique(return_inverse=True)
    firsts = torch.full_like(ids, len(ids)).scatter_reduce(0, group, places, "amin")
    return firsts[group] != places
