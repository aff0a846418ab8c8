"""Everything that can be embedded, as chat messages.

In: whatever a user passes to `hf_mmembed.MMEmbedder.encode`. Out: one conversation per input, the form in which
sentence-transformers, the processor and the backbone's own chat template all read it. A string is always text here,
also where it is the path of an existing picture, a URL or a control token: nothing is opened, fetched or obeyed.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from .model.images_mmembed import DECODING_ERRORS, FORMATS, check_size, is_url, open_image
from .model.rows_mmembed import image_source

__all__ = ["as_messages", "check_unicode", "height_and_width", "pictures", "texts", "with_trace"]

KEYS = ("text", "image", "instruction")
UNDECODED = {"bytes", "path"}  # a cell of a column `datasets.Image(decode=False)`
IMAGE_TYPES = (Image.Image, np.ndarray, torch.Tensor)

Messages = list[dict[str, Any]]


def as_messages(item: Any, *, index: int = 0, instruction: str | None = None) -> Messages:
    """One input as a conversation: an optional instruction (system turn), then pictures and text (user turn).

    Args:
        item: A ``str`` (always text), a picture (PIL image, ``np.ndarray`` or ``torch.Tensor`` of three axes), a dict
            with some of the keys ``text``, ``image`` and ``instruction``, where ``image`` is a picture, a local path,
            the bytes of an image file or a list of these, an undecoded picture of `datasets` (``{"bytes", "path"}``; a
            value of ``image``, too), or chat messages (one ``{"role", "content"}`` dict or a list
            of them), whose pictures may also be called ``path``, ``url`` or ``image_url``. A key whose value is None
            counts as absent. An empty string is a valid text: the model reads its prompt with nothing in it.
        index: The position of ``item`` among the inputs, for error messages.
        instruction: What to do with the input, where it does not say so itself (its own ``instruction``, the empty
            one too, or a system turn).

    Raises:
        ValueError: The input is None or holds neither text nor image, is of another type, has unknown keys, or its
            text or instruction is not a string, or not valid Unicode. The message names ``index``.

    Example:
        >>> as_messages("a red circle", instruction="Find the picture.")
        ... # doctest: +NORMALIZE_WHITESPACE
        [{'role': 'system', 'content': [{'type': 'text', 'text': 'Find the picture.'}]},
         {'role': 'user', 'content': [{'type': 'text', 'text': 'a red circle'}]}]
    """
    if isinstance(instruction, str):
        check_unicode(instruction, f"the instruction of inputs[{index}]")
    if isinstance(item, str):
        check_unicode(item, f"inputs[{index}]")
        return _conversation(item, [], instruction)
    if isinstance(item, IMAGE_TYPES):
        return _conversation(None, [_checked_image(item, index)], instruction)
    if _is_message(item) or (isinstance(item, list) and item and all(_is_message(turn) for turn in item)):
        return _with_instruction(_checked_turns([item] if _is_message(item) else item, index), instruction)
    if isinstance(item, Mapping):
        return _from_mapping(item, index, instruction)
    raise ValueError(
        f"inputs[{index}] is {_describe(item)}, which cannot be embedded. Pass a string, a picture (PIL image, array, "
        f"tensor), a dict with keys from {list(KEYS)}, or chat messages. The path of a picture goes into a dict: "
        '{"image": path}.'
    )


def check_unicode(text: str, what: str) -> None:
    """Refuse a text that no tokenizer and no file can take: one with half of a surrogate pair.

    Args:
        text: Any string.
        what: What it is, for the error message.

    Raises:
        ValueError: There is half a pair, as left over where an emoji was cut in two.

    Example:
        >>> check_unicode("a disc", "inputs[0]")
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} is not valid Unicode: character {error.start} is {text[error.start]!a}, half of a surrogate pair. "
            "Remove it, or replace it: text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')."
        ) from error


def _is_message(item: Any) -> bool:
    """Whether ``item`` is one turn of a chat: a dict with ``role`` and ``content``."""
    return isinstance(item, Mapping) and "role" in item and "content" in item


def pictures(messages: Messages) -> Iterator[Any]:
    """The pictures of a conversation, in reading order."""
    return (part["image"] for part in _parts(messages) if part.get("type") == "image" and "image" in part)


def texts(messages: Messages) -> Iterator[str]:
    """The texts of a conversation, instruction first, in reading order."""
    return (part["text"] for part in _parts(messages) if part.get("type") == "text")


def _parts(messages: Messages) -> Iterator[Mapping[str, Any]]:
    for message in messages:
        content = message["content"]
        yield from [{"type": "text", "text": content}] if isinstance(content, str) else content


def with_trace(messages: Messages, trace: Any, *, index: int = 0) -> Messages:
    """The conversation with what a reasoner wrote about it behind it, in the assistant's turn.

    Args:
        messages: What `as_messages` returns.
        trace: A string, an object that has one as ``text``, or None. An empty one is no trace.
        index: The position among the inputs, for error messages.

    Raises:
        ValueError: The trace is something else, or not valid Unicode.

    Example:
        >>> with_trace([{"role": "user", "content": "two discs"}], "the left one is red")[1]
        {'role': 'assistant', 'content': 'the left one is red'}
    """
    words = getattr(trace, "text", trace)
    if words is not None and not isinstance(words, str):
        raise ValueError(f"the trace of inputs[{index}] is {_describe(trace)}; it must be a string, a trace or None.")
    if words:
        check_unicode(words, f"the trace of inputs[{index}]")
    return [*messages, {"role": "assistant", "content": words}] if words and words.strip() else messages


def height_and_width(picture: Any) -> tuple[int, int] | None:
    """Height and width of a picture in pixels, from the header of a file; None for a URL, which is not asked.

    Raises:
        hf_mmembed.model.images_mmembed.ImageError: the picture cannot be opened, or its size is refused.

    Example:
        >>> height_and_width(np.zeros((3, 20, 30))), height_and_width(np.zeros((20, 30, 3)))
        ((20, 30), (20, 30))
    """
    if is_url(picture):
        return None
    if isinstance(picture, (np.ndarray, torch.Tensor)):
        shape = tuple(picture.shape)
        height, width = shape[:2] if len(shape) == 2 or shape[2] in (1, 3, 4) else shape[1:]
    elif isinstance(picture, Image.Image):
        width, height = picture.size
    elif not isinstance(picture, bytes) and not os.path.isfile(picture):
        width, height = open_image(picture).size  # raises; a named pipe would be waited for below
    else:
        try:
            with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture, formats=FORMATS) as header:
                width, height = header.size
        except (*DECODING_ERRORS, Image.DecompressionBombError):
            width, height = open_image(picture).size  # raises, and says what is wrong
    check_size(width, height, name=str(picture) if isinstance(picture, (str, os.PathLike)) else "the picture")
    return height, width


def _from_mapping(item: Mapping[str, Any], index: int, instruction: str | None) -> Messages:
    if item.keys() == UNDECODED:
        return _conversation(None, [_checked_image(item, index)], instruction)
    unknown = sorted(set(map(str, item)) - set(KEYS))
    if unknown:
        raise ValueError(f"inputs[{index}] has the unknown keys {unknown}; an input may have the keys {list(KEYS)}.")
    text, image = item.get("text"), item.get("image")
    if item.get("instruction") is not None:
        instruction = item["instruction"]
    for key, value in (("text", text), ("instruction", instruction)):
        if value is not None and not isinstance(value, str):
            raise ValueError(f"inputs[{index}][{key!r}] is {_describe(value)}; it must be a string or None.")
        if value is not None:
            check_unicode(value, f"inputs[{index}][{key!r}]")
    images = [] if image is None else list(image) if isinstance(image, (list, tuple)) else [image]
    if text is None and not images:
        raise ValueError(f"inputs[{index}] has neither text nor image; give at least one of them.")
    return _conversation(text, [_checked_image(image, index) for image in images], instruction)


def _checked_turns(turns: list[Mapping[str, Any]], index: int) -> Messages:
    checked = []
    for turn in turns:
        content = turn["content"]
        if isinstance(content, str):
            check_unicode(content, f"the {turn['role']} turn of inputs[{index}]")
        elif isinstance(content, list) and all(isinstance(part, Mapping) for part in content):
            content = [_checked_part(part, index) for part in content]
        else:
            raise ValueError(f"inputs[{index}] has a {turn['role']} turn whose content is neither text nor parts.")
        checked.append({**turn, "content": content})
    return checked


def _checked_part(part: Mapping[str, Any], index: int) -> Mapping[str, Any]:
    """A part of a turn; pictures, which chats hold under several names, under one."""
    if part.get("type") == "text":
        if not isinstance(part.get("text"), str):
            raise ValueError(f"inputs[{index}] has a text part whose text is {_describe(part.get('text'))}.")
        check_unicode(part["text"], f"a text part of inputs[{index}]")
    if part.get("type") in ("image", "image_url"):
        return {"type": "image", "image": _checked_image(image_source(part), index)}
    return part


def _checked_image(image: Any, index: int) -> Any:
    if isinstance(image, Mapping) and image.keys() == UNDECODED:
        image = image["path"] if image["bytes"] is None else image["bytes"]
    if isinstance(image, (np.ndarray, torch.Tensor)) and image.ndim not in (2, 3):
        raise ValueError(
            f"inputs[{index}] holds an array of shape {tuple(image.shape)}; a picture has the axes (height, width), "
            "(height, width, channels) or (channels, height, width). Pass several pictures as a list of inputs."
        )
    if not isinstance(image, (*IMAGE_TYPES, str, bytes, os.PathLike)):
        raise ValueError(
            f"inputs[{index}] has {_describe(image)} for a picture; pass a PIL image, an array, a tensor, a local path "
            "or the bytes of an image file."
        )
    return os.fspath(image) if isinstance(image, os.PathLike) else image


def _conversation(text: str | None, images: list[Any], instruction: str | None) -> Messages:
    content = [{"type": "image", "image": image} for image in images]
    if text is not None:
        content.append({"type": "text", "text": text})
    return _with_instruction([{"role": "user", "content": content}], instruction)


def _with_instruction(messages: Messages, instruction: str | None) -> Messages:
    if not instruction or any(message["role"] == "system" for message in messages):
        return messages
    return [{"role": "system", "content": [{"type": "text", "text": instruction}]}, *messages]


def _describe(value: Any) -> str:
    return "None" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
