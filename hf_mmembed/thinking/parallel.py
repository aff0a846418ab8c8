"""What several processes keep of a model that is trained whole: all weights, and the gradients no more than once.

In: a `Trainer` that has not begun.
"""

from __future__ import annotations

from transformers import Trainer

__all__ = ["keep_gradients_once", "require_whole_weights"]


def require_whole_weights(trainer: Trainer) -> None:
    """Refuses what splits the weights before the first step: the result is written by one process, from its own.

    Raises:
        ValueError: The launch asks for FSDP, or for the third stage of DeepSpeed.
    """
    plugin = trainer.accelerator.state.deepspeed_plugin
    if trainer.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3):
        raise ValueError(
            f"{'FSDP' if trainer.is_fsdp_enabled else 'DeepSpeed ZeRO-3'} splits the weights, which fine-tuning a "
            "reasoner cannot save: launch with DistributedDataParallel (`accelerate launch --multi_gpu`); "
            "--set training.activation_checkpointing=true and --set training.optim=adafactor make room. So does DeepSpeed "
            "that leaves the weights whole (`accelerate launch --use_deepspeed --zero_stage 2 --offload_optimizer_device "
            "cpu`)."
        )


def keep_gradients_once(trainer: Trainer) -> None:
    """Lets `DistributedDataParallel` average gradients where they are, instead of in a copy as large as the weights.

    Those of the steps that are only accumulated (``gradient_accumulation_steps``) lie outside all the same, unless
    processes average in each of them (``sync_each_batch``).
    """
    if (handler := trainer.accelerator.ddp_handler) is not None:
        handler.gradient_as_bucket_view = True
