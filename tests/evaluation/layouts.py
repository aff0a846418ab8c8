"""Miniature benchmarks in the official layouts, and encoders that know, guess or refuse.

Everything is about numbers: a picture shows one as its colour, a text names it as ``#7``. An oracle reads the number.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from hf_mmembed.evaluation.items import Item, digest

DIM = 64


def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 10, 20)).save(file, "PNG")
    return file.getvalue()


def number_in(data: bytes) -> int:
    return Image.open(io.BytesIO(data)).getpixel((0, 0))[0]


class Fake:
    """An encoder without a model; `vector` maps an item to its embedding. Counts what it embeds."""

    def __init__(self, vector: Callable[[Item], np.ndarray], name: str = "fake") -> None:
        self.vector = vector
        self.name = self.key = name
        self.metadata: dict[str, Any] = {"embedding_dimension": DIM}
        self.seen: list[Item] = []

    def __call__(self, items: Sequence[Item]) -> np.ndarray:
        self.seen += items
        return np.stack([self.vector(item) for item in items]).astype(np.float32)


def one_hot(number: int) -> np.ndarray:
    return np.eye(DIM)[number % DIM]


def meant(item: Item) -> int:
    """The number that an item is about: what its text says, else what its (first) picture shows."""
    found = re.findall(r"#(\d+)", item.text or "")
    return int(found[-1]) if found else number_in(item.images[0].read())


def oracle() -> Fake:
    return Fake(lambda item: one_hot(meant(item)), "oracle")


def guesser() -> Fake:
    return Fake(lambda item: np.random.default_rng(list(digest(item))).standard_normal(DIM), "guesser")


def constant() -> Fake:
    return Fake(lambda item: np.linspace(0.1, 1, DIM), "constant")


def write_pictures(folder: Path, numbers: Sequence[int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (folder / f"{number}.png").write_bytes(picture(number))


def write_zip(file: Path, members: dict[str, bytes]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def write_parquet(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), file)


def write_jsonl(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_v1(root: Path, name: str, rows: list[dict[str, Any]]) -> None:
    write_parquet(root / name / "test-00000-of-00001.parquet", rows)


def v1_vqa(number: int, candidates: Sequence[str]) -> dict[str, Any]:
    return {
        "qry_text": "<|image_1|>\nRepresent the given image with the following question: Which number?\n",
        "qry_img_path": f"GQA/{number}.png",
        "tgt_text": list(candidates),
        "tgt_img_path": [""] * len(candidates),
    }


def write_small_v1(root: Path, rows: int = 12, candidates: int = 8) -> None:
    """GQA (picture to text) and MSCOCO_t2i (text to picture) with `rows` queries each."""
    numbers = [[(row + step) % 40 for step in range(candidates)] for row in range(rows)]
    write_v1(root, "GQA", [v1_vqa(own[0], [f"#{number}" for number in own]) for own in numbers])
    write_v1(
        root,
        "MSCOCO_t2i",
        [
            {
                "qry_text": f"Find me an everyday image that matches the given caption: It shows #{own[0]}.\n",
                "qry_img_path": "",
                "tgt_text": ["<|image_1|>\nRepresent the given image.\n"] * candidates,
                "tgt_img_path": [f"GQA/{number}.png" for number in own],
            }
            for own in numbers
        ],
    )
    write_pictures(root / "images" / "GQA", range(40))


def write_frames(folder: Path, numbers: Sequence[int], *, name: str = "frame_{}.jpg") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for place, number in enumerate(numbers, 1):
        (folder / name.format(place)).write_bytes(picture(number))
