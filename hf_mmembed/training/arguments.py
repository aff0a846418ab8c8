"""Everything about a training run that is a number or a choice.

In: keyword arguments or the ``training`` part of a recipe. Out: `SaHaTrainingArguments`, which are those of
sentence-transformers and transformers with a few more.
"""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from sentence_transformers import SentenceTransformerTrainingArguments
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy

__all__ = ["LORA_TARGETS", "LOSSES", "Loss", "SaHaTrainingArguments", "bf16_here", "on_one_device"]

logger = logging.getLogger(__name__)

Loss = Literal["infonce", "in-batch-hard-negatives", "soft-labels"]
LOSSES: tuple[Loss, ...] = get_args(Loss)

_NOT_USED = {
    "neftune_noise_alpha": "NEFTune needs the input embeddings of a model, which transformers does not find in an "
    "embedder; leave it out, lora_dropout makes an adapter more robust",
    "data_seed": "the order of the batches depends on seed alone; set seed instead",
    "prompts": "the model writes its own prompt around every input; name one as `prompt` in the recipe, or write "
    "instructions into the pairs",
    "batch_sampler": "batches are whole clusters, which mining makes, or random pairs; set `mining` in the recipe, "
    "give clusters, or set subsets_per_batch",
}
"""Arguments of transformers and sentence-transformers that a training here cannot follow, and what to do instead."""

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj")


@dataclass
class SaHaTrainingArguments(SentenceTransformerTrainingArguments):
    """Arguments of `SaHaTrainer`.

    Only what is added to, or has another default than in, `SentenceTransformerTrainingArguments` is listed. Defaults
    are the published ones of SaHa (https://arxiv.org/abs/2508.00955 and its Gen2Embed repository) where it has any.

    Args:
        > Parameters that control the batches

        global_batch_size (`int`, *optional*):
            Pairs per optimizer step over all processes and accumulation steps. Takes the place of
            `per_device_train_batch_size`, so that the same recipe trains the same on any number of processes.
        subsets_per_batch (`int`, *optional*):
            Pairs of one step come from at most this many subsets. Defaults to None, which mixes freely.
        remine_every_epoch (`bool`, *optional*, defaults to `False`):
            Mine anew with the current model when an epoch begins, except the first.

        > Parameters that control the loss

        loss (`str`, *optional*, defaults to `"infonce"`):
            What is done with a batch, however it was made: `"infonce"` (`MaskedInfoNCELoss`),
            `"in-batch-hard-negatives"` (UniME's `InBatchHardNegativeLoss`) or `"soft-labels"` (UniME-V2's
            `SoftLabelLoss`, for pairs with the scores of a judge).
        hard_negatives (`int`, *optional*, defaults to 8):
            Negatives per query of `"in-batch-hard-negatives"`.
        temperature (`float`, *optional*, defaults to 0.02):
            Similarities are divided by it.
        symmetric (`bool`, *optional*, defaults to `False`):
            Add the loss from documents to queries; only of `"infonce"`.
        false_negative_margin (`float`, *optional*):
            Ignore negatives that score higher than the positive by more than this. Defaults to that of the loss:
            `"infonce"` keeps all, `"in-batch-hard-negatives"` has 0.1, `"soft-labels"` takes none.

        > Parameters that control the memory

        mini_batch_size (`int`, *optional*, defaults to 32):
            At most this many inputs go through the model at once. Does not change the result.
        mini_batch_num_tokens (`int`, *optional*, defaults to 8,192):
            At most this many tokens, text and visual, padding included, go through the model at once.
        activation_checkpointing (`bool`, *optional*, off by default):
            Trade compute for memory once more, within a mini-batch.

        > Parameters that control the adapter

        lora_rank (`int`, *optional*, defaults to 8):
            Rank of the LoRA adapter; 0 trains all weights.
        lora_alpha (`int`, *optional*, defaults to 64):
            The adapter is scaled by `lora_alpha / lora_rank`.
        lora_dropout (`float`, *optional*, defaults to 0.1):
            Dropout in front of the adapter.
        use_dora (`bool`, *optional*, defaults to `True`):
            Weight-decomposed LoRA (https://arxiv.org/abs/2402.09353). Until it is merged, every forward pass computes the
            norms of all weights that it adapts.
        lora_target_modules (`tuple[str]`, *optional*, defaults to the attention and `down_proj`):
            Names of the linear layers of the language model that get an adapter; the vision tower gets none.
        save_as (`str`, *optional*, defaults to `"adapter"`):
            What the result is: `"adapter"`, or `"merged"` weights that need neither PEFT nor the base. Without LoRA
            the result is whole weights in any case.

        > Changed defaults

        dataloader_drop_last (`bool`, *optional*, defaults to `False`): leave out steps that are not full. Not
            changed on several processes, where sentence-transformers sets it.
        bf16 (`bool`, *optional*, defaults to `False`): left out, with a warning, on a machine without an accelerator;
            `use_cpu` keeps it there.
        learning_rate (`float`, *optional*, defaults to 5e-5)
        warmup_steps (`float`, *optional*, defaults to 100)
        logging_steps (`float`, *optional*, defaults to 10)
        logging_nan_inf_filter (`bool`, *optional*, defaults to `False`): a NaN stops the run, so there is none to hide.
        save_total_limit (`int`, *optional*, defaults to 2)
        hub_strategy (`str`, *optional*, defaults to `"end"`): with `push_to_hub`, the result is published, never a
            checkpoint, which holds pickles.

    Raises:
        ValueError: `global_batch_size` cannot be divided among the processes and accumulation steps, a batch has too few
            pairs for `hard_negatives`, an option is of another loss, `loss` or `save_as` is unknown, or an argument that
            nothing here follows is given: `neftune_noise_alpha`, `data_seed`, `prompts`, `batch_sampler`.
    """

    global_batch_size: int | None = field(
        default=None, metadata={"help": "Pairs per optimizer step over all processes."}
    )
    subsets_per_batch: int | None = field(default=None, metadata={"help": "At most this many subsets in a step."})
    remine_every_epoch: bool = field(default=False, metadata={"help": "Mine anew with the current model every epoch."})

    loss: Loss = field(default="infonce", metadata={"help": "What is done with a batch."})
    hard_negatives: int = field(default=8, metadata={"help": "Negatives per query of in-batch-hard-negatives."})
    temperature: float = field(default=0.02, metadata={"help": "Similarities are divided by it."})
    symmetric: bool = field(default=False, metadata={"help": "Add the loss from documents to queries."})
    false_negative_margin: float | None = field(
        default=None, metadata={"help": "Ignore negatives that score higher than the positive by more than this."}
    )

    mini_batch_size: int = field(default=32, metadata={"help": "Inputs that go through the model at once."})
    mini_batch_num_tokens: int = field(default=8_192, metadata={"help": "Tokens that go through the model at once."})

    lora_rank: int = field(default=8, metadata={"help": "Rank of the adapter; 0 trains all weights."})
    lora_alpha: int = field(default=64, metadata={"help": "The adapter is scaled by lora_alpha / lora_rank."})
    lora_dropout: float = field(default=0.1, metadata={"help": "Dropout in front of the adapter."})
    use_dora: bool = field(default=True, metadata={"help": "Weight-decomposed LoRA."})
    lora_target_modules: tuple[str, ...] = field(
        default=LORA_TARGETS, metadata={"help": "Linear layers of the language model that get an adapter."}
    )
    save_as: Literal["adapter", "merged"] = field(default="adapter", metadata={"help": "What the result is."})

    dataloader_drop_last: bool = field(default=False, metadata={"help": "Leave out steps that are not full."})
    use_cpu: bool = field(default=False, metadata={"help": "Train on the CPU."})
    bf16: bool = field(default=False, metadata={"help": "Compute in bfloat16; not on a CPU without use_cpu."})
    learning_rate: float = field(default=5e-5, metadata={"help": "The initial learning rate."})
    warmup_steps: float = field(default=100, metadata={"help": "Steps of linear warm-up, or their share if below 1."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Clip the gradient to this norm; 0 clips nothing."})
    logging_steps: float = field(default=10, metadata={"help": "Log every so many steps."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Not used: a NaN stops the run."})
    disable_tqdm: bool | None = field(default=None, metadata={"help": "No bars; by default, off a terminal."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Keep this many checkpoints."})
    hub_strategy: HubStrategy | str = field(default="end", metadata={"help": "Only the result is pushed."})

    def __post_init__(self) -> None:
        if self.save_as not in ("adapter", "merged"):
            raise ValueError(f"save_as is {self.save_as!r}; use 'adapter' or 'merged'.")
        for name in ("mini_batch_size", "mini_batch_num_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; something has to go through the model: at least 1."
                )
        if self.disable_tqdm is None:
            self.disable_tqdm = not sys.stderr.isatty()
        self.bf16 = bf16_here(self.bf16, self.use_cpu)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available():
            self.use_cpu = True  # or transformers would take each process for the only one
        self.dataloader_pin_memory &= torch.accelerator.is_available()  # or torch warns in every epoch
        # Else sentence-transformers sets it, with a warning, where there are several processes.
        drop_last = self.dataloader_drop_last
        self.dataloader_drop_last = True
        super().__post_init__()
        self.dataloader_drop_last = drop_last  # the same steps on any number of processes
        on_one_device(self)
        for name, advice in _NOT_USED.items():
            if (value := getattr(self, name)) != getattr(type(self), name):
                raise ValueError(f"{name} is {value!r}, but {advice}.")
        # Without clipping, the norm is looked at all the same: a gradient that is no number must not reach the weights.
        self.max_grad_norm = self.max_grad_norm or sys.float_info.max
        if self.push_to_hub and self.hub_strategy != HubStrategy.END:
            raise ValueError(
                f"hub_strategy is {HubStrategy(self.hub_strategy).value!r}, but only the result is pushed: checkpoints "
                "hold pickles (optimizer, random state), which can run code when they are read. Leave it at 'end'."
            )
        if self.global_batch_size is not None:
            parts = self.world_size * self.gradient_accumulation_steps
            if self.global_batch_size < 1 or self.global_batch_size % parts:
                raise ValueError(
                    f"global_batch_size is {self.global_batch_size}, which cannot be divided among {self.world_size} "
                    f"processes and {self.gradient_accumulation_steps} accumulation steps; choose a multiple of {parts}."
                )
            self.per_device_train_batch_size = self.global_batch_size // parts
        self._check_loss()

    def _check_loss(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss is {self.loss!r}; use one of {', '.join(map(repr, LOSSES))}.")
        if self.symmetric and self.loss != "infonce":
            raise ValueError(f"symmetric is an option of the loss 'infonce', not of {self.loss!r}; leave it out.")
        if self.false_negative_margin is not None and self.loss == "soft-labels":
            raise ValueError("the loss 'soft-labels' has no false_negative_margin: filter when you judge.")
        together = self.per_device_train_batch_size * self.world_size
        if self.loss == "in-batch-hard-negatives" and not 0 < self.hard_negatives < together:
            raise ValueError(
                f"hard_negatives is {self.hard_negatives}, but {together} pairs that meet in a batch give a query from 1 to "
                f"{together - 1} negatives; change it, or global_batch_size, or gradient_accumulation_steps."
            )


def bf16_here(bf16: bool, use_cpu: bool) -> bool:
    """Whether to compute in bfloat16: as asked, but not on a CPU that nobody chose, which transformers refuses.

    Most CPUs take several times longer over it than over float32.

    Args:
        bf16: What is asked.
        use_cpu: Whether a CPU was chosen.
    """
    if not bf16 or use_cpu or torch.accelerator.is_available():
        return bf16
    logger.warning(
        "there is no accelerator: training on the CPU without bf16, which most CPUs are slow at; "
        "--set training.use_cpu=true (use_cpu=True in Python) keeps it"
    )
    return False


def on_one_device(args: TrainingArguments) -> None:
    """Keep one process on one GPU where there are several, and say how to use the others.

    transformers would put them into `nn.DataParallel`, which multiplies the batch by their number and cuts pictures and
    texts in different places.
    """
    if args.n_gpu > 1:
        logger.warning(
            "%d GPUs and one process: training uses %s alone; accelerate launch --num_processes %d -m hf_mmembed.cli ... "
            "uses all of them",
            args.n_gpu, args.device, args.n_gpu,
        )  # fmt: skip
        args._n_gpu = 1
