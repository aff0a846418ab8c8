"""Drawn folders are image folders that datasets understands."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import load_dataset

from hf_mmembed.data.drawings import draw_folder


def test_a_drawn_folder_loads_as_an_imagefolder(tmp_path: Path) -> None:
    assert draw_folder(tmp_path / "drawn", 5, split="val", seed=1, pixels=32) == 5
    loaded = load_dataset(
        "imagefolder", data_dir=str(tmp_path / "drawn"), split="train", cache_dir=str(tmp_path / "c")
    )
    assert loaded.column_names == ["image", "text"] and len(loaded) == 5
    assert loaded[0]["image"].size == (32, 32)


def test_the_same_seed_draws_the_same_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        draw_folder(tmp_path / name, 3, seed=2, pixels=32)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_an_unknown_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'dev'"):
        draw_folder(tmp_path, 1, split="dev")
