"""Two jobs never write into one directory, and the processes of one do not refuse each other."""

from __future__ import annotations

import pytest

from hf_mmembed.lock import only_writer
from hf_mmembed.mining.held import held
from hf_mmembed.processes import world
from tests.forks import in_processes


def test_the_processes_of_a_job_are_let_in_together_or_refused_together(tmp_path):
    def entered(rank):
        try:
            with held(tmp_path / "out"):
                return world().gather(rank)
        except ValueError as error:
            return str(error)

    assert in_processes(entered, store=tmp_path / "one") == [[0, 1]] * 2
    with only_writer(tmp_path / "out"):
        told = in_processes(entered, store=tmp_path / "two")
    assert told[0] == told[1] and told[0].startswith(f"another process is writing to {tmp_path / 'out'}: wait")
    with only_writer(tmp_path / "out"):
        pass


def test_an_error_names_the_directory_that_was_given(tmp_path):
    with (
        held(tmp_path / "inner"),
        pytest.raises(ValueError, match=f"writing to {tmp_path}: "),
        held(tmp_path / "inner", tmp_path),
    ):
        pass
