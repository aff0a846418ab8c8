"""What is listed of a folder that was on a Mac."""

from __future__ import annotations

import pytest

from hf_mmembed.visible import visible


def test_hidden_files_and_folders_are_not_listed(tmp_path):
    folder = tmp_path / ".cache"
    for name in ("b.json", "a.json", "._a.json", ".DS_Store", "__MACOSX/c.json", ".git/d.json", "deep/e.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    assert [path.name for path in visible(folder)] == ["a.json", "b.json", "deep"]
    assert [path.name for path in visible(folder, "**/*.json")] == ["a.json", "b.json", "e.json"]
    with pytest.raises(FileNotFoundError):
        visible(folder / "none")
