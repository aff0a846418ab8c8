"""The result of a training on the Hub: safetensors, card and code, and nothing that the training left behind.

In: a trainer and the directory of its result. Out: a commit. What `Trainer.push_to_hub` of transformers would upload
besides (``training_args.bin``, a pickle; checkpoints; logs) stays here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitInfo

from hf_mmembed.hub import push
from hf_mmembed.processes import world
from hf_mmembed.sentence_transformer import MMEmbedder

from .arguments import SaHaTrainingArguments
from .models import adapter_of

if TYPE_CHECKING:
    from .trainer import SaHaTrainer

__all__ = ["publish_result", "require_public_base"]


def publish_result(trainer: SaHaTrainer, directory: Path, message: str, **options: Any) -> CommitInfo:
    """Push a result to ``hub_model_id``, from the main process.

    Args:
        trainer: Whose ``hub_*`` arguments say where to.
        directory: Of the result.
        message: Of the commit.
        **options: Of `hf_mmembed.hub.push`, in place of the arguments.

    Raises:
        PublishError: Something must not be published; nothing was sent.
        PushError: The Hub refused or broke off; nothing was committed.
    """
    args = trainer.args

    def pushed() -> CommitInfo:
        chosen = {"token": args.hub_token, "private": args.hub_private_repo, "revision": args.hub_revision} | options
        if trainer.hub_model_id is None:  # not known before unless `push_to_hub` was among the arguments
            trainer.init_hf_repo(token=chosen["token"], private=chosen["private"])
        trainer.callback_handler.on_push_begin(args, trainer.state, trainer.control)
        return push(directory, trainer.hub_model_id, message=message, **chosen)

    return world().once(pushed)


def require_public_base(embedder: MMEmbedder, args: SaHaTrainingArguments) -> None:
    """Say before the training, not after it, that its result will be of no use to others.

    Raises:
        ValueError: The result will be an adapter over a directory of this machine.
    """
    adapter = adapter_of(embedder)
    if args.save_as == "adapter" and adapter and Path(base := adapter.base_model_name_or_path).exists():
        raise ValueError(
            f"push_to_hub: the result will be an adapter over the local directory {base}, which nobody else has. Set "
            "save_as to 'merged', or push the base first (`hf-mmembed push`) and train over its id."
        )
