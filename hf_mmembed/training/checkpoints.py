"""Checkpoints that are complete or absent.

In: a directory that a trainer has finished writing. Out: the same under its final name, in one rename, with a list of
its files; and, for a run that goes on, the last checkpoint whose files are all there.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from pathlib import Path

import numpy as np
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import TrainOutput

__all__ = ["STAGING", "last_complete", "publish", "require_no_run", "take_up_finished", "to_resume", "what_is_missing"]

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
    files = {str(path.relative_to(staged)): path.stat().st_size for path in staged.rglob("*") if path.is_file()}
    (staged / FILE_LIST).write_text(json.dumps({"files": files}, indent=2) + "\n", encoding="utf-8")
    if final.exists():
        replaced = staged.with_name(staged.name + ".replaced")
        os.replace(final, replaced)
        os.replace(staged, final)
        shutil.rmtree(replaced)
    else:
        os.replace(staged, final)


def what_is_missing(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be used; None if it can."""
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


def take_up_finished(trainer: Trainer, checkpoint: str | None) -> TrainOutput | None:
    """Load a run that has done its ``max_steps``, which transformers would train one step further.

    Args:
        trainer: Made for the same run; its model and state become those of the checkpoint.
        checkpoint: Its directory.

    Returns:
        What the run came to; None where there is no checkpoint, or where there are steps left.
    """
    if not checkpoint:
        return None
    state = TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_NAME)))
    if not 0 < trainer.args.max_steps <= state.global_step:
        return None
    logger.info("%s has all %d steps: nothing is left to do", checkpoint, trainer.args.max_steps)
    trainer._load_from_checkpoint(checkpoint)
    state.is_local_process_zero = trainer.is_local_process_zero()
    state.is_world_process_zero = trainer.is_world_process_zero()
    trainer.state = state
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    return TrainOutput(state.global_step, float(np.mean(losses)) if losses else 0.0, {})
