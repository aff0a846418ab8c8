"""Every odd picture file a folder may hold: embedded as it should be seen, or skipped with the reason."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from hf_mmembed.data import open_source
from hf_mmembed.index import Index, build_index, embed_query, embed_source
from tests.index.fake_embedder import FakeEmbedder, identity

# Four colours in the corners: what is upright, and what is not, shows.
CORNERS = np.array([[(200, 0, 0), (0, 200, 0)], [(0, 0, 200), (200, 200, 0)]], np.uint8)
UPRIGHT = Image.fromarray(CORNERS.repeat(16, 0).repeat(16, 1))
TURNED_BACK = {  # what a camera stores so that this EXIF orientation shows UPRIGHT
    1: UPRIGHT,
    2: UPRIGHT.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: UPRIGHT.transpose(Image.Transpose.ROTATE_180),
    4: UPRIGHT.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: UPRIGHT.transpose(Image.Transpose.TRANSPOSE),
    6: UPRIGHT.transpose(Image.Transpose.ROTATE_90),
    7: UPRIGHT.transpose(Image.Transpose.TRANSVERSE),
    8: UPRIGHT.transpose(Image.Transpose.ROTATE_270),
}


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def bomb(width=30_000, height=30_000) -> bytes:
    """A valid PNG header that promises 900 million pixels, and hardly any data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def transparent_palette() -> Image.Image:
    """UPRIGHT beside a transparent index whose palette colour is black."""
    image = Image.new("P", (64, 32), 0)
    image.putpalette([0, 0, 0, *CORNERS.reshape(-1).tolist()])
    places = np.array([[1, 2], [3, 4]], np.uint8).repeat(16, 0).repeat(16, 1)
    pixels = np.zeros((32, 64), np.uint8)
    pixels[:, :32] = places
    image.putdata(pixels.reshape(-1).tolist())
    return image


def animation(kind: str) -> bytes:
    others = [Image.new("RGB", (32, 32), "white") for _ in range(2)]
    return encoded(
        UPRIGHT, kind, save_all=True, append_images=others, **({"lossless": True} if kind == "WEBP" else {})
    )


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "pictures"
    folder.mkdir()
    exif = Image.Exif()
    files = {
        "png in a.jpg": encoded(UPRIGHT),
        "animated.gif": animation("GIF"),
        "animated.png": animation("PNG"),
        "animated.webp": animation("WEBP"),
        "plain.bmp": encoded(UPRIGHT, "BMP"),
        "plain.tiff": encoded(UPRIGHT, "TIFF"),
        "cmyk.tif": encoded(UPRIGHT.convert("CMYK"), "TIFF"),
        "alpha.png": encoded(Image.merge("RGBA", (*UPRIGHT.split(), Image.new("L", (32, 32), 255)))),
        "palette.png": encoded(transparent_palette(), transparency=0),
        "deep grey.png": encoded(Image.fromarray(np.linspace(0, 65535, 1024).astype(np.uint16).reshape(32, 32))),
        "flat grey.png": encoded(Image.fromarray(np.linspace(0, 255, 1024).astype(np.uint8).reshape(32, 32))),
        "1x1.png": encoded(Image.new("RGB", (1, 1), "teal")),
        "truncated.png": encoded(UPRIGHT)[:-60],
        "truncated.jpg": encoded(UPRIGHT.resize((256, 256)), "JPEG")[:-400],
        "truncated.webp": encoded(UPRIGHT.resize((256, 256)), "WEBP")[:-60],
        "empty.png": b"",
        "header only.png": b"\x89PNG\r\n\x1a\n",
        "text.png": b"not a picture at all",
        "page.jpg": b"<html><body>404</body></html>",
        "drawing.png": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "program.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "bomb.png": bomb(),
        "1x4000.png": encoded(Image.new("RGB", (1, 4000), "teal")),
    }
    for orientation, image in TURNED_BACK.items():
        exif[0x0112] = orientation
        files[f"exif {orientation}.png"] = encoded(image, exif=exif)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "folder.png").mkdir()
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    out = folder.parent / "out"
    report = embed_source(open_source(folder), FakeEmbedder(), identity(), out, shard_size=10)
    build_index(out, report)
    return folder, out, report


UPRIGHT_NAMES = [
    "png in a.jpg",
    "animated.gif",
    "animated.png",
    "animated.webp",
    "plain.bmp",
    "plain.tiff",
    "cmyk.tif",
    "alpha.png",
    *(f"exif {orientation}.png" for orientation in TURNED_BACK),
]
SKIPPED = {
    "truncated.png": "broken or breaks off",
    "truncated.jpg": "broken or breaks off",
    "truncated.webp": "not a readable image",
    "empty.png": "0 bytes",
    "header only.png": "not a readable image",
    "text.png": "not a readable image",
    "page.jpg": "not a readable image",
    "drawing.png": "not a readable image",
    "program.png": "not a readable image",
    "bomb.png": "pixels",
    "1x4000.png": "1x4000: one side is more than 200 times the other",
    "gone.png": "no file",
}


def test_every_bad_file_is_skipped_with_its_reason_and_no_other(indexed):
    _, _, report = indexed
    reasons = {item.name: item.reason for item in report.skipped}
    assert reasons.keys() == SKIPPED.keys()
    for name, words in SKIPPED.items():
        assert words in reasons[name], (name, reasons[name])
        assert "\n" not in reasons[name]


def test_nothing_stands_in_for_a_bad_file(indexed, fake):
    _, out, report = indexed
    index = Index(out)
    names = {hit.name for hit in index.search(embed_query(fake, text="x"), k=100)}
    assert names.isdisjoint(SKIPPED) and len(names) == len(index) == report.manifest.embedded
    assert len(names) + len(SKIPPED) == report.manifest.rows


@pytest.mark.parametrize("name", UPRIGHT_NAMES)
def test_odd_encodings_of_one_picture_get_its_embedding(indexed, fake, name):
    folder, _, _ = indexed
    expected = embed_query(fake, image=UPRIGHT)
    np.testing.assert_allclose(embed_query(fake, image=folder / name), expected, atol=2e-2 if "cmyk" in name else 1e-6)
    hits = Index(indexed[1]).search(expected, k=len(UPRIGHT_NAMES))
    assert {hit.name for hit in hits} == set(UPRIGHT_NAMES)


def test_sixteen_bits_are_scaled_not_clipped(indexed, fake):
    folder, _, _ = indexed
    deep, flat = (embed_query(fake, image=folder / f"{name} grey.png") for name in ("deep", "flat"))
    np.testing.assert_allclose(deep, flat, atol=5e-3)


def test_transparent_means_white(indexed, fake):
    folder, _, _ = indexed
    seen = Image.new("RGB", (64, 32), "white")
    seen.paste(UPRIGHT, (0, 0))
    np.testing.assert_allclose(
        embed_query(fake, image=folder / "palette.png"), embed_query(fake, image=seen), atol=1e-6
    )
