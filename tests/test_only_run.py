"""Two runs never write into one directory, and the processes of one do not refuse each other."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from hf_mmembed import only_run as module
from hf_mmembed.lock import only_writer
from hf_mmembed.only_run import only_run
from hf_mmembed.processes import World, world
from tests.forks import in_processes
from tests.holding import is_held, watch


def test_a_directory_is_held_until_the_outermost_has_ended(tmp_path):
    with only_run(tmp_path / "run"):
        with only_run(tmp_path / "x" / ".." / "run"):
            assert is_held(tmp_path / "run")
        assert is_held(tmp_path / "run")
    assert not is_held(tmp_path / "run")
    with only_run(tmp_path / "run"):  # what was held once is not taken for held
        assert is_held(tmp_path / "run")


def test_a_directory_is_held_until_the_last_process_has_left(tmp_path, monkeypatch):
    waiting = watch(monkeypatch, World, "wait", tmp_path)
    with only_run(tmp_path):
        assert not waiting
    assert waiting == [True] and not is_held(tmp_path)


def test_another_thread_is_another_run(tmp_path):
    told = []

    def enter():
        try:
            with only_run(tmp_path):
                told.append("in")
        except ValueError as error:
            told.append(str(error))

    with only_run(tmp_path):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    enter()
    assert told[0].startswith(f"another process is writing to {tmp_path}: wait") and told[1:] == ["in"]


def test_the_processes_of_a_run_are_let_in_together_or_refused_together(tmp_path):
    def entered(rank):
        try:
            with only_run(tmp_path / "out"):
                return world().gather(rank)
        except ValueError as error:
            return str(error)

    assert in_processes(entered, store=tmp_path / "one") == [[0, 1]] * 2
    with only_writer(tmp_path / "out"):
        told = in_processes(entered, store=tmp_path / "two")
    assert told[0] == told[1] and told[0].startswith(f"another process is writing to {tmp_path / 'out'}: wait")
    assert not is_held(tmp_path / "out")


def test_the_other_processes_write_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(World, "share", lambda *_: (None, ValueError("another process is writing")))
    monkeypatch.setattr(module, "world", lambda: World(rank=1, size=2))
    with pytest.raises(ValueError, match="another process"), only_run(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_an_error_names_the_directory_that_was_given(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("inner").mkdir()
    with only_writer(tmp_path / "inner"):
        with pytest.raises(ValueError, match="writing to inner: "), only_run("inner"):
            pass
        with pytest.raises(ValueError, match="writing to outer: "), only_run("inner", "outer"):
            pass
