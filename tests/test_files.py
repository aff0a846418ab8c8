"""What is said where a disk is full."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from hf_mmembed.files import saving

BY = {
    "safetensors": lambda path: save_file({"weight": torch.zeros(4000)}, path),
    "torch": lambda path: torch.save(torch.zeros(4000), path),
    "tokenizers": lambda path: Tokenizer(WordLevel({f"word {n}": n for n in range(1000)}, "word 0")).save(str(path)),
    "text": lambda path: path.write_text("x" * 4000),
}


@pytest.mark.parametrize("library", BY)
def test_a_full_disk_is_an_error_of_the_system_whoever_writes(tmp_path, full_disk, library):
    path = tmp_path / "out"
    with full_disk(1000), pytest.raises(OSError, match=r"/out: .*: is the disk full\? Make room there"), saving(path):
        BY[library](path)


def test_other_errors_stay_as_they_are(tmp_path):
    with pytest.raises(RuntimeError, match="^of another kind$"), saving(tmp_path):
        raise RuntimeError("of another kind")
    with pytest.raises(FileNotFoundError), saving(tmp_path):
        (tmp_path / "none").read_text()
