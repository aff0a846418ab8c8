"""Pictures of every kind are opened as what they show, or refused with the reason."""

from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hf_mmembed.model.images_mmembed import ImageError, is_url, open_image

RED = (200, 30, 40)


@pytest.fixture
def photo():
    """A picture that is different under every rotation and reflection."""
    pixels = np.zeros((6, 8, 3), dtype=np.uint8)
    pixels[:2, :3] = RED
    pixels[4, 7] = (0, 250, 0)
    return Image.fromarray(pixels)


def saved(image, path, **options):
    image.save(path, **options)
    return path


def same(left, right):
    return left.mode == right.mode == "RGB" and np.array_equal(np.asarray(left), np.asarray(right))


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "gif", "ppm"])
def test_lossless_files_give_their_pixels(photo, tmp_path, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(photo, tmp_path / f"a.{suffix}", **options)
    for source in (path, str(path), path.read_bytes()):
        assert same(open_image(source), photo)


def test_the_extension_does_not_matter(photo, tmp_path):
    path = saved(photo, tmp_path / "a.png").rename(tmp_path / "really-a-png.jpg")
    assert same(open_image(path), photo)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(photo, tmp_path, orientation):
    undo = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = photo if undo is None else photo.transpose(undo)
    path = saved(stored, tmp_path / "a.png", exif=exif)
    assert same(open_image(path), photo)
    assert same(open_image(Image.open(path)), photo)


def test_transparency_is_shown_on_white(tmp_path):
    image = Image.new("RGBA", (2, 1), (*RED, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    assert open_image(image).getpixel((1, 0)) == (255, 255, 255)
    for mode in ("LA", "RGBa"):
        assert open_image(image.convert(mode)).getpixel((1, 0)) == (255, 255, 255)
    assert open_image(image.convert("LA").convert("La")).getpixel((1, 0)) == (255, 255, 255)
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([*RED, 0, 0, 0])
    palette.putpixel((1, 0), 1)
    opened = open_image(saved(palette, tmp_path / "p.png", transparency=1))
    assert [opened.getpixel((x, 0)) for x in range(2)] == [RED, (255, 255, 255)]
    keyed = Image.new("RGB", (2, 1), RED)
    keyed.putpixel((1, 0), (1, 2, 3))
    opened = open_image(saved(keyed, tmp_path / "k.png", transparency=(1, 2, 3)))
    assert [opened.getpixel((x, 0)) for x in range(2)] == [RED, (255, 255, 255)]


def test_a_picture_that_is_right_already_is_not_copied(photo):
    assert open_image(photo) is photo


def test_cmyk_and_sixteen_bits_keep_their_brightness(tmp_path):
    cmyk = open_image(saved(Image.new("CMYK", (4, 4), (0, 0, 0, 0)), tmp_path / "a.jpg", quality=100))
    assert min(cmyk.getpixel((1, 1))) > 250
    deep = Image.fromarray(np.array([[0, 257 * 128, 65535]], dtype=np.uint16))
    opened = open_image(saved(deep, tmp_path / "deep.png"))
    assert [opened.getpixel((x, 0)) for x in range(3)] == [(0,) * 3, (128,) * 3, (255,) * 3]
    with pytest.raises(ImageError, match="mode F.*whose scale is unknown"):
        open_image(Image.fromarray(np.array([[0.0, 7e4]], dtype=np.float32)))


def test_an_animation_is_its_first_frame(photo, tmp_path):
    frames = [photo, Image.new("RGB", photo.size, "blue")]
    path = saved(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert same(open_image(path), photo)


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1), (3, 3)])
def test_small_and_narrow_pictures_are_pictures(size):
    assert open_image(Image.new("RGB", size)).size == size


@pytest.mark.parametrize(
    ("content", "wrong", "advice"),
    [
        (None, "there is no file", "correct the path"),
        (b"", "is empty", "copy or download it again"),
        ("cut", "is broken or breaks off", "copy or download it again"),
        ((12_000, 10_000), "is 12000x10000 = 120,000,000 pixels", "scale it down"),
        ((60_000, 60_000), "has too many pixels", "scale it down"),
        ((1, 4000), "is 1x4000", "crop it"),
        (b"hello", "is not a readable image", "to JPEG"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_errors_name_the_file_and_say_what_to_do(photo, tmp_path, content, wrong, advice):
    path = tmp_path / "a.png"
    if content == "cut":
        content = saved(photo, path).read_bytes()[:-30]
    if content is not None:
        path.write_bytes(png_header(*content) if isinstance(content, tuple) else content)
    with pytest.raises(ImageError) as caught:
        open_image(path)
    message = str(caught.value)
    assert path.name in message and wrong in message and message.endswith(f"{advice}."), message


def test_a_sliver_is_refused():
    with pytest.raises(ImageError, match="1x4000: one side is more than 200 times the other"):
        open_image(Image.new("RGB", (1, 4000)))


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tiff", "avif"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_file_that_breaks_off_is_refused(tmp_path, suffix, share):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = saved(Image.fromarray(noise), tmp_path / f"a.{suffix}")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ImageError, match="breaks off|not a readable image"):
        open_image(path)


def png_header(width, height):
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("side", [9_500, 12_000, 60_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_by_its_header(tmp_path, side):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(side, side))
    for source in (path, path.read_bytes()):
        with pytest.raises(ImageError, match="pixels|DecompressionBombError"):
            open_image(source)


def test_avif_is_read_and_a_broken_one_refused():
    encoded = io.BytesIO()
    Image.new("RGB", (32, 32), RED).save(encoded, "AVIF")
    data = encoded.getvalue()
    assert np.abs(np.subtract(open_image(data).getpixel((9, 9)), RED)).max() < 9
    rng = np.random.default_rng(0)
    for _ in range(100):
        broken = bytearray(data)
        for place in rng.integers(0, len(data), 5):
            broken[place] = rng.integers(256)
        try:
            open_image(bytes(broken))  # by luck it may still be a picture
        except ImageError as error:
            assert "broken or breaks off" in str(error) or "convert" in str(error) or "pixels" in str(error)


def test_what_is_no_image_is_named(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "a.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (tmp_path / "a.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    for name, message in {
        "empty.png": "is empty",
        "text.png": "not a readable image",
        "photo.heic": "not a readable image .* such as HEIC, to JPEG",
        "a.svg": "not a readable image",
        "a.eps": "not a readable image",
        "absent.png": "there is no file",
        ".": "is a folder, not a picture file",
        "pipe.png": "pipe.png is a pipe, socket or device, not a picture file",
    }.items():
        with pytest.raises(ImageError, match=message):
            open_image(tmp_path / name)
    with pytest.raises(ImageError, match="a dict is no image"):
        open_image({"bytes": b""})
    with pytest.raises(ImageError, match="path of the picture is empty"):
        open_image("")
    with pytest.raises(ImageError, match=r"'a\\x00.png' is no valid file name"):
        open_image("a\0.png")


def test_a_closed_picture_is_named(photo, tmp_path):
    with Image.open(saved(photo, tmp_path / "a.png")) as lazy:
        pass
    with pytest.raises(ImageError, match="closed before its pixels were read"):
        open_image(lazy)
    decoded = photo.copy()
    decoded.close()
    with pytest.raises(ImageError, match="closed image"):
        open_image(decoded)


def test_a_transparency_that_does_not_fit_is_named():
    image = Image.new("L", (2, 2))
    image.info["transparency"] = b"\0"
    with pytest.raises(ImageError, match="broken.*TypeError"):
        open_image(image)


@pytest.mark.parametrize("url", ["http://host/a.png", "https://host/a.png", "data:image/png;base64,AAAA", "file:///a"])
def test_urls_are_not_fetched(url, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("fetched"))
    assert is_url(url)
    with pytest.raises(ImageError, match="URLs are not fetched.*allow_urls=True"):
        open_image(url)


def test_urls_are_fetched_when_allowed(photo, monkeypatch):
    buffer = io.BytesIO()
    photo.save(buffer, "png")
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: io.BytesIO(buffer.getvalue()))
    assert same(open_image("https://host/a.png", allow_urls=True), photo)
    with pytest.raises(ImageError, match="use http or https"):
        open_image("file:///etc/hostname", allow_urls=True)


@pytest.mark.parametrize("url", ["https://host/my pic.jpg", "http://[::1/a.png"])
def test_what_is_no_url_is_refused(url):
    with pytest.raises(ImageError, match="could not be fetched"):
        open_image(url, allow_urls=True)


def test_a_download_that_is_too_large_is_stopped(monkeypatch):
    monkeypatch.setattr("hf_mmembed.model.images_mmembed.MAX_DOWNLOAD_BYTES", 10)
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: io.BytesIO(bytes(1000)))
    with pytest.raises(ImageError, match="larger than 10 bytes"):
        open_image("https://host/a.png", allow_urls=True)


def test_paths_are_no_urls():
    assert not any(
        map(is_url, ["a.png", "/tmp/a.png", "C:\\a.png", "C:/a.png", "", "my photo: cat.png", "a:b.png", None, 3])
    )


@given(st.integers(5, 9), st.integers(5, 9), st.sampled_from([1, 3, 4]), st.integers(0, 2**32 - 1))
def test_arrays_and_tensors_of_either_layout_agree(height, width, channels, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    expected = open_image(Image.fromarray(pixels.squeeze(2) if channels == 1 else pixels))
    first = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    for array in (
        pixels,
        first,
        torch.from_numpy(pixels),
        torch.from_numpy(first),
        pixels / 255,
        pixels.astype(np.int64),
    ):
        assert same(open_image(array), expected)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 5, 5, 3), np.uint8), r"shape \(2, 5, 5, 3\)"),
        (np.zeros((5, 5, 2), np.uint8), r"shape \(5, 5, 2\)"),
        (np.zeros((0, 5, 3), np.uint8), "has no pixels"),
        (np.full((5, 5, 3), 2.0), "from 2 to 2; they have to lie between 0 and 1"),
        (np.full((5, 5, 3), -1), "from -1 to -1; they have to lie between 0 and 255"),
        (np.full((5, 5, 3), np.nan), "from nan to nan"),
        (np.zeros((5, 5), complex), "an array of complex128 is no image"),
        (np.full((5, 5), "a"), "an array of <U1 is no image"),
    ],
)
def test_arrays_that_are_no_picture_are_refused(array, message):
    with pytest.raises(ImageError, match=message):
        open_image(array)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_tensors_of_any_precision_are_pictures(dtype):
    assert open_image(torch.ones(3, 4, 5, dtype=dtype)).getpixel((0, 0)) == (255, 255, 255)


def test_the_ambiguous_three_by_three_follows_its_library():
    pixels = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    assert np.array_equal(np.asarray(open_image(pixels)), pixels)
    assert np.array_equal(np.asarray(open_image(torch.from_numpy(pixels))), pixels.transpose(1, 2, 0))
