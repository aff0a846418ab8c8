"""The loss of stage 1: among the sentences of a batch, the student's neighbours should be the teacher's.

In: unit embeddings of both sentences of every pair, and the teacher's vectors of them. Out: a loss per pair.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, normalize

from hf_mmembed.sentence_transformer import MMEmbedder
from hf_mmembed.training.chunks import ChunkedLoss, Facts

from .teacher import TeacherVectors

__all__ = ["DIAGONALS", "DIRECTIONS", "Diagonal", "Direction", "SimilarityDistillationLoss"]

Direction = Literal["teacher-student", "student-teacher"]
Diagonal = Literal["exclude", "include"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
DIAGONALS: tuple[Diagonal, ...] = get_args(Diagonal)


class SimilarityDistillationLoss(ChunkedLoss):
    """Kullback-Leibler divergence between the softmax over the teacher's similarities and that over the student's.

    For each of the n sentences of the global batch (two per pair, on all processes), its cosines to all n, divided by
    the temperature, are a distribution; the teacher's and the student's are compared (UniME,
    https://arxiv.org/abs/2504.17432, eq. 2). Only similarities are, so the two may differ in dimension. The paper leaves
    three things open, its code is not published: it gives no temperature; eq. 2 reads KL(student || teacher), while the
    usual `kl_div` call computes the reverse; and whether a sentence's similarity to itself, always 1, takes part.

    Args:
        model: The student.
        teacher: The teacher's vectors of the pairs.
        temperature: Similarities are divided by it. Defaults to 0.05.
        direction: ``"teacher-student"`` (default), KL(teacher || student): every neighbour that the teacher has must
            be one of the student; or ``"student-teacher"``, as eq. 2 is typeset.
        diagonal: ``"exclude"`` (default): a sentence and its copies in the batch are not among its neighbours, where
            they would take most of the softmax; or ``"include"``.
        mini_batch_size: See `ChunkedLoss`.
        mini_batch_num_tokens: See `ChunkedLoss`.

    Raises:
        ValueError: An option has an unknown value, or the temperature is not positive.
    """

    def __init__(
        self,
        model: MMEmbedder,
        teacher: TeacherVectors,
        *,
        temperature: float = 0.05,
        direction: Direction = "teacher-student",
        diagonal: Diagonal = "exclude",
        mini_batch_size: int = 32,
        mini_batch_num_tokens: int = 8_192,
    ) -> None:
        super().__init__(model, temperature, mini_batch_size, mini_batch_num_tokens)
        for name, value, known in (("direction", direction, DIRECTIONS), ("diagonal", diagonal, DIAGONALS)):
            if value not in known:
                raise ValueError(f"{name} is {value!r}; use {' or '.join(map(repr, known))}.")
        self.teacher, self.direction, self.diagonal = teacher, direction, diagonal

    def losses(self, queries: Tensor, documents: Tensor, negatives: Tensor, facts: Facts, own: slice) -> Tensor:
        """See `ChunkedLoss.losses`. Metric: ``agreement``, the correlation of the student's similarities with the
        teacher's."""
        sentences = torch.cat([queries, documents])  # (2 * pairs, dim)
        ids = self.teacher.ids[facts.rows.cpu().numpy()].T.reshape(-1)
        of_teacher = torch.from_numpy(self.teacher.take(ids)).to(sentences)
        of_teacher = normalize(of_teacher, dim=1)
        pairs = torch.arange(own.start, own.stop, device=sentences.device)
        both = torch.cat([pairs, pairs + len(queries)])
        same = torch.from_numpy(ids).to(sentences.device)
        same = same[both, None] == same
        student, teacher = (vectors[both] @ vectors.T for vectors in (sentences, of_teacher))  # (2n, 2 * pairs)
        self._measure(student.detach()[~same], teacher[~same])
        # Where all are copies of one sentence, there is nothing to exclude them from.
        masked = same & ~same.all(dim=1, keepdim=True) if self.diagonal == "exclude" else torch.zeros_like(same)
        log_s, log_t = (
            log_softmax((scores / self.temperature).masked_fill(masked, -torch.inf), dim=1)
            for scores in (student, teacher)
        )
        log_p, log_q = (log_t, log_s) if self.direction == "teacher-student" else (log_s, log_t)
        divergence = (log_p.exp() * (log_p - log_q).masked_fill(masked, 0)).sum(dim=1)  # (2n,)
        return divergence.view(2, -1).mean(dim=0)

    def _measure(self, student: Tensor, teacher: Tensor) -> None:
        self.metrics = {"agreement": torch.corrcoef(torch.stack([student, teacher]))[0, 1]} if len(student) > 1 else {}
