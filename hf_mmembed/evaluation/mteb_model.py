"""Our checkpoints in mteb: ``python -m hf_mmembed.evaluation.mteb_model run -m CHECKPOINT -t TASK``.

In: a checkpoint directory or Hub id. Out: a `ModelMeta` that mteb loads, with the instruction of each task, queries and
documents on their own side of the prompt, and each distinct input of a batch embedded once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mteb.models import ModelMeta
from mteb.models.model_meta import ScoringFunction
from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
from sentence_transformers.util import get_device_name

from hf_mmembed.identity import identify, local_checkpoint
from hf_mmembed.sentence_transformer import MMEmbedder

from .encoder import model_name

__all__ = ["MTEBEncoder", "main", "model_meta"]


class MTEBEncoder(SentenceTransformerEncoderWrapper):
    """mteb's wrapper around an `MMEmbedder`, which takes the instruction that mteb's tasks carry.

    A task may have one instruction, for its queries, or one for each side; prompts stored in the checkpoint stand in
    where it has none.

    Args:
        name: What mteb calls the model.
        revision: Recorded with its results.
        checkpoint: Directory or Hub id. Defaults to `name`.
        device: Defaults to the best there is. On a CPU it computes in float32, whatever the checkpoint is stored in.
        **kwargs: Further arguments of `MMEmbedder`.
    """

    def __init__(
        self,
        name: str,
        revision: str | None = None,
        *,
        checkpoint: str | None = None,
        device: str | None = None,
        **kwargs: Any,
    ) -> None:
        device = device or get_device_name()
        if device.startswith("cpu"):
            kwargs["model_kwargs"] = {"dtype": "float32"} | (kwargs.get("model_kwargs") or {})
        super().__init__(MMEmbedder(checkpoint or name, device=device, **kwargs))

    def encode(self, inputs: Any, *, task_metadata: Any, prompt_type: Any = None, **kwargs: Any) -> Any:
        """Vectors of a task's inputs, under its instruction; see mteb's ``EncoderProtocol``."""
        given = task_metadata.prompt
        sides = given if isinstance(given, dict) else {} if given is None else {"query": given}
        stored = {key: value for key, value in self.model.prompts.items() if value}
        name = task_metadata.name
        self.model_prompts = stored | {f"{name}-{side}": prompt for side, prompt in sides.items()}
        if prompt_type is None and "query" in sides:  # no sides: classification, clustering, similarity
            self.model_prompts[name] = sides["query"]
        return super().encode(inputs, task_metadata=task_metadata, prompt_type=prompt_type, **kwargs)


class _Meta(ModelMeta):
    def _check_requirements(self) -> None:
        """mteb wants torchvision for every model that reads pictures; ours never use it."""


def model_meta(checkpoint: str | Path) -> ModelMeta:
    """What mteb has to know to load a checkpoint: ``mteb.evaluate(model_meta(checkpoint), tasks)``.

    Args:
        checkpoint: Hub id, or directory, which is called ``"local/<name>"``: its `model_name`, ``--`` for each ``/``.

    Raises:
        ValueError: There is no such checkpoint.
    """
    directory, revision = local_checkpoint(checkpoint)
    embedder = MMEmbedder(directory, device="cpu")
    identity = identify(str(checkpoint), directory, revision, embedder)
    overwrites = {
        "loader": MTEBEncoder,
        "loader_kwargs": {"checkpoint": str(directory)},
        "name": str(checkpoint) if revision else f"local/{model_name(checkpoint).replace('/', '--')}",
        "revision": revision or identity.fingerprint[:16],
        "n_parameters": sum(parameter.numel() for parameter in embedder.parameters()),
        "embed_dim": identity.dimension,
        "max_tokens": embedder.max_seq_length,
        "framework": ["Sentence Transformers", "PyTorch", "safetensors"],
        "similarity_fn_name": ScoringFunction.COSINE,
        "use_instructions": True,
        "modalities": ["text", "image"],
        "training_datasets": None,
    }
    return _Meta.create_empty(overwrites=overwrites)


def main() -> None:
    """mteb's own command line, which also takes one of our checkpoints for ``-m``."""
    from mteb.cli.build_cli import main as mteb_main
    from mteb.models.model_implementations import MODEL_REGISTRY

    for place, word in enumerate(sys.argv[:-1]):
        if word in ("-m", "--model") and sys.argv[place + 1] not in MODEL_REGISTRY:
            meta = model_meta(sys.argv[place + 1])
            assert meta.name is not None
            MODEL_REGISTRY[meta.name] = meta
            sys.argv[place + 1] = meta.name
    mteb_main()


if __name__ == "__main__":
    main()
