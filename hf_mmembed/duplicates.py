"""Find identical inputs, so that each is embedded once.

In: conversations as `hf_mmembed.inputs.as_messages` returns them. Out: which of them are the first of their
kind, and which first one each input repeats. Two inputs are identical when their roles, texts and pictures are: text
by its characters, a picture by its file's bytes (a path, the bytes, a PIL image not decoded yet) or by its pixels.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image

__all__ = ["unique_inputs"]

EXIF_ORIENTATION = 0x0112
TAIL_BYTES = 64


def unique_inputs(conversations: Sequence[list[dict[str, Any]]]) -> tuple[list[int], list[int]]:
    """Indices of the distinct conversations, and for every conversation its place among the distinct ones.

    Hashing every pixel of every picture would cost more than small models take to embed it, so pictures are first
    compared by a sketch (64 pixels, or the length and the last bytes of a file), and hashed in full only where two
    sketches agree.

    Args:
        conversations: Chat messages, one list per input.

    Returns:
        ``(firsts, places)`` with ``places[i]`` such that ``conversations[firsts[places[i]]]`` is identical to
        ``conversations[i]``; ``firsts`` is increasing, so the order of first appearance is kept.

    Example:
        >>> red, blue = ([{"role": "user", "content": [{"type": "text", "text": t}]}] for t in ("red", "blue"))
        >>> unique_inputs([red, blue, red])
        ([0, 1], [0, 1, 0])
    """
    keys = [_key(messages, _sketch) for messages in conversations]
    repeated = {key for key, count in Counter(keys).items() if count > 1}
    place_of: dict[Hashable, int] = {}
    firsts: list[int] = []
    places: list[int] = []
    for index, key in enumerate(keys):
        if key in repeated:
            key = _key(conversations[index], _digest)
        place = place_of.setdefault(key, len(firsts))
        if place == len(firsts):
            firsts.append(index)
        places.append(place)
    return firsts, places


def _key(messages: list[dict[str, Any]], image_key: Callable[[Any], Hashable]) -> Hashable:
    """Everything the model can tell about a conversation; text stands for itself, a picture for its ``image_key``."""
    turns: list[Hashable] = []
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            turns.append((message["role"], content))
            continue
        parts: list[Hashable] = [message["role"]]
        for part in content:
            if part.get("type") == "text":
                parts.append(("text", part.get("text")))
            elif part.get("type") == "image" and "image" in part:
                parts.append(("image", _key_of_image(part["image"], image_key)))
            else:
                parts.append(("other", id(part)))
        turns.append(tuple(parts))
    return tuple(turns)


def _key_of_image(image: Any, image_key: Callable[[Any], Hashable]) -> Hashable:
    """The key of a picture; the path or the object where it cannot be read, which is reported when it is opened."""
    try:
        return image_key(image)
    except (OSError, ValueError):
        return image if isinstance(image, str) else id(image)


def _sketch(image: Any) -> Hashable:
    """A cheap key that identical pictures share: different sketches mean different pictures, not the reverse."""
    if isinstance(image, str):
        return _of_file(image, _tail)
    if isinstance(image, bytes):
        return len(image), image[-TAIL_BYTES:]
    if isinstance(image, Image.Image):
        if getattr(image, "tile", None):
            return image.size, _of_undecoded(image, _tail)
        if 0 in image.size:
            return image.mode, image.size
        return image.mode, image.size, image.resize((8, 8), Image.Resampling.NEAREST).tobytes()
    if isinstance(image, (np.ndarray, torch.Tensor)):
        return str(image.dtype), tuple(image.shape), _bytes(image[..., :: max(1, image.shape[-1] // 8)][:1])
    return id(image)


def _digest(image: Any) -> Hashable:
    """A key that only identical pictures share (BLAKE2b, 128 bits)."""
    if isinstance(image, str):
        return _of_file(image, _file_digest)
    if isinstance(image, bytes):
        return _hash(image)
    if isinstance(image, Image.Image):
        if getattr(image, "tile", None):
            return image.tell(), _of_undecoded(image, _file_digest)
        appearance = (image.getpalette(), image.info.get("transparency"), image.getexif().get(EXIF_ORIENTATION))
        return image.mode, image.size, str(appearance), _hash(image.tobytes())
    if isinstance(image, (np.ndarray, torch.Tensor)):
        return str(image.dtype), tuple(image.shape), _hash(_bytes(image))
    return id(image)


def _of_file(path: str, key: Callable[[BinaryIO], Hashable]) -> Hashable:
    if not os.path.isfile(path):  # a pipe would be waited for, a device has no end
        raise OSError(f"{path} is no file")
    with open(path, "rb") as file:
        return key(file)


def _of_undecoded(image: Image.Image, key: Callable[[BinaryIO], Hashable]) -> Hashable:
    """The key of the open file behind an image whose pixels are still to be read; the image alone if it is closed."""
    file = getattr(image, "fp", None)
    return id(image) if file is None or file.closed else key(file)


def _tail(file: BinaryIO) -> tuple[int, bytes]:
    position = file.tell()
    length = file.seek(0, os.SEEK_END)
    file.seek(max(0, length - TAIL_BYTES))
    tail = file.read(TAIL_BYTES)
    file.seek(position)
    return length, tail


def _file_digest(file: BinaryIO) -> bytes:
    position = file.tell()
    file.seek(0)
    digest = _hash(file.read())
    file.seek(position)
    return digest


def _bytes(array: np.ndarray | torch.Tensor) -> bytes:
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu().contiguous().view(torch.uint8).numpy()
    return array.tobytes()


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
