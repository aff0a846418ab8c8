"""mine as a command, with a real (tiny, random) Qwen2-VL embedder."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
from PIL import Image

from hf_mmembed import only_run
from hf_mmembed.cli.main import main
from hf_mmembed.lock import only_writer
from hf_mmembed.mining import Clusters, report


def run(*words) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return stop.value.code


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Twelve captions of pictures, of which one is broken."""
    folder = tmp_path_factory.mktemp("mine")
    for number in range(12):
        Image.new("RGB", (28, 28), (20 * number, 0, 200)).save(folder / f"{number}.png")
    (folder / "11.png").write_bytes(b"no picture")
    lines = [{"caption": f"colour {number}", "image": f"{number}.png"} for number in range(12)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "pairs.jsonl"


def test_clusters_report_and_what_was_skipped(pairs, embedder, tmp_path, capsys):
    words = ["mine", embedder("qwen2_vl"), pairs, tmp_path, "-k", 2, "--seed", 3, "--device", "cpu", "--rank", "0.1"]
    assert run(*words) == 1  # a row was skipped
    shown = capsys.readouterr()
    assert "3 clusters of up to 3 by saha; left over: 2" in shown.out and "row 11: " in shown.err
    clusters = Clusters.load(tmp_path)
    assert clusters.rows.shape == (3, 3) and len(np.unique(clusters.rows)) == 9 and 11 not in clusters.rows
    assert clusters.settings["rules"]["rank"] == 0.1 and clusters.settings["seed"] == 3
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["rows"] == 12 and report["skipped"] == 1 and report["strategy"] == "saha"
    assert (tmp_path / "report.html").is_file() and (tmp_path / "report.png").is_file()
    [skipped] = map(json.loads, (tmp_path / "skipped.jsonl").read_text().splitlines())
    assert skipped["row"] == 11


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [(KeyboardInterrupt(), 130, "stopped"), (OSError(28, "No space left on device", "a.npy"), 1, "'a.npy'")],
)
def test_what_ends_a_run_says_how_to_go_on(pairs, embedder, tmp_path, monkeypatch, capsys, error, code, message):
    def stopped(*arguments, **options):
        raise error

    monkeypatch.setattr("hf_mmembed.mining.mine_pairs", stopped)
    words = ("mine", embedder("qwen2_vl"), pairs, tmp_path, "--device", "cpu")
    assert run(*words) == code
    shown = capsys.readouterr().err
    assert message in shown and "are kept" not in shown  # there are none yet
    (tmp_path / "embeddings" / "queries").mkdir(parents=True)
    (tmp_path / "embeddings" / "queries" / "shard-000000000-0.npy").touch()
    assert run(*words) == code
    assert f"{message}; finished embeddings are kept in {tmp_path}: the same" in capsys.readouterr().err


def test_a_directory_is_held_until_the_report_is_written(pairs, embedder, tmp_path, monkeypatch, capsys):
    """Or two runs would write the clusters of one and the report of the other."""
    words = ("mine", embedder("qwen2_vl"), pairs, tmp_path / "out", "-k", 2, "--device", "cpu")
    codes = []

    def second_run(*_):
        other = threading.Thread(target=lambda: codes.append(run(*words)))
        other.start()
        other.join()

    monkeypatch.setattr(report, "_plot", second_run)
    assert run(*words) == 1  # a row was skipped
    assert codes == [1] and (tmp_path / "out" / "report.html").is_file()
    assert f"error: another process is writing to {tmp_path}/out: wait until it has" in capsys.readouterr().err
    with only_writer(tmp_path / "out"):
        pass


def test_where_another_run_writes_nothing_is_touched(pairs, embedder, tmp_path, capsys):
    with only_writer(tmp_path):
        assert run("mine", embedder("qwen2_vl"), pairs, tmp_path, "--device", "cpu") == 1
    assert f"another process is writing to {tmp_path}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_directory_that_may_not_be_written_to_is_called_that(pairs, embedder, tmp_path, monkeypatch, capsys):
    (tmp_path / "embeddings" / "queries").mkdir(parents=True)
    (tmp_path / "embeddings" / "queries" / "shard-000000000-0.npy").touch()

    def refused(*_):
        raise PermissionError(13, "Permission denied", str(tmp_path / ".lock"))

    monkeypatch.setattr(only_run, "only_writer", refused)
    assert run("mine", embedder("qwen2_vl"), pairs, tmp_path, "--device", "cpu") == 1
    shown = capsys.readouterr().err
    assert ".lock'; make it writable, or choose another directory" in shown and "are kept" not in shown


def test_flags_win_over_the_file(pairs, embedder, tmp_path):
    (tmp_path / "mine.yaml").write_text("strategy: random\nk: 5\nlabels: [pairs]\n")
    run("mine", embedder("qwen2_vl"), pairs, tmp_path, "--config", tmp_path / "mine.yaml", "-k", 1, "--device", "cpu")
    clusters = Clusters.load(tmp_path)
    assert clusters.strategy == "random" and clusters.rows.shape == (5, 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--strategy", "sahara"], "sahara"),
        (["--rank", "some"], "neither a number nor"),
        (["--rank", "1.5"], "rank is a share, at least 0 and below 1, got 1.5"),
        (["--strategy", "random", "--margin", "0.1"], "random has no rules to change"),
        (["--column", "query_text"], "not of the form NAME=VALUE"),
        (["--column", "query_text=question"], "no column 'question' for 'query_text'"),
        (["--labels", "pairs=perhaps"], "after the = comes yes or no"),
        (["--instruction", "pears=Find it."], "no subset 'pears' to give an instruction"),
        (["-k", "0"], "greater than or equal to 1"),
    ],
)
def test_wrong_words(words, message, pairs, embedder, tmp_path, capsys):
    assert run("mine", embedder("qwen2_vl"), pairs, tmp_path / "out", "--device", "cpu", *words) in (1, 2)
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not (tmp_path / "out" / "clusters.arrow").exists()
