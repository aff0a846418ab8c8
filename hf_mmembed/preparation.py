"""From a chat to what the model reads: how long it will be, its pictures decoded, its features.

In: `Conversation`s, the inputs of `MMEmbedder.encode` on their way to the model. Out: an estimate of the tokens of each,
and features batch by batch, made in worker threads while the model runs. Errors name the caller's input.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from .batching import Lookahead, text_tokens, usable_cores
from .inputs import height_and_width, pictures, texts
from .model.images_mmembed import ImageError, open_image
from .model.registration import MMEmbedProcessor

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["Conversation", "Reader", "allows_urls", "estimate_tokens", "lookahead_beside", "prepare"]

logger = logging.getLogger(__name__)

# A fast tokenizer keeps its padding and truncation settings as state: two threads would mix up each other's.
# `MMEmbedProcessor` sees to that itself, and reads pictures meanwhile.
_OTHER_PROCESSORS = threading.Lock()
# A PIL image cannot be decoded by two threads at once; the same object may stand in several inputs.
_PICTURE_LOCKS = [threading.Lock() for _ in range(64)]
# Of families that do not say how many tokens a picture takes, or not with every image processor (LLaVA's wants to know how
# pictures are cropped, which SigLIP's does not do): one per square of 28 pixels, as in Qwen2-VL, of a picture
# that was scaled down to about 900 x 900.
_PIXELS_OF_TOKEN, _MOST_TOKENS = 28 * 28, 1024


# Batches that are ready or in the making at once: a batch can be hundreds of megabytes of pixels.
_MOST_BATCHES = 4


@dataclass(frozen=True)
class Conversation:
    """An input on its way to the model.

    Attributes:
        index: Its place among the caller's inputs, for errors.
        messages: Chat messages, as `hf_mmembed.inputs.as_messages` makes them.
    """

    index: int
    messages: list[dict[str, Any]]


class Reader(Protocol):
    """Who reads conversations: an embedder, a judge or a reasoner."""

    @property
    def processor(self) -> Any:
        """Makes features of texts and pictures."""
        ...

    @property
    def max_seq_length(self) -> int | None:
        """Tokens of text that are read, at most."""
        ...


def estimate_tokens(reader: Reader, conversations: Sequence[Conversation], options: Mapping[str, Any]) -> list[int]:
    """How long each conversation will be, text and pictures together, without tokenizing or decoding anything.

    Args:
        reader: The one that will read them.
        conversations: Any number of them.
        options: Keyword arguments of ``preprocess``, of an embedder's first module.

    Raises:
        ValueError: A picture cannot be read; the message names the input.
    """
    if len(conversations) <= 1:
        return [1] * len(conversations)
    processor = _processor(reader)
    prompt = getattr(processor, "prompt", None)
    fixed = text_tokens(prompt.system + prompt.represent_image) if prompt else 0
    sizes: dict[tuple[int, int], int] = {}
    sizes_of = []
    for conversation in conversations:
        try:
            own = [size for picture in pictures(conversation.messages) if (size := height_and_width(picture))]
        except ImageError as error:
            raise ValueError(f"inputs[{conversation.index}]: {error}") from error
        sizes_of.append(own)
        sizes.update(dict.fromkeys(own, 0))
    if sizes:
        family = getattr(processor, "backbone_processor", processor)
        of_images = (options.get("processing_kwargs") or {}).get("image", {})
        sizes = dict(zip(sizes, _visual_tokens(family, list(sizes), of_images), strict=True))
    limit = reader.max_seq_length or sys.maxsize
    return [
        fixed + sum(sizes[size] for size in own) + min(limit, sum(map(text_tokens, texts(conversation.messages))))
        for conversation, own in zip(conversations, sizes_of, strict=True)
    ]


def _processor(reader: Any) -> Any:
    """The reader's processor; where a router leads inputs different ways, the first of those that its routes have."""
    if hasattr(reader, "processor"):
        return reader.processor
    return next((part.processor for part in reader.modules() if hasattr(part, "processor")), None)


def allows_urls(reader: Any) -> bool:
    """Whether the reader's processor fetches pictures that are given by their addresses."""
    return getattr(_processor(reader), "allow_urls", False)


def _visual_tokens(family: Any, sizes: list[tuple[int, int]], options: Mapping[str, Any]) -> list[int]:
    """Tokens of a picture of each size ``(height, width)``, or about so many."""
    if hasattr(family, "_get_num_multimodal_tokens"):
        try:
            return list(family._get_num_multimodal_tokens(image_sizes=sizes, images_kwargs=options).num_image_tokens)
        except (AttributeError, KeyError, TypeError):
            logger.debug("%s does not tell tokens of pictures", type(family).__name__, exc_info=True)
    return [min(high * wide // _PIXELS_OF_TOKEN + 1, _MOST_TOKENS) for high, wide in sizes]


def lookahead_beside(device_type: str, *, downloads: bool = False) -> Lookahead:
    """How batches are prepared for a model that computes on a device of this type.

    A model on a CPU that has a core for each of torch's threads, and no more, is not disturbed: threads that decode
    pictures beside it cost it more time than they save, since its products wait for the slowest core.

    Args:
        device_type: Of the model.
        downloads: Whether pictures may be fetched, which takes time but no core. Defaults to `False`.

    Example:
        >>> lookahead_beside("cuda").in_turns
        False
    """
    cores = usable_cores()
    spare = cores - torch.get_num_threads() if device_type == "cpu" else cores
    if spare <= 0 and not downloads:
        return Lookahead(threads=min(_MOST_BATCHES, cores), items=_MOST_BATCHES - 1, in_turns=True)
    threads = min(_MOST_BATCHES, max(2, spare))  # one is often slower than the model
    return Lookahead(threads, items=threads)


def prepare(
    embedder: SentenceTransformer,
    conversations: Sequence[Conversation],
    options: Mapping[str, Any],
    batch: Sequence[int],
) -> dict[str, Any]:
    """Features of a batch: pictures are opened, and tokens made one batch at a time; any thread may call it.

    Args:
        embedder: The one that will read them.
        conversations: All there are.
        options: Keyword arguments of its first module's ``preprocess``.
        batch: Places in `conversations`.

    Raises:
        ValueError: An input cannot be read; the message names it.
    """
    chosen = [conversations[place] for place in batch]
    opened = [_with_pictures(conversation, allow_urls=allows_urls(embedder)) for conversation in chosen]
    with nullcontext() if isinstance(getattr(embedder, "processor", None), MMEmbedProcessor) else _OTHER_PROCESSORS:
        try:
            return embedder[0].preprocess(opened, **options)
        except ValueError:
            # The processor counts inputs from the start of the batch; find the culprit to name it properly.
            for conversation, messages in zip(chosen, opened, strict=True):
                try:
                    embedder[0].preprocess([messages], **options)
                except ValueError as error:
                    raise ValueError(_named(error, conversation.index)) from error
            raise
        except Exception as error:  # whatever it is, it is raised as it is
            error.add_note(f"raised while preparing inputs {sorted(row.index for row in chosen)}")
            raise


def _named(error: ValueError, index: int) -> str:
    """The message of the processor, to which the input was the first of its batch, with the caller's number."""
    named = str(error).replace("input 0", f"inputs[{index}]", 1)
    return named if named != str(error) else f"inputs[{index}]: {error}"


def _with_pictures(conversation: Conversation, *, allow_urls: bool) -> list[dict[str, Any]]:
    """The messages with every picture decoded; the caller's own objects stay as they are."""
    messages = []
    for message in conversation.messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [dict(part) for part in content]
            for part in content:
                if part.get("type") == "image" and "image" in part:
                    with _PICTURE_LOCKS[id(part["image"]) // 64 % len(_PICTURE_LOCKS)]:
                        try:
                            part["image"] = open_image(part["image"], allow_urls=allow_urls)
                        except ImageError as error:
                            raise ValueError(f"inputs[{conversation.index}]: {error}") from error
        messages.append({**message, "content": content})
    return messages
