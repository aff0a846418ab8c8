"""UniME, stage 1 (https://arxiv.org/abs/2504.17432): the language model learns a text teacher's idea of similarity.

In: a multimodal LLM, sentences or pairs of them, and any `SentenceTransformer` as the teacher. Out: an embedder whose
language model ranks sentences as the teacher does, its vision tower untouched: the start of the second stage,
``hf-mmembed train`` with the loss ``in-batch-hard-negatives``.
"""

from __future__ import annotations

from .arguments import DistillationArguments
from .loss import SimilarityDistillationLoss
from .recipes import DistillationRecipe, distill, load_distillation_recipe, prepare_distillation
from .sentences import read_sentences
from .student import open_student
from .teacher import TeacherVectors, embed_with_teacher, open_teacher
from .trainer import DistillationTrainer

__all__ = [
    "DistillationArguments",
    "DistillationRecipe",
    "DistillationTrainer",
    "SimilarityDistillationLoss",
    "TeacherVectors",
    "distill",
    "embed_with_teacher",
    "load_distillation_recipe",
    "open_student",
    "open_teacher",
    "prepare_distillation",
    "read_sentences",
]
