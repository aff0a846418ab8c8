"""The drawn world as files: an image folder with captions, in the `imagefolder` convention of datasets."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import cast, get_args

from hf_mmembed.data.captions import caption
from hf_mmembed.data.rows import IMAGE_SUFFIXES
from hf_mmembed.data.scenes import Split, draw, random_scene
from hf_mmembed.data.tables import METADATA_NAMES

__all__ = ["draw_folder"]

_METADATA = "metadata.jsonl"
_PICTURE = re.compile(r"picture-\d{5,}\.png")


def draw_folder(out: Path, number: int, *, split: str = "test", seed: int = 0, pixels: int = 192) -> int:
    """Writes `number` PNG files and a `metadata.jsonl` with `file_name` and `text`; returns the number.

    What an earlier call drew there is replaced when everything is drawn. The same arguments give the same files.

    Raises:
        ValueError: `split` is not one of train, mine, val, test, or `out` holds pictures or metadata of another origin.
    """
    if split not in get_args(Split):
        raise ValueError(f"split is {split!r}; choose one of {', '.join(get_args(Split))}")
    out.mkdir(parents=True, exist_ok=True)
    earlier = _drawn_before(out)
    rng = Random(f"{seed}/{split}")
    with TemporaryDirectory(prefix=".drawing-", dir=out) as aside:
        lines = []
        for index in range(number):
            scene = random_scene(rng, cast(Split, split))
            name = f"picture-{index:05d}.png"  # datasets would read a split name as the split
            draw(scene, rng, pixels=pixels).save(Path(aside, name))
            lines.append(json.dumps({"file_name": name, "text": caption(scene, rng)}) + "\n")
        Path(aside, _METADATA).write_text("".join(lines), encoding="utf-8")
        # A run killed from here on is repeated: at every moment the metadata names all pictures that are ours.
        for name in earlier:
            (out / name).unlink(missing_ok=True)
        for name in sorted(os.listdir(aside)):  # the metadata comes first
            os.replace(Path(aside, name), out / name)
    return number


def _drawn_before(out: Path) -> set[str]:
    """The pictures that an earlier call drew, by its metadata; refuses a folder with any others."""
    names = _named_by(out / _METADATA)
    ours = {_METADATA, *names} if names else set()
    found = {
        file.name for file in out.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES or file.name in METADATA_NAMES
    }
    foreign = sorted(found - ours)
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise ValueError(f"{out} holds {foreign[0]}{more}, not drawn by this command: choose another folder")
    return names


def _named_by(metadata: Path) -> set[str]:
    """The pictures that the metadata names, if it is as `draw_folder` writes it."""
    try:
        rows = [json.loads(line) for line in metadata.read_bytes().splitlines()]
    except (FileNotFoundError, ValueError):
        return set()
    written = all(isinstance(row, dict) and row.keys() == {"file_name", "text"} for row in rows)
    names = {str(row["file_name"]) for row in rows} if written else set()
    return names if all(map(_PICTURE.fullmatch, names)) else set()
