"""Directories that appear complete, whatever a killed process left."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from hf_mmembed.staging import require_empty, staged


@pytest.mark.parametrize("there", [True, False])
def test_what_a_killed_process_left_is_removed(tmp_path, there):
    out = tmp_path / "deep" / "out"
    if there:
        out.mkdir(parents=True)
    killed = staged(out)
    (killed.__enter__() / "weights").write_text("half of them")
    require_empty(out)
    with staged(out) as written:
        (written / "config.json").write_text("{}")
    assert [entry.name for entry in out.iterdir()] == ["config.json"]
    assert [entry.name for entry in out.parent.iterdir()] == ["out"]
    with pytest.raises(FileExistsError, match="not an empty directory"):
        require_empty(out)


def test_a_full_disk_is_told(tmp_path, full_disk):
    out = tmp_path / "out"
    with full_disk(1000), pytest.raises(OSError, match="/out: .*is the disk full"), staged(out) as written:
        save_file({"weight": torch.zeros(4000)}, written / "model.safetensors")
    assert not list(tmp_path.iterdir())
