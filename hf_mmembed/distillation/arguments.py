"""Everything about a distillation that is a number or a choice.

In: keyword arguments or a recipe. Out: `DistillationArguments`, those of `SaHaTrainingArguments` with other defaults and
a few more.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Literal

from hf_mmembed.training.arguments import SaHaTrainingArguments

from .loss import DIAGONALS, DIRECTIONS, Diagonal, Direction

__all__ = ["NOT_OF_DISTILLATION", "DistillationArguments"]

logger = logging.getLogger(__name__)

NOT_OF_DISTILLATION = frozenset(
    {"loss", "hard_negatives", "symmetric", "false_negative_margin", "subsets_per_batch", "remine_every_epoch"}
)
"""Arguments that stage 1 has no use for."""


@dataclass
class DistillationArguments(SaHaTrainingArguments):
    """Arguments of `DistillationTrainer`.

    Defaults are the published ones of UniME's first stage (https://arxiv.org/abs/2504.17432, appendix) where it has any.
    `gradient_accumulation_steps` are taken for what they mean here, a batch in parts: all of it enters the loss, since
    the similarities of a part are not a part of the similarities, and `mini_batch_num_tokens` bounds the memory.

    Args:
        direction (`str`, *optional*, defaults to `"teacher-student"`):
            See `SimilarityDistillationLoss`, as for the next two. The paper's equation reads `"student-teacher"`.
        diagonal (`str`, *optional*, defaults to `"exclude"`):
            Whether a sentence is its own neighbour. Not published.
        temperature (`float`, *optional*, defaults to 0.05):
            Not published.

        > Changed defaults

        lora_rank (`int`, *optional*, defaults to 32): 0, training all weights, is not possible.
        use_dora (`bool`, *optional*, defaults to `False`)
        learning_rate (`float`, *optional*, defaults to 5e-4)
        num_train_epochs (`float`, *optional*, defaults to 2)
        save_as (`str`, *optional*, defaults to `"merged"`): the second stage has an adapter of its own.

    Raises:
        ValueError: As `SaHaTrainingArguments`; or `lora_rank` is 0, or an option has an unknown value.
    """

    direction: Direction = field(default="teacher-student", metadata={"help": "Of the divergence."})
    diagonal: Diagonal = field(default="exclude", metadata={"help": "Whether a sentence is its own neighbour."})

    temperature: float = field(default=0.05, metadata={"help": "Similarities are divided by it."})
    lora_rank: int = field(default=32, metadata={"help": "Rank of the adapter."})
    use_dora: bool = field(default=False, metadata={"help": "Weight-decomposed LoRA."})
    learning_rate: float = field(default=5e-4, metadata={"help": "The initial learning rate."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Parts of a batch; the loss sees it whole."})
    num_train_epochs: float = field(default=2.0, metadata={"help": "How often each pair is seen."})
    save_as: Literal["adapter", "merged"] = field(default="merged", metadata={"help": "What the result is."})

    def __post_init__(self) -> None:
        for name, known in (("direction", DIRECTIONS), ("diagonal", DIAGONALS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; use {' or '.join(map(repr, known))}.")
        if self.lora_rank < 1:
            raise ValueError(
                f"lora_rank is {self.lora_rank}; distillation trains an adapter: its rank must be positive."
            )
        if self.gradient_accumulation_steps > 1:
            if self.global_batch_size is None:
                self.per_device_train_batch_size *= self.gradient_accumulation_steps
            logger.info(
                "gradient_accumulation_steps=%d: the loss sees the whole batch, in mini-batches of at most %d tokens",
                self.gradient_accumulation_steps, self.mini_batch_num_tokens,
            )  # fmt: skip
            self.gradient_accumulation_steps = 1
        super().__post_init__()
