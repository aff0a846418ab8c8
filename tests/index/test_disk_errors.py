"""What a disk does not give for a while is neither given up nor embedded again."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from PIL import Image

from tests.index.fake_embedder import FakeEmbedder
from tests.index.test_embedding import contents, copy_of, run


@pytest.mark.parametrize("broken", ["07.png", ".png"])
def test_what_a_disk_failed_to_give_is_tried_again(many_pictures, tmp_path, monkeypatch, broken):
    """Nothing of the file has changed: it is not the file that was at fault."""
    folder, out, opened = copy_of(many_pictures, tmp_path), tmp_path / "out", Path.open

    def failing(path, *args, **options):
        if path.name.endswith(broken):
            raise OSError(errno.ESTALE, "Stale file handle")
        return opened(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", failing)
        if broken == ".png":
            with pytest.raises(ValueError, match=r"nothing in .* could be embedded \(20 items skipped"):
                run(folder, out)
        else:
            [_, stale, _] = run(folder, out).skipped
            assert stale.name == "07.png" and "Stale file handle" in stale.reason
    again = FakeEmbedder()
    report = run(folder, out, again)
    assert again.embedded == report.new == (18 if broken == ".png" else 1)
    assert [item.name for item in report.skipped] == ["05 cut.png", "11 empty.png"]
    run(folder, tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize("call", ["scandir", "stat"])
def test_what_a_disk_hides_for_a_while_is_not_embedded_again(many_pictures, tmp_path, monkeypatch, call):
    folder, out = copy_of(many_pictures, tmp_path), tmp_path / "out"
    hidden = folder / "hidden"
    hidden.mkdir()
    for number in range(8):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(hidden / f"{number}.png")
    run(folder, out)
    before = contents(out)
    module, real = (os, os.scandir) if call == "scandir" else (Path, Path.stat)

    def failing(path, *args, **options):
        if Path(path) == hidden if call == "scandir" else Path(path).parent == hidden:
            raise OSError(errno.EIO, "Input/output error")
        return real(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, call, failing)
        assert any("Input/output error" in item.reason for item in run(folder, out).skipped)
    again = FakeEmbedder()
    run(folder, out, again)
    assert again.embedded == 0 and contents(out) == before
