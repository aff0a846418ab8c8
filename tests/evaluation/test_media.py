"""Pictures and frames below folders and in archives that were on a Mac."""

from __future__ import annotations

import zipfile

from hf_mmembed.evaluation.media import Pictures, frames_in


def test_the_halves_that_a_mac_splits_off_are_no_frames(tmp_path):
    for name in ("10.jpg", "2.jpg", "._2.jpg", ".DS_Store"):
        (tmp_path / name).write_bytes(b"")
    assert [frame.path.name for frame in frames_in(tmp_path)] == ["2.jpg", "10.jpg"]


def test_an_archive_of_the_finder_has_one_top_folder(tmp_path):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as file:
        for name in ("images/0.png", "images/.DS_Store", "__MACOSX/images/._0.png", ".DS_Store"):
            file.writestr(name, b"")
    pictures = Pictures([], [tmp_path / "images.zip"])
    assert pictures["0.png"] == pictures["images/0.png"]
    assert {*pictures.members[tmp_path / "images.zip"]} == {"0.png", "images/0.png"}
