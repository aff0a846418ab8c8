"""The Qwen families' image processor, with the same numbers in less time.

In: RGB pictures of Pillow. Out: the patches that transformers' own processor makes of them, bit for bit. Two things
are done differently: a picture is resized as it is rather than turned into an array and back first, and, since a byte
has only 256 values, rescaling and normalising are looked up in a table that the library's own arithmetic fills. This
file travels with the checkpoint.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from transformers import BatchFeature
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

__all__ = ["TabledQwenImages"]


class TabledQwenImages(Qwen2VLImageProcessorPil):
    """`Qwen2VLImageProcessorPil`, which Qwen2-VL, Qwen2.5-VL and Qwen3-VL use, and stored under its name."""

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

    def rescale(self, image: np.ndarray, scale: float, **kwargs: Any) -> np.ndarray:
        """Bytes by a table; other arrays as usual."""
        if image.dtype != np.uint8:
            return super().rescale(image, scale, **kwargs)
        return super().rescale(np.arange(256, dtype=np.uint8), scale, **kwargs)[image]

    def to_dict(self) -> dict[str, Any]:
        """As in `Qwen2VLImageProcessorPil`."""
        return {**super().to_dict(), "image_processor_type": "Qwen2VLImageProcessor"}


def _as_array(image: Image.Image) -> np.ndarray:
    return np.moveaxis(np.asarray(image), -1, 0)
