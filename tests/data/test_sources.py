"""Folders and the choice of a reader."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from hf_mmembed.data import Row, open_source


def save(path: Path, color="red", size=(8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def names(source) -> list[str]:
    return [source.name(row) for row in range(len(source))]


def test_a_folder_is_read_recursively_in_the_order_of_names(tmp_path):
    for name in ("b.png", "a b/ü 漢.jpg", "a b/c/Z.WEBP", "t.tiff", "x.gif", "y.bmp", "z.jpeg", "w.tif"):
        save(tmp_path / name)
    for name in ("c.avif", "d.jfif", "e.jpe", "f.HEIC"):
        (tmp_path / name).touch()
    source = open_source(tmp_path)
    assert names(source) == [
        "a b/c/Z.WEBP",
        "a b/ü 漢.jpg",
        "b.png",
        "c.avif",
        "d.jfif",
        "e.jpe",
        "f.HEIC",
        "t.tiff",
        "w.tif",
        "x.gif",
        "y.bmp",
        "z.jpeg",
    ]
    assert source[1] == Row("a b/ü 漢.jpg", image=tmp_path / "a b/ü 漢.jpg")
    assert source.notes == [] and source.kind == "folder"


def test_other_files_are_counted_and_hidden_ones_left_out(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / ".hidden.png")
    save(tmp_path / ".thumbnails/b.png")
    for name in ("drawing.svg", "page.EPS", "notes.txt", "README"):
        (tmp_path / name).write_text("x")
    source = open_source(tmp_path)
    assert names(source) == ["a.png"]
    assert source.notes == [
        "left out 4 files that are no pictures by extension (no extension 1, .eps 1, .svg 1, .txt 1)"
    ]


def test_links_are_followed_once_and_loops_end(tmp_path):
    save(tmp_path / "in/a.png")
    save(tmp_path / "elsewhere/b.png")
    (tmp_path / "in/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/loop").symlink_to(tmp_path / "in")
    (tmp_path / "in/c.png").symlink_to(tmp_path / "in/a.png")
    (tmp_path / "in/broken.png").symlink_to(tmp_path / "nowhere.png")
    found = names(open_source(tmp_path / "in"))
    assert found == ["a.png", "again/b.png", "broken.png", "c.png"]


def test_a_folder_goes_before_links_to_it(tmp_path):
    save(tmp_path / "in/b/deep/a.png")
    (tmp_path / "in/a").symlink_to(tmp_path / "in/b/deep")
    (tmp_path / "in/z").symlink_to(tmp_path / "in/b")
    assert names(open_source(tmp_path / "in")) == ["b/deep/a.png"]


def test_the_output_inside_the_input_is_left_out(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "index/sheet.png")
    assert names(open_source(tmp_path, exclude=[tmp_path / "index"])) == ["a.png"]


def test_a_name_that_is_not_utf8_is_reported(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes((tmp_path / "a.png").read_bytes())
    source = open_source(tmp_path)
    assert names(source) == ["a.png"]
    assert [item.name for item in source.unreadable] == ["caf\\xe9.png"]
    assert "rename" in source.unreadable[0].reason


def test_an_input_whose_name_is_not_utf8_is_to_be_renamed(tmp_path):
    save(tmp_path / os.fsdecode(b"q_\xff") / "a.png")
    with pytest.raises(ValueError, match=r"q_\\xff is not valid UTF-8: rename it"):
        open_source(tmp_path / os.fsdecode(b"q_\xff"))


def test_what_cannot_be_reached_is_reported_and_the_rest_listed(tmp_path, monkeypatch):
    save(tmp_path / "a.png")
    (tmp_path / "far.png").symlink_to("x" * 300)
    monkeypatch.chdir(tmp_path)
    for _ in range(4096 // 251 + 1):
        os.mkdir("d" * 250)
        os.chdir("d" * 250)
    os.chdir(tmp_path)
    source = open_source(tmp_path)
    assert names(source) == ["a.png"]
    assert [(item.name[:7], item.reason.partition(": ")) for item in source.unreadable] == [
        ("far.png", ("it cannot be reached", ": ", "File name too long")),
        ("ddddddd", ("the folder cannot be listed", ": ", "File name too long")),
    ]


def test_one_picture_is_a_source(tmp_path):
    source = open_source(save(tmp_path / "only one.png"))
    assert names(source) == ["only one.png"] and source[0].path == str(tmp_path / "only one.png")


def test_the_fingerprint_follows_the_file(tmp_path):
    path = save(tmp_path / "a.png")
    source = open_source(tmp_path)
    before = source.fingerprint(0)
    assert source.fingerprint(0) == before
    save(path, "blue")
    os.utime(path, ns=(1, 1))
    changed = source.fingerprint(0)
    path.unlink()
    assert len({before, changed, source.fingerprint(0)}) == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.mkdir(), "no picture in .*: it is empty.*sub-folders"),
        (lambda path: (path.mkdir(), (path / "a.txt").touch()), r"it holds 1 files .*\.txt 1"),
        (lambda path: path.write_text("x"), "cannot read .*none of .*pictures.*tables"),
        (lambda path: None, "no such input"),
    ],
)
def test_nothing_to_read_says_so(tmp_path, make, message):
    make(tmp_path / "input")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_source(tmp_path / "input")


def test_columns_of_a_folder_are_an_error(tmp_path):
    save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="has no columns"):
        open_source(tmp_path, text_column="text")


def test_a_read_only_folder_is_only_read(tmp_path):
    save(tmp_path / "in/a.png")
    (tmp_path / "in").chmod(0o555)
    try:
        before = sorted((tmp_path / "in").iterdir())
        source = open_source(tmp_path / "in")
        assert names(source) == ["a.png"] and sorted((tmp_path / "in").iterdir()) == before
    finally:
        (tmp_path / "in").chmod(0o755)
