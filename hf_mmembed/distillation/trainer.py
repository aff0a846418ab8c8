"""The trainer of stage 1: that of SaHa, with the teacher's loss and a student that is a language model alone.

In: a student, pairs of sentences and the teacher's vectors of them. Out: the distilled embedder, with its vision tower.
"""

from __future__ import annotations

from typing import Any

from datasets import Dataset

from hf_mmembed.sentence_transformer import MMEmbedder
from hf_mmembed.training.trainer import SaHaTrainer

from .arguments import DistillationArguments
from .loss import SimilarityDistillationLoss
from .teacher import TeacherVectors

__all__ = ["DistillationTrainer"]


class DistillationTrainer(SaHaTrainer):
    """Trains a student on pairs of sentences, in random batches.

    Checkpoints, resuming, memory and logs are those of `SaHaTrainer`.

    Args:
        model: What `open_student` returns.
        args: Direction, diagonal, temperature and the rest.
        train_dataset: Pairs of sentences.
        teacher: The teacher's vectors of them.
        **trainer: More arguments of `SaHaTrainer`.

    Raises:
        ValueError: `teacher` is of another number of pairs.
    """

    training_args_class = DistillationArguments

    def __init__(
        self,
        model: MMEmbedder,
        args: DistillationArguments,
        train_dataset: Dataset,
        teacher: TeacherVectors,
        **trainer: Any,
    ) -> None:
        if len(teacher.ids) != len(train_dataset):
            raise ValueError(f"the teacher saw {len(teacher.ids)} pairs, but there are {len(train_dataset)}.")
        self.teacher = teacher
        super().__init__(model, args, train_dataset, **trainer)
        self.depends_on["teacher"] = teacher.made_by

    def get_default_loss(self, model: MMEmbedder) -> SimilarityDistillationLoss:
        """`SimilarityDistillationLoss` as the arguments say."""
        return SimilarityDistillationLoss(
            model,
            self.teacher,
            temperature=self.args.temperature,
            direction=self.args.direction,
            diagonal=self.args.diagonal,
            mini_batch_size=self.args.mini_batch_size,
            mini_batch_num_tokens=self.args.mini_batch_num_tokens,
        )
