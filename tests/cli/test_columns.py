"""`--column` of the commands that read pairs."""

from __future__ import annotations

import pytest

from hf_mmembed.cli.main import main

COMMANDS = ["mine", "judge", "think"]


def run(*words):
    with pytest.raises(SystemExit) as stop:
        main([*map(str, words)])
    return stop.value.code


@pytest.mark.parametrize("command", COMMANDS)
def test_columns_are_named(command, tmp_path, monkeypatch, capsys):
    def read(source, *, columns, **options):
        raise ValueError(f"{source} was read with {columns}")

    monkeypatch.setattr("hf_mmembed.data.pairs.read_pairs", read)
    words = (command, "mmembed-tiny", "pairs.csv", tmp_path / "out")
    assert run(*words, "--column", "query_text=question", "--column", "pos_image=a=b") == 1
    assert "read with {'query_text': 'question', 'pos_image': 'a=b'}" in capsys.readouterr().err
    assert run(*words) == 1
    assert "read with None" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_what_names_no_column_is_a_usage_error(command, capsys):
    assert run(command, "mmembed-tiny", "pairs.csv", "out", "--column", "query_text") == 2
    assert "'query_text' is not of the form NAME=VALUE" in " ".join(capsys.readouterr().err.split())
