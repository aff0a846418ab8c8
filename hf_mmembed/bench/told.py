"""InfoNCE by a loss that is told the truth: what there is to gain by leaving out false negatives, and no more.

In: the pairs of the drawn world, whose scene graphs say what answers what. Out: a loss that leaves every false negative
of a batch out and keeps every near miss, which no filter that sees only embeddings can be surer of.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hf_mmembed.sentence_transformer import MMEmbedder
from hf_mmembed.tiny.lean_training import OnePassInfoNCELoss
from hf_mmembed.tiny.pairs import DrawnPairs
from hf_mmembed.training.chunks import Facts

__all__ = ["ToldInfoNCELoss"]


class ToldInfoNCELoss(OnePassInfoNCELoss):
    """`OnePassInfoNCELoss` in which true answers are no negatives, whether a pair names them or not.

    Args:
        model: What is trained.
        drawn: The pairs, and what is true of them.
        **options: Of `MaskedInfoNCELoss`.
    """

    def __init__(self, model: MMEmbedder, drawn: DrawnPairs, **options: Any) -> None:
        super().__init__(model, **options)
        self.drawn = drawn

    def losses(self, queries: Tensor, documents: Tensor, negatives: Tensor, facts: Facts, own: slice) -> Tensor:
        """As `MaskedInfoNCELoss.losses`."""
        rows = facts.rows.numpy()
        true = torch.from_numpy(self.drawn.truth(rows, rows))
        answers = torch.where(true, facts.document_ids, -1)
        told = replace(facts, positives=torch.cat([facts.positives, answers], dim=1))
        return super().losses(queries, documents, negatives, told, own)
