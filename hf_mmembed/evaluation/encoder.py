"""The model under evaluation: anything that gives one vector per item.

In: a directory, a Hub id or a loaded `SentenceTransformer`. Out: an `Encoder`, which knows what identifies its numbers.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hf_mmembed.data.rows import hash_parts
from hf_mmembed.model.picture_size import limit_pictures, picture_size

from .items import Item, as_input, name_input

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["Encoder", "SentenceEncoder", "load_encoder", "model_name"]

_OURS = ("mmembed", "mmembed_unified")  # by `model_type`


class Encoder(Protocol):
    """What is evaluated. Implement it to evaluate a model that is no `SentenceTransformer`, such as one behind an API.

    Attributes:
        name: What to call it in tables.
        key: Digest of everything that decides its numbers; embeddings are reused under the same key.
        metadata: What to record with the scores.
    """

    name: str
    key: str
    metadata: dict[str, Any]

    def __call__(self, items: Sequence[Item]) -> NDArray[np.float32]:
        """Vectors of the items, ``(items, dim)``, of any length.

        Raises:
            ValueError: An item cannot be embedded.
        """
        ...


class SentenceEncoder:
    """An `Encoder` around a `SentenceTransformer`, `MMEmbedder` or any other.

    Another model gets pictures and texts in the form it takes: a text or a picture alone as it is, both as a dict, and
    the instruction as its prompt.

    Args:
        model: The model.
        name: What to call it. Defaults to the name in its card.
        batch_size: Inputs per forward pass, at most.
    """

    def __init__(self, model: SentenceTransformer, name: str | None = None, *, batch_size: int = 32) -> None:
        from hf_mmembed.sentence_transformer import MMEmbedder

        self.model = model
        self.batch_size = batch_size
        self.name = name or str(model.model_card_data.model_name or model.model_card_data.base_model or "model")
        self.ours = isinstance(model, MMEmbedder)
        self.key = _fingerprint(model)
        self.metadata = {
            "model_revision": self.key[:16],
            "embedding_dimension": model.get_embedding_dimension(),
            "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
            "max_length_tokens": model.max_seq_length,
            "image_size": _image_size(model),
        }

    def __call__(self, items: Sequence[Item]) -> NDArray[np.float32]:
        """Vectors of the items, ``(items, dim)``; see `Encoder`."""
        groups: dict[Any, list[int]] = {}
        for place, item in enumerate(items):
            # Ours takes an instruction with each input; others take one prompt for a whole call.
            groups.setdefault((item.role, None if self.ours else item.instruction), []).append(place)
        vectors: NDArray[np.float32] | None = None
        for (role, prompt), places in groups.items():
            encode = self.model.encode_query if role == "query" else self.model.encode_document
            inputs = [self._input(items[place]) for place in places]
            options: dict[str, Any] = {"batch_size": self.batch_size, "show_progress_bar": False}
            if self.ours:
                options["traces"] = [items[place].trace for place in places]
            if prompt is not None:
                # A turn of its own for a model that reads chats; for another, words before the text.
                options["prompt"] = prompt if self.model.supports("message") else f"{prompt} "
            try:
                found = np.asarray(encode(inputs, **options), np.float32)
            except ValueError as error:
                raise name_input(error, [items[place] for place in places]) from error
            if vectors is None:
                vectors = np.empty((len(items), found.shape[1]), np.float32)
            vectors[places] = found
        assert vectors is not None
        return vectors

    def _input(self, item: Item) -> Any:
        kinds = tuple(["image"] * bool(item.images) + ["text"] * (item.text is not None))
        if not self.model.supports(kinds[0] if len(kinds) == 1 else kinds):
            raise ValueError(
                f"{self.name} takes {', '.join(map(str, self.model.modalities))}; it cannot read {' and '.join(kinds)} in "
                f"one input, such as {item}"
            )
        if self.ours:
            return as_input(item)
        if not item.images:
            # In a dict a text is never taken for the path of a picture; a model of texts alone takes no dicts.
            return {"text": item.text} if self.model.supports("image") else item.text
        from hf_mmembed.model.images_mmembed import open_image

        opened = [open_image(image.read()) for image in item.images]
        image = opened[0] if len(opened) == 1 else opened
        return image if kinds == ("image",) else {"image": image, "text": item.text}


def load_encoder(
    model: str | Path,
    *,
    name: str | None = None,
    device: str | None = None,
    batch_size: int = 32,
    longest_edge: int | None = None,
    trust_remote_code: bool = False,
) -> SentenceEncoder:
    """Opens a directory or Hub id: as `MMEmbedder` where it is one of ours, else as `SentenceTransformer`.

    On a CPU it computes in float32, whatever it is stored in.

    Args:
        model: Directory or Hub id.
        name: What to call it. Defaults to its `model_name`.
        device: Defaults to the best there is.
        batch_size: Inputs per forward pass, at most.
        longest_edge: To what pictures are scaled down, as the model's image processor understands it: pixels in all for
            Qwen2-VL and its like, of the longer side for others. Defaults to what the checkpoint says.
        trust_remote_code: Run code that comes with a checkpoint of others. Ours need none.

    Raises:
        ValueError: There is no such directory, or the model does not scale pictures by `longest_edge`.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import get_device_name

    from hf_mmembed.identity import local_checkpoint
    from hf_mmembed.sentence_transformer import MMEmbedder

    directory, _ = local_checkpoint(model)
    device = device or get_device_name()
    options: dict[str, Any] = {"device": device, "trust_remote_code": trust_remote_code}
    if device == "cpu":
        options["model_kwargs"] = {"dtype": "float32"}
    config = directory / "config.json"
    ours = (directory / "adapter_config.json").is_file() or (
        config.is_file() and json.loads(config.read_text(encoding="utf-8")).get("model_type") in _OURS
    )
    opened = (MMEmbedder if ours else SentenceTransformer)(str(directory), **options)
    if longest_edge is not None:
        limit_pictures(getattr(opened, "processor", None), longest_edge, model)
    return SentenceEncoder(opened, name or model_name(model), batch_size=batch_size)


def model_name(model: str | Path) -> str:
    """What a model is called in tables and folders of results: its Hub id, or its directory's name.

    Every training writes to ``model`` in its output, every run has a ``stage-1`` or a ``checkpoint-40``. So the first is
    left off, and the others are called with the directory above: ``saha-qwen2-vl-2b/model`` is ``saha-qwen2-vl-2b``, and
    ``unime-tiny/stage-1/model`` is ``unime-tiny/stage-1``.
    """
    if not Path(model).is_dir():
        return str(model)
    path = Path(os.path.abspath(model))  # resolve() would call a link by what it points to
    if path.name == "model" and path.parent.name:
        path = path.parent
    of_a_run = re.fullmatch(r"(stage|checkpoint)-\d+", path.name) and path.parent.name
    return f"{path.parent.name}/{path.name}" if of_a_run else path.name


def _image_size(model: SentenceTransformer) -> dict[str, int]:
    """To what the model scales pictures; empty for a model without pictures."""
    return picture_size(getattr(model, "processor", None))


def _fingerprint(model: SentenceTransformer) -> str:
    """Digest of the weights, how they are used, the prompts and what the model reads around its inputs."""
    from hf_mmembed.identity import prompt_hash, settings_digest, weights_digest
    from hf_mmembed.model.rows_mmembed import Row

    processor: Any = getattr(model, "processor", None)
    if hasattr(processor, "prompt"):
        # Benchmarks' words begin and end with line breaks, which the hash of a prompt like saha's does not look at.
        words = Row(("a picture",), "\nwords\n")
        rendered = [processor.render([words], task) for task in ("query", "document")]
        read = json.dumps([prompt_hash(model), *rendered])
    else:
        read = json.dumps([getattr(processor, "chat_template", None), model.prompts], sort_keys=True)
    settings = [str(model.truncate_dim), str(model.max_seq_length), str(_image_size(model)), read]
    return hash_parts(weights_digest(model), settings_digest(model), *settings)
