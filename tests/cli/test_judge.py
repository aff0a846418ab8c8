from __future__ import annotations

import json

import pytest

from hf_mmembed.cli.main import main
from hf_mmembed.data.pairs import read_pairs
from tests.training.conftest import make_pairs


def run(*words):
    with pytest.raises(SystemExit) as stop:
        main(["judge", *map(str, words)])
    return stop.value.code


def test_mines_and_judges_with_the_shipped_model(embedder, tmp_path, capsys):
    make_pairs(4).save_to_disk(str(tmp_path / "pairs"))
    words = ["mmembed-tiny", tmp_path / "pairs", tmp_path / "out", "--depth", 2]
    words += ["--miner", embedder("qwen2_vl", dtype="bfloat16")]
    assert run(*words, "--margin", -1, "--yes", "yes", "--no", "no", "--device", "cpu") == 0
    assert "4 pairs, 8 candidates, 0 of them taken for answers" in capsys.readouterr().out
    pairs = read_pairs(tmp_path / "out" / "pairs")
    assert [len(scores) for scores in pairs["neg_score"]] == [2] * 4
    assert all(0 < score < 1 for score in pairs["pos_score"])
    manifest = json.loads((tmp_path / "out" / "embeddings" / "queries" / "manifest.json").read_text())
    assert manifest["model"]["dtype"] == "float32"  # on a CPU, whatever the miner is stored in
    assert run(*words, "--device", "cuda:9") == 2
    assert "leave it out to take the best there is" in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_without_negatives_or_a_miner_it_says_what_to_do(tmp_path, capsys):
    make_pairs(2).save_to_disk(str(tmp_path / "pairs"))
    assert run("mmembed-tiny", tmp_path / "pairs", tmp_path / "out") == 1
    assert "name an embedder that mines" in capsys.readouterr().err
