"""Checkpoints that are complete or absent.

In: a directory that a trainer has finished writing. Out: the same under its final name, in one rename, with a list of
its files; for a run that goes on, the last checkpoint whose files are all there; and the trained weights of one.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import TrainOutput, rotate_checkpoints

from hf_mmembed.sentence_transformer import MMEmbedder
from hf_mmembed.visible import is_litter

from .models import adapter_of

if TYPE_CHECKING:
    from .trainer import SaHaTrainer

__all__ = [
    "STAGING",
    "last_complete",
    "load_best",
    "load_trained",
    "publish",
    "put_in_place",
    "require_no_run",
    "take_up_finished",
    "to_resume",
    "what_is_missing",
]

logger = logging.getLogger(__name__)

STAGING = ".unfinished"
"""Directory, inside the output directory, in which checkpoints are written."""
FILE_LIST = "checkpoint.json"


def publish(staged: Path, final: Path) -> None:
    """Give a finished directory its final name; one that is there already is replaced.

    Args:
        staged: The directory; a list of its files and their sizes is added.
        final: On the same file system.
    """
    paths = [path for path in staged.rglob("*") if path.is_file() and not is_litter(path.name)]
    files = {path.relative_to(staged).as_posix(): path.stat().st_size for path in paths}
    (staged / FILE_LIST).write_text(json.dumps({"files": files}, indent=2) + "\n", encoding="utf-8")
    if final.exists():
        replaced = staged.with_name(staged.name + ".replaced")
        os.replace(final, replaced)
        os.replace(staged, final)
        shutil.rmtree(replaced)
    else:
        os.replace(staged, final)


def put_in_place(trainer: SaHaTrainer, staged: Path, final: Path) -> None:
    """Publish a checkpoint that all processes have finished, and delete those beyond ``save_total_limit``.

    Args:
        trainer: Its state gets the final name of the best checkpoint, if this is it.
        staged: The checkpoint, alone in its directory, which is removed.
        final: As for `publish`.
    """
    args, state = trainer.args, trainer.state
    if best := state.best_model_checkpoint == str(staged):
        state.best_model_checkpoint = str(final)
    if not args.should_save:
        return
    if best:
        state.save_to_json(str(staged / TRAINER_STATE_NAME))
    publish(staged, final)
    shutil.rmtree(staged.parent)
    rotate_checkpoints(
        output_dir=str(final.parent),
        save_total_limit=args.save_total_limit,
        best_model_checkpoint=state.best_model_checkpoint,
    )


def what_is_missing(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be used; None if it can."""
    if not checkpoint.is_dir():
        return "there is no such directory"
    try:
        files = json.loads((checkpoint / FILE_LIST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return f"{FILE_LIST} is missing, so it was not finished"
    for name, size in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
    return None


def require_no_run(output_dir: str | Path) -> None:
    """Refuse a directory that a new run would share with an earlier one.

    Args:
        output_dir: Of the trainer.

    Raises:
        ValueError: It holds checkpoints.
    """
    if any(Path(output_dir).glob("checkpoint-*")):
        raise ValueError(
            f"{output_dir} holds checkpoints of an earlier run, which would be mixed up with those of this "
            "one: resume it, or choose another output directory."
        )


def last_complete(output_dir: str | Path) -> Path | None:
    """The complete checkpoint of the highest step; incomplete ones are passed over, with a warning.

    Args:
        output_dir: Of the trainer.
    """
    output_dir = Path(output_dir)
    if (output_dir / STAGING).is_dir() and any((output_dir / STAGING).iterdir()):
        logger.warning("ignored %s: a run was stopped while it wrote a checkpoint", output_dir / STAGING)
    found = []
    for path in output_dir.glob("checkpoint-*"):
        if (step := re.fullmatch(r"checkpoint-(\d+)", path.name)) and path.is_dir():
            found.append((int(step[1]), path))
    for _, path in sorted(found, reverse=True):
        missing = what_is_missing(path)
        if missing is None:
            return path
        logger.warning("ignored the checkpoint %s: %s", path, missing)
    return None


def to_resume(output_dir: str | Path, asked: str | bool | None) -> str | None:
    """The checkpoint that a training begins at; None for the beginning.

    Args:
        output_dir: Of the trainer.
        asked: A checkpoint; True for the last complete one, if there is one; None for none.

    Raises:
        ValueError: The checkpoint is not complete, or there is one where none was asked for.
    """
    if asked is True:
        found = last_complete(output_dir)
        logger.info("going on from %s", found) if found else logger.info("no checkpoint yet: from the beginning")
        return None if found is None else str(found)
    if not asked:
        require_no_run(output_dir)
    elif missing := what_is_missing(Path(asked)):
        raise ValueError(f"cannot resume from {asked}: {missing}.")
    return asked or None


def load_trained(model: MMEmbedder, checkpoint: str | Path) -> None:
    """Give a model the trained weights of a checkpoint of it, which takes no memory of its device.

    Args:
        model: Its weights that require gradients are replaced; all others are those it was opened with.
        checkpoint: Its directory.

    Raises:
        OSError: The checkpoint cannot be read.
        RuntimeError: A weight has another shape there.
        ValueError: It lacks some of the weights.
    """
    plain: Any = getattr(model, "_orig_mod", model)  # where it is compiled
    # A checkpoint opens in one precision, that of its first weight, which may be a frozen one; an adapter keeps its own.
    dtype = torch.float32 if adapter_of(plain) is None else "auto"
    opened = MMEmbedder(
        str(checkpoint), device="cpu", trust_remote_code=plain.trust_remote_code, model_kwargs={"dtype": dtype}
    )
    saved = opened.state_dict()
    trained = [name for name, weight in plain.named_parameters() if weight.requires_grad]
    if lacking := [name for name in trained if name not in saved]:
        raise ValueError(
            f"{checkpoint} lacks {len(lacking)} of the {len(trained)} weights that are trained, such as {lacking[0]}; "
            "resume with the settings that the run began with."
        )
    # Not strict: what is frozen is left alone, and a checkpoint may open with parts that the model was not given.
    plain.load_state_dict({name: saved[name] for name in trained}, strict=False)


def load_best(trainer: SaHaTrainer) -> None:
    """Load the best checkpoint of a run that is done.

    Args:
        trainer: Its state names the checkpoint, which may have been moved together with the output directory.

    Raises:
        OSError: The checkpoint cannot be read.
        ValueError: It is not there, or not complete.
    """
    best = Path(str(trainer.state.best_model_checkpoint))
    if not best.is_dir():
        best = Path(trainer.args.output_dir, best.name)
    if missing := what_is_missing(best):
        raise ValueError(
            f"the best checkpoint {best} cannot be loaded: {missing}. Put it back, or set load_best_model_at_end to "
            "False, to take the weights of the last step."
        )
    logger.info("loading %s, the best checkpoint (%s)", best, trainer.state.best_metric)
    trainer._load_from_checkpoint(str(best))
    trainer.state.best_model_checkpoint = str(best)
    trainer.best_step = int(best.name.rpartition("-")[2])


def take_up_finished(trainer: SaHaTrainer, checkpoint: str | None) -> TrainOutput | None:
    """Load a run that has done its ``max_steps``, which transformers would train one step further.

    Args:
        trainer: Made for the same run; its state becomes that of the checkpoint, its model too, or that of the best
            one where ``load_best_model_at_end`` asks for it.
        checkpoint: Its directory.

    Returns:
        What the run came to; None where there is no checkpoint, or where there are steps left.

    Raises:
        OSError: A checkpoint cannot be read.
        ValueError: The best one is asked for and is not there, or a checkpoint is not complete.
    """
    if not checkpoint:
        return None
    state = TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_NAME)))
    if not 0 < trainer.args.max_steps <= state.global_step:
        return None
    logger.info("%s has all %d steps: nothing is left to do", checkpoint, trainer.args.max_steps)
    state.is_local_process_zero = trainer.is_local_process_zero()
    state.is_world_process_zero = trainer.is_world_process_zero()
    trainer.state = state
    if trainer.args.load_best_model_at_end and state.best_model_checkpoint:
        load_best(trainer)
    else:
        trainer._load_from_checkpoint(checkpoint)
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    return TrainOutput(state.global_step, float(np.mean(losses)) if losses else 0.0, {})
