"""Image processors of transformers with the same numbers in less time.

In: an image processor with Pillow's backend. Out: the same object, which makes the same pixels, bit for bit. Since a byte
has only 256 values, rescaling is looked up in a table that the library's own arithmetic fills; normalising runs along
rows of pixels rather than across the three colours of each, and in place; and the Qwen families' processor resizes a
picture as it is rather than turning it into an array and back first. This file travels with the checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from .overlay_mmembed import Overlay, lay_over

__all__ = ["QuickPixels", "QuickQwenPixels", "quicken"]


class QuickPixels(Overlay, PilBackend):
    """What makes any image processor with Pillow's backend quick."""

    name_prefix = ""  # the library stores an image processor under the name of its class

    def rescale(self, image: np.ndarray, scale: float, **kwargs: Any) -> np.ndarray:
        """Bytes by a table; other arrays as usual."""
        if image.dtype != np.uint8:
            return super().rescale(image, scale, **kwargs)
        table = super().rescale(np.arange(256, dtype=np.uint8), scale, **kwargs)
        # Every byte is a place in the table: `clip` only spares the check.
        return table.take(np.ascontiguousarray(image), mode="clip")

    def normalize(self, image: np.ndarray, mean: Any, std: Any, **kwargs: Any) -> np.ndarray:
        """`(channels, height, width)` → the same; floats with a mean and a deviation per channel, or else as usual."""
        per_channel = all(isinstance(part, Sequence) and len(part) == len(image) for part in (mean, std))
        if not (per_channel and np.issubdtype(image.dtype, np.floating)):
            return super().normalize(image, mean, std, **kwargs)
        mean, std = (np.array(part, dtype=image.dtype)[:, None, None] for part in (mean, std))
        normalized = np.subtract(image, mean, order="C")
        normalized /= std
        return normalized


class QuickQwenPixels(QuickPixels, Qwen2VLImageProcessorPil):
    """The same for `Qwen2VLImageProcessorPil`, which Qwen2-VL, Qwen2.5-VL and Qwen3-VL use."""

    def process_image(self, image: Any, *args: Any, **kwargs: Any) -> Any:
        """An RGB picture stays one until `resize`; anything else becomes an array at once, as usual."""
        if isinstance(image, Image.Image) and image.mode == "RGB":
            return image
        return super().process_image(image, *args, **kwargs)

    def resize(self, image: Any, size: Any, resample: Any, factor: int, **kwargs: Any) -> np.ndarray:
        """A picture `(width, height)` or an array `(channels, height, width)` → `(channels, height, width)`."""
        if not isinstance(image, Image.Image):
            return super().resize(image, size=size, resample=resample, factor=factor, **kwargs)
        height, width = smart_resize(
            image.height, image.width, factor, min_pixels=size.shortest_edge, max_pixels=size.longest_edge
        )
        return _as_array(image.resize((width, height), resample))

    def _preprocess(self, images: list[Any], **options: Any) -> BatchFeature:
        if not options["do_resize"]:
            images = [_as_array(image) if isinstance(image, Image.Image) else image for image in images]
        return super()._preprocess(images, **options)


def quicken(image_processor: Any) -> None:
    """Make an image processor of transformers quick, in place, if it has Pillow's backend and its arithmetic."""
    kind = type(image_processor)
    if (
        kind.__module__.startswith("transformers.")
        and issubclass(kind, PilBackend)
        and (kind.rescale, kind.normalize) == (PilBackend.rescale, PilBackend.normalize)
    ):
        lay_over(image_processor, QuickQwenPixels if kind is Qwen2VLImageProcessorPil else QuickPixels)


def _as_array(image: Image.Image) -> np.ndarray:
    return np.moveaxis(np.asarray(image), -1, 0)
