"""The drawn world as files: an image folder with captions, in the `imagefolder` convention of datasets."""

from __future__ import annotations

import json
import os
from pathlib import Path
from random import Random
from typing import cast, get_args

from hf_mmembed.data.captions import caption
from hf_mmembed.data.scenes import Split, draw, random_scene

__all__ = ["draw_folder"]


def draw_folder(out: Path, number: int, *, split: str = "test", seed: int = 0, pixels: int = 192) -> int:
    """Writes `number` PNG files and a `metadata.jsonl` with `file_name` and `text`; returns the number.

    The same arguments give the same files, so an interrupted run is simply repeated.

    Raises:
        ValueError: `split` is not one of train, mine, val, test.
    """
    if split not in get_args(Split):
        raise ValueError(f"split is {split!r}; choose one of {', '.join(get_args(Split))}")
    out.mkdir(parents=True, exist_ok=True)
    rng = Random(f"{seed}/{split}")
    lines = []
    for index in range(number):
        scene = random_scene(rng, cast(Split, split))
        name = f"picture-{index:05d}.png"  # datasets would read a split name as the split
        draw(scene, rng, pixels=pixels).save(out / name)
        lines.append(json.dumps({"file_name": name, "text": caption(scene, rng)}))
    aside = out / "metadata.jsonl.tmp"
    aside.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.replace(aside, out / "metadata.jsonl")
    return number
