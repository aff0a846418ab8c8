"""`push --dry-run`, `verify`, `export` and `tiny card` on the command line."""

from __future__ import annotations

import re
import shutil

import pytest

from hf_mmembed.cli import torchvision_advice
from hf_mmembed.cli.main import main
from hf_mmembed.hub import write_golden


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return int(stop.value.code or 0)


@pytest.fixture
def checkpoint(embedder, tmp_path):
    return shutil.copytree(embedder("qwen2_vl"), tmp_path / "model")


def test_dry_run_lists_every_file_with_size_and_hash(checkpoint, capsys):
    assert run("push", checkpoint, "org/model", "--dry-run") == 0
    shown = capsys.readouterr()
    assert "what it would delete there is not known: " in shown.err  # offline
    lines = shown.out.splitlines()
    assert re.fullmatch(r" +[\d,]+  bytes in \d+ files; nothing was sent", lines[-1])
    listed = {line.split()[2]: line.split() for line in lines[:-1]}
    assert {"model.safetensors", "golden/inputs.json", "README.md", "modeling_mmembed.py"} <= set(listed)
    size, digest, _ = listed["model.safetensors"]
    assert int(size.replace(",", "")) == (checkpoint / "model.safetensors").stat().st_size
    assert re.fullmatch(r"[0-9a-f]{64}", digest)


def test_what_must_not_be_published_ends_in_one_line_and_code_1(checkpoint, capsys):
    (checkpoint / "weights.bin").write_bytes(b"x")
    assert run("push", checkpoint, "org/model", "--dry-run") == 1
    error = capsys.readouterr().err
    assert "weights.bin" in error and "Traceback" not in error


def test_verify_exit_codes(checkpoint, capsys):
    write_golden(checkpoint)
    assert run("verify", checkpoint, "--device", "cpu") == 0
    assert "16 of 16 as published" in capsys.readouterr().out
    shutil.copy(checkpoint / "golden" / "picture-1.png", checkpoint / "golden" / "picture-0.png")
    assert run("verify", checkpoint, "--device", "cpu") == 1
    assert "FAIL" in capsys.readouterr().out


def test_export(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torchvision_advice, "find_spec", lambda name: None)
    assert run("export", checkpoint, tmp_path / "native") == 2
    assert run("export", checkpoint, tmp_path / "native", "--native") == 0
    assert "pip install torchvision" in capsys.readouterr().err
    assert (tmp_path / "native" / "1_Pooling" / "config.json").is_file()
