"""Exit codes and error lines of the command line."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest
import typer
from torch._utils import ExceptionWrapper

from hf_mmembed import __version__
from hf_mmembed.cli import main as cli
from hf_mmembed.cli import torchvision_advice


def run(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    return stop.value.code


@pytest.fixture
def failing_command(monkeypatch):
    """Replaces the application by one with a single command that raises what it is told to."""

    def install(error: BaseException) -> None:
        app = typer.Typer(pretty_exceptions_enable=False)

        @app.command()
        def fail() -> None:
            raise error

        monkeypatch.setattr(cli, "app", app)

    return install


def test_version(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


def test_help_names_every_command(capsys):
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all((c.name or c.callback.__name__.replace("_", "-")) in shown for c in cli.app.registered_commands)


def test_every_command_has_help_with_an_example(capsys):
    for command in cli.app.registered_commands:
        name = command.name or command.callback.__name__.replace("_", "-")
        assert run([name, "--help"]) == 0
        assert f"hf-mmembed {name}" in capsys.readouterr().out.replace("Usage: hf-mmembed", ""), name


@pytest.mark.parametrize("arguments", [["no-such-command"], ["--no-such-option"], ["doctor", "surplus"]])
def test_wrong_usage_is_code_2(arguments, capsys):
    assert run(arguments) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "error",
    [
        ValueError("row 3 has no text and no image"),
        FileNotFoundError(2, "No such file", "x.png"),
        ImportError("no faiss"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_expected_errors_are_one_line_and_code_1(error, failing_command, capsys):
    failing_command(error)
    assert run([]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ") and str(error) in lines[0]


@pytest.mark.parametrize(("package", "extra"), [("peft", "train"), ("gradio", "demo"), ("mteb", "eval")])
def test_a_missing_package_of_an_extra_names_the_extra(failing_command, capsys, package, extra):
    failing_command(ModuleNotFoundError(f"No module named {package!r}", name=package))
    assert run([]) == 1
    assert capsys.readouterr().err == (
        f'error: No module named {package!r}; it comes with an extra: pip install "hf-mmembed[{extra}]"\n'
    )


def test_a_working_directory_that_is_gone_is_called_that(failing_command, tmp_path, monkeypatch, capsys):
    failing_command(FileNotFoundError(2, "No such file or directory"))
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert run([]) == 1
    assert capsys.readouterr().err == "error: the working directory is gone: cd to one that exists\n"


def test_line_breaks_of_an_error_are_folded(failing_command, capsys):
    failing_command(ValueError("first\n  second"))
    assert run([]) == 1
    assert capsys.readouterr().err == "error: first second\n"


def test_an_error_of_a_loading_process_is_shown_without_its_traceback(failing_command, capsys):
    try:
        raise ValueError("row 6: its picture cannot be read: look at it")
    except ValueError:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(ValueError, match="Original Traceback") as reraised:
        wrapped.reraise()
    failing_command(reraised.value)
    assert run([]) == 1
    assert capsys.readouterr().err == "error: row 6: its picture cannot be read: look at it\n"


def test_control_characters_do_not_reach_the_terminal(failing_command, capsys):
    failing_command(ValueError("a\x1b[31m.png is broken"))
    assert run([]) == 1
    assert capsys.readouterr().err == "error: a [31m.png is broken\n"


def test_ctrl_c_is_code_130_and_says_so(failing_command, capsys):
    failing_command(KeyboardInterrupt())
    assert run([]) == 130
    assert capsys.readouterr().err == "\nstopped\n"


def test_a_pipe_of_another_encoding_takes_every_character():
    code = "import typer\nfrom hf_mmembed.cli import main as cli\n"
    code += "cli.app = lambda **_: typer.echo('caf\\xe9 \\u2717')\ncli.main([])"
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=True)
    assert done.stdout.rstrip() == b"caf\xe9 \\u2717"


@pytest.mark.parametrize("encoding", ["cp1252", "utf-8"])
def test_files_and_pipes_are_utf8_on_windows(monkeypatch, encoding):
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding=encoding, errors="backslashreplace")
    with monkeypatch.context() as windows:
        windows.setattr(os, "name", "nt")
        cli._take_every_character(stream)
    print("\u2717", end="", file=stream, flush=True)
    assert (written.getvalue(), stream.errors) == ("\u2717".encode(), "backslashreplace")


def test_a_program_may_have_no_streams_or_some_of_its_own(monkeypatch, failing_command):
    for stream in (None, io.StringIO()):
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        failing_command(SystemExit(0))
        assert run([]) == 0


def test_torchvision_trouble_points_to_the_doctor(failing_command, capsys):
    failing_command(ValueError("operator torchvision::nms does not exist"))
    assert run([]) == 1
    assert "hf-mmembed doctor" in capsys.readouterr().err


def test_a_missing_torchvision_is_said_with_the_command_and_without_the_doctor(failing_command, capsys, monkeypatch):
    monkeypatch.setattr(torchvision_advice.metadata, "version", lambda name: "2.13.0+cpu")
    missing = "Qwen2VLVideoProcessor requires the Torchvision library but it was not found in your environment."
    failing_command(ImportError(f'{missing} Run: pip install -U "sentence-transformers[image]"'))
    assert run([]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: Qwen2VLVideoProcessor requires the Torchvision library") and "Qwen family" in error
    assert 'pip install torchvision "torch==2.13.0+cpu"' in error
    assert "doctor" not in error and "sentence-transformers" not in error


def test_a_torch_from_the_python_index_takes_its_torchvision_from_there(monkeypatch):
    monkeypatch.setattr(torchvision_advice.metadata, "version", lambda name: "2.13.0")
    assert torchvision_advice.missing_torchvision().endswith('pip install torchvision "torch==2.13.0"')


def test_a_bug_keeps_its_traceback(failing_command):
    failing_command(KeyError("surprise"))
    with pytest.raises(KeyError, match="surprise"):
        cli.main([])
