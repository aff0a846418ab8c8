"""Opening images that may come from anyone: one RGB picture, or one error that says what is wrong with it.

In: a PIL image, an array or tensor, a local path, or encoded bytes. Out: a `PIL.Image` in mode RGB, upright, first
frame, transparent parts on white. Nothing is resized here; that is the backbone's own image processor.

Size is checked from the header before a pixel is decoded, only common raster formats are tried (no EPS, which runs
Ghostscript), and a file that breaks off is an error, never a half-grey picture. This file travels with the checkpoint.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import sys
import urllib.request
import zlib
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps

if TYPE_CHECKING:
    import torch

__all__ = ["MAX_ASPECT_RATIO", "MAX_IMAGE_PIXELS", "ImageError", "check_size", "is_url", "open_image"]

MAX_IMAGE_PIXELS = 89_478_485  # Pillow's own threshold for a possible decompression bomb
MAX_ASPECT_RATIO = 200  # the limit of Qwen's image processors
MAX_DOWNLOAD_BYTES = 50_000_000
UPRIGHT = 1  # of the EXIF orientations
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")  # JPEG opens MPO, the multi-picture JPEG, too
# What Pillow's decoders raise on broken files, and (LookupError) a Pillow that does not know all of these formats.
DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    RuntimeError,
    struct.error,
    zlib.error,
)


class ImageError(ValueError):
    """An image that cannot be embedded; the message says why."""


def is_url(source: object) -> bool:
    """Whether `source` is a string with a URL scheme (`http://`, `file://`, `data:` ...) rather than a local path.

    Example:

        >>> is_url("https://host/a.png"), is_url("data:image/png;base64,AA"), is_url("photos/a.png")
        (True, True, False)
    """
    if not isinstance(source, str):
        return False
    scheme, colon, rest = source.partition(":")
    return bool(colon) and scheme.isalnum() and (rest.startswith("//") or scheme.lower() == "data")


def open_image(source: Any, *, allow_urls: bool = False, max_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """Open `source` as an upright RGB picture.

    Args:
        source (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor`, `str`, `os.PathLike` or `bytes`):
            Arrays are `(height, width)`, `(height, width, 1|3|4)` or `(1|3|4, height, width)`; for the ambiguous
            ones numpy arrays are read as channels last and tensors as channels first. Integers are 0 to 255
            (`uint16`: 0 to 65535), floats 0 to 1. Strings are local paths; bytes are an encoded file.
        allow_urls (`bool`, defaults to `False`): Fetch `http` and `https` strings, up to 50 MB.
        max_pixels (`int`, defaults to 89,478,485): Larger pictures are refused before they are decoded.

    Returns:
        `PIL.Image.Image`: Mode RGB, EXIF orientation applied, first frame of an animation, transparency on white.

    Raises:
        ImageError: If there is no such regular file, it is no image of a known format, is broken or breaks off, has more
            than `max_pixels` pixels or sides more than 200 times apart, or is a URL and `allow_urls` is off.

    Example:

        >>> open_image(np.zeros((2, 3), dtype=np.uint8)).size
        (3, 2)
    """
    if isinstance(source, Image.Image):
        return _decoded(source, "the picture", max_pixels)
    if isinstance(source, np.ndarray) or _is_tensor(source):
        return _decoded(_from_array(source), "the picture", max_pixels)
    if is_url(source):
        return _read(io.BytesIO(_download(source, allow_urls)), "the file behind the URL", max_pixels)
    if isinstance(source, bytes):
        return _read(io.BytesIO(source), f"the encoded image ({len(source)} bytes)", max_pixels)
    if not isinstance(source, (str, os.PathLike)):
        raise ImageError(
            f"a {type(source).__name__} is no image; give a PIL image, an array, a tensor, a local path or bytes."
        )
    if not os.fspath(source):
        raise ImageError("the path of the picture is empty; leave the picture out where there is none.")
    path = Path(source)
    try:
        state = path.stat()
        # Opening a named pipe waits for a writer, for ever if there is none.
        stream = path.open("rb") if stat.S_ISREG(state.st_mode) else None
    except FileNotFoundError as error:
        raise ImageError(f"there is no file {path}; correct the path.") from error
    except OSError as error:
        raise ImageError(f"{path} cannot be opened ({error.strerror}).") from error
    except ValueError as error:  # a NUL byte in the name
        raise ImageError(f"{str(path)!r} is no valid file name ({error}).") from error
    if stream is None:
        kind = "folder" if stat.S_ISDIR(state.st_mode) else "pipe, socket or device"
        raise ImageError(f"{path} is a {kind}, not a picture file.")
    with stream:
        if state.st_size == 0:
            raise ImageError(f"{path} is empty (0 bytes); copy or download it again.")
        return _read(stream, str(path), max_pixels)


def _read(stream: BinaryIO, name: str, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(stream, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} has too many pixels ({error}); scale it down.") from error
    except DECODING_ERRORS as error:
        if isinstance(error, OSError) and error.errno:  # Pillow's own have none
            raise ImageError(f"{name} cannot be read ({error.strerror}).") from error
        raise ImageError(
            f"{name} is not a readable image of one of the formats {', '.join(FORMATS)} ({type(error).__name__}); "
            "convert a picture of another format, such as HEIC, to JPEG."
        ) from error
    return _decoded(image, name, max_pixels)


def _decoded(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    check_size(*image.size, max_pixels=max_pixels, name=name)
    # Pillow decodes when the pixels are asked for, and closes the file at the end of `with Image.open(...)`.
    if getattr(image, "tile", None) and getattr(image, "fp", None) is None:
        raise ImageError(f"{name} was closed before its pixels were read; call its load() first, or give its path.")
    try:
        image.load()
        if image.getexif().get(ExifTags.Base.Orientation, UPRIGHT) != UPRIGHT:  # it copies an upright picture too
            image = ImageOps.exif_transpose(image)
        return _to_rgb(image, name)
    except ImageError:
        raise
    except (*DECODING_ERRORS, Image.DecompressionBombError) as error:
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise ImageError(f"{name} is broken or breaks off ({what}); copy or download it again.") from error


def _download(url: str, allow_urls: bool) -> bytes:
    scheme = url.partition(":")[0].lower()
    if not allow_urls:
        raise ImageError(
            f"this is a {scheme} URL, and URLs are not fetched; open it yourself, or create the processor with "
            "allow_urls=True if you trust every input."
        )
    if scheme not in ("http", "https"):
        raise ImageError(f"a {scheme} URL cannot be fetched; use http or https, or open it yourself.")
    try:
        with urllib.request.urlopen(url, timeout=20) as response:
            data = response.read(MAX_DOWNLOAD_BYTES + 1)
    except (OSError, HTTPException, ValueError) as error:
        raise ImageError(f"the URL could not be fetched ({error}).") from error
    if len(data) > MAX_DOWNLOAD_BYTES:
        raise ImageError(f"the file behind the URL is larger than {MAX_DOWNLOAD_BYTES:,} bytes.")
    return data


def _is_tensor(source: object) -> bool:
    """Asked without importing torch: where it was never imported, nothing is a tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.Tensor)


def _from_array(array: np.ndarray | torch.Tensor) -> Image.Image:
    channels_first = not isinstance(array, np.ndarray)
    if not isinstance(array, np.ndarray):
        array = array.float() if array.is_floating_point() else array  # numpy has no bfloat16
    values = array if isinstance(array, np.ndarray) else array.detach().cpu().numpy()
    shape = tuple(values.shape)
    if values.ndim == 3:
        first, last = shape[0] in (1, 3, 4), shape[2] in (1, 3, 4)
        if not first and not last:
            raise ImageError(f"an array of shape {shape} is no image; use (height, width, 3) or (3, height, width).")
        if first and (channels_first or not last):
            values = values.transpose(1, 2, 0)
    elif values.ndim != 2:
        raise ImageError(f"an array of shape {shape} is no image; use (height, width, 3) or (3, height, width).")
    if 0 in shape:
        raise ImageError(f"an array of shape {shape} has no pixels.")
    return Image.fromarray(_to_uint8(values).squeeze(2) if values.shape[2:] == (1,) else _to_uint8(values))


def _to_uint8(values: np.ndarray) -> np.ndarray:
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if values.dtype == np.uint16:
        return np.round(values / 257).astype(np.uint8)
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * 255
    if values.dtype.kind not in "iuf":
        raise ImageError(f"an array of {values.dtype} is no image; pixels are integers, floats or booleans.")
    low, high = float(values.min()), float(values.max())
    limit = 255 if np.issubdtype(values.dtype, np.integer) else 1
    if not (low >= 0 and high <= limit):
        raise ImageError(
            f"{values.dtype} pixels run from {low:g} to {high:g}; they have to lie between 0 and {limit}."
        )
    return np.round(values * (255 / limit)).astype(np.uint8)


def check_size(width: int, height: int, *, max_pixels: int = MAX_IMAGE_PIXELS, name: str = "the picture") -> None:
    """Refuse a picture by its size alone, as [`open_image`] does before it decodes one.

    Raises:
        ImageError: If it has no pixels, more than `max_pixels`, or sides more than 200 times apart.
    """
    if width == 0 or height == 0:
        raise ImageError(f"{name} is {width}x{height}: it has no pixels.")
    if width * height > max_pixels:
        raise ImageError(
            f"{name} is {width}x{height} = {width * height:,} pixels, the limit is {max_pixels:,}; scale it down."
        )
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ImageError(
            f"{name} is {width}x{height}: one side is more than {MAX_ASPECT_RATIO} times the other; crop it."
        )


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ImageError(
                f"{name} has mode {image.mode} and values from {values.min():g} to {values.max():g}, whose "
                "scale is unknown; save it with 8 or 16 bits per channel."
            )
        return Image.fromarray(_to_uint8(values.astype(np.uint16))).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")  # the only mode that Pillow turns it into
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
