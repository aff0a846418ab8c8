"""Directories that appear complete, whatever a killed process left."""

from __future__ import annotations

import errno
import os

import pytest
import torch
from safetensors.torch import save_file

from hf_mmembed.staging import replaced, require_empty, staged
from tests.forks import exit_code


@pytest.mark.parametrize("there", [True, False])
def test_what_a_killed_process_left_is_removed(tmp_path, there):
    out = tmp_path / "deep" / "out"
    if there:
        out.mkdir(parents=True)

    def killed():
        with staged(out) as written:
            (written / "weights").write_text("half of them")
            os._exit(9)

    assert exit_code(killed) == 9
    require_empty(out)
    with staged(out) as written:
        (written / "config.json").write_text("{}")
    assert [entry.name for entry in out.iterdir()] == ["config.json"]
    assert [entry.name for entry in out.parent.iterdir()] == ["out"]
    with pytest.raises(FileExistsError, match="not an empty directory"):
        require_empty(out)


@pytest.mark.parametrize("there", [True, False])
def test_a_second_writer_is_refused_while_the_first_is_at_work(tmp_path, there):
    out = tmp_path / "out"
    if there:
        out.mkdir()
    with staged(out) as written:
        (written / "weights").write_text("of the first")
        with pytest.raises(ValueError, match=f"another process is writing to {out}: wait"), staged(out) as second:
            (second / "config.json").write_text("of the second")
        (written / "config.json").write_text("of the first")
    assert sorted((file.name, file.read_text()) for file in out.iterdir()) == [
        ("config.json", "of the first"),
        ("weights", "of the first"),
    ]
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_told(tmp_path, full_disk):
    out = tmp_path / "out"
    with full_disk(1000), pytest.raises(OSError, match="/out: .*is the disk full"), staged(out) as written:
        save_file({"weight": torch.zeros(4000)}, written / "model.safetensors")
    assert not list(tmp_path.iterdir())


def test_what_stands_there_is_replaced_when_the_new_files_are_complete(tmp_path, full_disk):
    out = tmp_path / "deep" / "out"
    for number in range(2):
        with replaced(out) as written:
            (written / str(number)).write_text("new")
        assert [entry.name for entry in out.iterdir()] == [str(number)]
    with full_disk(1000), pytest.raises(OSError, match="/out: .*is the disk full"), replaced(out) as written:
        save_file({"weight": torch.zeros(4000)}, written / "model.safetensors")
    assert [entry.name for entry in out.iterdir()] == ["1"]
    with replaced(out), pytest.raises(ValueError, match=f"another process is writing to {out}"), replaced(out):
        pass
    assert [entry.name for entry in out.parent.iterdir()] == ["out"]


def test_a_link_to_another_disk_stays_one(tmp_path):
    disk, out = tmp_path / "disk" / "out", tmp_path / "run" / "model"
    for folder in (disk, out.parent):
        folder.mkdir(parents=True)
    (disk / "old").write_text("old")
    out.symlink_to(disk)
    with replaced(out) as written:
        (written / "new").write_text("new")
    assert out.is_symlink() and [entry.name for entry in disk.iterdir()] == ["new"]


def test_new_files_are_kept_where_the_old_cannot_be_moved_away(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")

    def busy(source, target):
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr("hf_mmembed.staging.os.replace", busy)
    with (
        pytest.raises(OSError, match=f"{out} cannot be replaced .Device or resource busy.*are in {out}-"),
        replaced(out) as new,
    ):
        (new / "new").write_text("new")
    (kept,) = tmp_path.glob("out-*")
    assert [file.name for folder in (kept, out) for file in folder.iterdir()] == ["new", "old"]
    assert set(tmp_path.iterdir()) == {kept, out}


@pytest.mark.parametrize("rescue", [True, False])
@pytest.mark.parametrize("there", [True, False])
def test_nothing_is_lost_where_the_new_files_cannot_be_moved_in(tmp_path, monkeypatch, there, rescue):
    out, held = tmp_path / "out", tmp_path / ".out.unfinished"
    if there:
        out.mkdir()
        (out / "old").write_text("old")
    replace = os.replace

    def busy(source, target):
        if source == held / "files":
            raise PermissionError(errno.EACCES, "Access is denied")
        replace(source, target)

    def rename(source, target):
        if not rescue or os.path.exists(target):  # as on Windows
            raise PermissionError(errno.EACCES, "Access is denied")
        replace_anyway(source, target)

    replace_anyway = os.rename
    monkeypatch.setattr("hf_mmembed.staging.os.replace", busy)
    monkeypatch.setattr("hf_mmembed.staging.os.rename", rename)
    with pytest.raises(OSError, match="cannot be replaced .Access is denied.; the new") as error, replaced(out) as new:
        (new / "new").write_text("new")
    new_place = next(tmp_path.glob("out-*")) if rescue else held / "files"
    old_place = out if rescue else held / "old"
    assert str(new_place) in str(error.value) and (new_place / "new").read_text() == "new"
    if there:
        assert (old_place / "old").read_text() == "old"
    assert (str(old_place) in str(error.value)) == (there or rescue)
    assert held.exists() != rescue
    monkeypatch.undo()
    with replaced(out) as new:
        (new / "new").write_text("newer")
    assert [file.name for file in out.iterdir()] == ["new"] and not held.exists()


def test_old_files_that_a_killed_process_left_are_in_nobodys_way(tmp_path):
    out, left = tmp_path / "out", tmp_path / ".out.unfinished" / "old"
    for folder in (out, left):
        folder.mkdir(parents=True)
        (folder / "old").write_text("old")
    with replaced(out) as written:
        (written / "new").write_text("new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"] and (out / "new").exists()


def test_a_folder_that_looks_empty_on_a_mac_is_empty(tmp_path):
    (tmp_path / ".DS_Store").write_bytes(b"view")
    require_empty(tmp_path)
    (tmp_path / ".git").mkdir()
    with pytest.raises(FileExistsError, match="not an empty directory"):
        require_empty(tmp_path)
