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


def test_drawing_again_leaves_exactly_the_new_pictures(tmp_path: Path) -> None:
    for name, numbers in (("again", (6, 2)), ("once", (2,))):
        for number in numbers:
            draw_folder(tmp_path / name, number, pixels=32)
    contents = [{file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("again", "once")]
    assert contents[0] == contents[1] and len(contents[0]) == 3


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.jsonl", '{"file_name": "picture-00000.png", "text": "my cat", "stars": 5}'),
        ("metadata.jsonl", '{"file_name": "cat.png", "text": "my cat"}'),
        ("metadata.jsonl", "no JSON"),
        ("metadata.csv", "file_name,text\n"),
        ("cat.JPG", ""),
        ("picture-00000.png", "not named by any metadata of ours"),
    ],
)
def test_a_folder_with_other_pictures_is_left_alone(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    (tmp_path / "notes.txt").write_text("this does no harm")
    with pytest.raises(ValueError, match=f"holds {name}, not drawn by this command: choose another folder"):
        draw_folder(tmp_path, 2, pixels=32)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([name, "notes.txt"])
    assert (tmp_path / name).read_text() == content
