"""What the numbers of a run depend on, kept beside its checkpoints, so that nothing else goes on from them.

In: a trainer before its first step. Out: ``run.json`` in its output directory or, where a run is resumed, a refusal that
names what is no longer the same. How long a run is, what it logs and saves, where it lies, and how it fits into memory
and among processes may change.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import TrainingArguments

from hf_mmembed.files import write_atomically
from hf_mmembed.identity import prompt_hash, settings_digest, weights_digest
from hf_mmembed.processes import world
from hf_mmembed.sentence_transformer import MMEmbedder

if TYPE_CHECKING:
    from .trainer import SaHaTrainer

__all__ = ["BASE", "RUN_FILE", "begin_or_go_on", "digests_of", "facts_of", "keep_to", "settings_of"]

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
FORMAT = "hf_mmembed/run"
FORMAT_VERSION = 1
BASE = ("weights", "settings", "prompt", "image_size")
"""What `digests_of` tells of the model that a run begins with."""

# Those of the loss are read off the loss, and the size of a batch counts as the pairs that meet.
_ARGUMENTS = (
    *("seed", "learning_rate", "learning_rate_mapping", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("optim", "optim_args", "optim_target_modules", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("max_grad_norm", "gradient_accumulation_steps", "bf16", "fp16", "neftune_noise_alpha"),
    *("subsets_per_batch", "remine_every_epoch", "dataloader_drop_last"),
    *("lora_rank", "lora_alpha", "lora_dropout", "use_dora", "lora_target_modules"),
)
# Weights that are trained come from the checkpoint, so it does not matter where an adapter of one's own began.
_FROZEN = "base.frozen"
_OF_MEMORY = {"training", "chunk_size", "chunk_tokens", "mini_batch_size", "gathered"}
# What of a pair is not in its fingerprint; pictures of negatives are not read again for it.
_COLUMNS = ("subset", "query_instruction", "pos_instruction", "neg_text", "pos_score", "neg_score")
_ROWS_AT_ONCE = 1000
# A reasoner whose directory is gone cannot be compared; the weights made of it are part of the base. Earlier versions
# trained an embedder on all batches, whatever was asked, and wrote nothing of it.
_MAY_LACK = {"reasoner", "training.dataloader_drop_last"}


def begin_or_go_on(trainer: SaHaTrainer, checkpoint: str | None) -> None:
    """Writes down what a new run depends on; refuses to go on with one that depended on something else.

    Called on all processes before the first step, with the weights as they are then.

    Args:
        trainer: Its ``facts`` are set on the main process.
        checkpoint: Where the run goes on; None if it begins.

    Raises:
        OSError: The file cannot be written; on all processes.
        ValueError: Something differs; as above.
    """

    def facts() -> dict[str, Any]:
        # A trainer that goes on after it was stopped has other weights by now.
        trainer.facts = trainer.facts or facts_of(trainer)
        return trainer.facts

    keep_to(facts, trainer.args.output_dir, checkpoint)


def keep_to(facts: Callable[[], dict[str, Any]], output_dir: str | Path, checkpoint: str | None) -> None:
    """The same for any run.

    Args:
        facts: What it depends on, by name, as JSON gives it back; asked for on the main process.
        output_dir: Of the run; created if needed.
        checkpoint: Where the run goes on; None if it begins.

    Raises:
        OSError: The file cannot be written; on all processes.
        ValueError: Something differs; as above.
    """

    def compare_or_write() -> None:
        found, own = facts(), Path(output_dir, RUN_FILE)
        begun = own if checkpoint is None else Path(checkpoint).with_name(RUN_FILE)
        if checkpoint is not None and (refusal := _refusal(begun, found)) is not None:
            raise ValueError(refusal)
        if checkpoint is None or begun.resolve() != own.resolve():
            written = {"format": FORMAT, "format_version": FORMAT_VERSION, "depends_on": found}
            own.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(own, f"{json.dumps(written, indent=2, ensure_ascii=False)}\n".encode())

    world().once(compare_or_write)


def facts_of(trainer: SaHaTrainer) -> dict[str, Any]:
    """What the numbers depend on, by name, as JSON gives it back.

    Args:
        trainer: Before its first step.
    """
    rows = trainer.clusters
    facts = {
        **{f"base.{name}": value for name, value in digests_of(trainer.model).items()},
        _FROZEN: _digest_of_frozen(trainer.model),
        "data": trainer.ids.fingerprint,
        "instructions_negatives_scores": _digest_of_columns(trainer.train_dataset),
        "clusters": None if rows is None or not len(rows) else _digest(np.ascontiguousarray(rows, np.int64)),
        "pairs_that_meet": trainer.args.per_device_train_batch_size * trainer.args.world_size,
        **settings_of(trainer.args),
        **_of_loss(trainer.loss),
        **trainer.depends_on,
    }
    return json.loads(json.dumps(facts, default=str))


def settings_of(args: TrainingArguments) -> dict[str, Any]:
    """The arguments, as far as there are such, that decide the numbers of a run."""
    values = args.to_dict()
    return {f"training.{name}": values[name] for name in _ARGUMENTS if name in values}


def digests_of(model: MMEmbedder) -> dict[str, str]:
    """What decides the embeddings of a model as it is in memory (about a second per gigabyte)."""
    size = str(model.processor.image_processor.size)
    return dict(zip(BASE, (weights_digest(model), settings_digest(model), prompt_hash(model), size), strict=True))


def _refusal(begun: Path, facts: dict[str, Any]) -> str | None:
    """What differs from the run that a file tells of, if anything does."""
    try:
        kept = json.loads(begun.read_text(encoding="utf-8"))["depends_on"]
    except FileNotFoundError:
        logger.warning(
            "%s does not say what its run depended on, as an earlier version wrote it; make sure that data, base and "
            "settings are the same",
            begun.parent,
        )
        return None
    except (ValueError, KeyError, TypeError) as error:
        return f"{begun} cannot be read ({error!r}). If checkpoints and settings belong together, remove the file."
    restored = {_FROZEN, "base.weights"} if kept.get(_FROZEN) == facts.get(_FROZEN) else {_FROZEN}
    unknown = _MAY_LACK - (kept.keys() & facts.keys())
    different = [
        f"{name} was {kept.get(name)!r} and is {facts.get(name)!r}"
        for name in {**facts, **kept}
        if kept.get(name) != facts.get(name) and name not in restored | unknown
    ]
    if not different:
        return None
    return (
        f"the run in {begun.parent} cannot go on, since it began with something else: {'; '.join(different)}. Resume it "
        "with what it began with, or choose another output directory."
    )


def _of_loss(loss: nn.Module) -> dict[str, Any]:
    """Its kind, and its options that are no matter of memory."""
    options = {
        f"loss.{name}": value
        for name, value in vars(loss).items()
        if isinstance(value, str | int | float | None) and not name.startswith("_") and name not in _OF_MEMORY
    }
    return {"loss": type(loss).__name__, **options}


def _digest_of_frozen(model: MMEmbedder) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _digest_of_columns(pairs: Dataset) -> str:
    names = [name for name in _COLUMNS if name in pairs.column_names]
    digest = hashlib.blake2b(digest_size=16)
    for table in pairs.select_columns(names).with_format("arrow").iter(_ROWS_AT_ONCE):
        for row in table.to_pylist():
            digest.update(json.dumps(row).encode())
    return digest.hexdigest()


def _digest(rows: np.ndarray) -> str:
    return hashlib.blake2b(repr(rows.shape).encode() + rows.tobytes(), digest_size=16).hexdigest()
