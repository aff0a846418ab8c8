"""The loss that the arguments name.

In: `SaHaTrainingArguments`, an embedder and the pairs it is trained on. Out: a `ChunkedLoss`. How batches are made, the
strategy of mining, is another choice, and every one goes with every loss.
"""

from __future__ import annotations

from typing import Any

from datasets import Dataset

from hf_mmembed.sentence_transformer import MMEmbedder

from .arguments import SaHaTrainingArguments
from .chunks import ChunkedLoss
from .hard_negatives import FALSE_NEGATIVE_MARGIN, InBatchHardNegativeLoss
from .losses import MaskedInfoNCELoss
from .soft_labels import SoftLabelLoss

__all__ = ["make_loss"]


def make_loss(model: MMEmbedder, args: SaHaTrainingArguments, pairs: Dataset) -> ChunkedLoss:
    """The loss ``args.loss`` with its options.

    Raises:
        ValueError: An option does not fit, or the pairs lack what the loss needs.
    """
    options: dict[str, Any] = {
        "temperature": args.temperature,
        "mini_batch_size": args.mini_batch_size,
        "mini_batch_num_tokens": args.mini_batch_num_tokens,
    }
    margin = args.false_negative_margin
    if args.loss == "in-batch-hard-negatives":
        margin = FALSE_NEGATIVE_MARGIN if margin is None else margin
        return InBatchHardNegativeLoss(model, k=args.hard_negatives, margin=margin, **options)
    if args.loss == "soft-labels":
        return SoftLabelLoss(model, pairs, **options)
    return MaskedInfoNCELoss(model, symmetric=args.symmetric, false_negative_margin=margin, **options)
