"""What happens besides the steps of a training.

In: the events of a trainer. Out: how many epochs there will be and word of each, log entries that no saved state lacks, a
progress bar with the last values, and no gradient where none is wanted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from math import ceil
from typing import Any

from transformers import PreTrainedModel, ProgressCallback, TrainerCallback

__all__ = ["BeginEpoch", "Epochs", "FrozenStaysFrozen", "LogWhatIsSaved", "Progress", "Values"]

logger = logging.getLogger(__name__)


class BeginEpoch(TrainerCallback):
    """Tells of a new epoch, since the trainer of transformers does not reach the sampler when it resumes.

    Args:
        begin: Called with the number of the epoch, and whether some of its steps are done already.
    """

    def __init__(self, begin: Callable[[int, bool], None]) -> None:
        self.begin = begin

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `transformers.TrainerCallback`."""
        epoch = state.epoch or 0
        self.begin(int(epoch), epoch != int(epoch))


class Epochs(TrainerCallback):
    """Says how often a run will see each row, which a number of steps alone does not tell."""

    MANY = 20

    def on_train_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        """See `transformers.TrainerCallback`."""
        if not state.is_world_process_zero or train_dataloader is None:
            return
        steps = max(1, ceil(len(train_dataloader) / args.gradient_accumulation_steps))
        epochs = state.max_steps / steps
        logger.info("%d steps of %d per epoch: %.3g epochs", state.max_steps, steps, epochs)
        if epochs > self.MANY:
            logger.warning(
                "each row will be seen some %.0f times, which is rarely of use: an epoch has only %d steps. Set max_steps to "
                "less, or to -1 and num_train_epochs to the number of epochs",
                epochs,
                steps,
            )


class FrozenStaysFrozen(TrainerCallback):
    """Keeps activation checkpointing from running a backward pass through frozen parts.

    transformers makes the outputs of all input embeddings require gradients, those of a vision tower too, which then is
    computed twice and differentiated in every step. Only the older, reentrant way of torch needs that.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """See `transformers.TrainerCallback`."""
        options = args.activation_checkpointing_kwargs or {}
        of_torch = options.keys() - {"every_n_layers", "offload"}
        # With other options alone, torch takes the older way.
        if not args.activation_checkpointing or options.get("use_reentrant", bool(of_torch)):
            return
        for part in model.modules():
            if isinstance(part, PreTrainedModel):
                part.disable_input_require_grads()


class LogWhatIsSaved(TrainerCallback):
    """Logs before each checkpoint and at the end, so that the log of a resumed run counts every step and second once."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `transformers.TrainerCallback`."""
        control.should_log |= control.should_save or control.should_training_stop

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `transformers.TrainerCallback`."""
        self.on_step_end(args, state, control)


class Progress(ProgressCallback):
    """The bar of transformers, with the last values at its end instead of a printed dictionary."""

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """See `transformers.TrainerCallback`."""
        if state.is_world_process_zero and self.training_bar is not None and logs:
            self.training_bar.set_postfix(_shown(logs))


class Values(TrainerCallback):
    """The last values as a log message, where there is no bar; transformers would print them."""

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """See `transformers.TrainerCallback`."""
        if state.is_world_process_zero and logs and "loss" in logs:
            values = ", ".join(f"{name} {value:.4g}" for name, value in _shown(logs).items())
            logger.info("step %d of %d: %s", state.global_step, state.max_steps, values)


def _shown(logs: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(logs[name]) for name in ("loss", "hardness", "pairs_per_second") if name in logs}
