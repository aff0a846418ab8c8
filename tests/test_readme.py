"""Every snippet of the README runs; those marked ``<!-- not run: ... -->`` are checked against the real interfaces.

Snippets run in the order of the page and in one folder, so that a later one finds what an earlier one wrote.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import hf_mmembed
from hf_mmembed.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(
    r"(?P<mark><!-- not run: [^>]+ -->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Snippet:
    line: int
    language: str
    code: str
    runs: bool

    def __str__(self) -> str:
        return f"line{self.line}-{self.language}"


SNIPPETS = [
    Snippet(README[: found.start("code")].count("\n") + 1, found["language"], found["code"], found["mark"] is None)
    for found in FENCE.finditer(README)
]
RUNNING = [s for s in SNIPPETS if s.runs and s.language in ("python", "bash")]
MARKED = [s for s in SNIPPETS if not s.runs]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("readme")


def test_every_fence_is_found_and_has_a_known_language():
    assert README.count("\n```") == 2 * len(SNIPPETS)
    assert {s.language for s in SNIPPETS} <= {"python", "bash", "text"}
    assert len(RUNNING) >= 7 and len(MARKED) == README.count("<!-- not run")


def commands_of(snippet: Snippet) -> list[list[str]]:
    """The words after each `hf-mmembed`, also where accelerate starts it on several processes."""
    starts = re.compile(r"^(hf-mmembed|accelerate launch .*-m hf_mmembed\.cli) ")
    lines = [line for line in snippet.code.splitlines() if starts.match(line)]
    return [shlex.split(starts.sub("", line), comments=True) for line in lines]


def run_in_bash(snippet: Snippet) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", snippet.code],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"README.md, line {snippet.line}:\n{done.stdout}\n{done.stderr}"


def run_here(snippet: Snippet) -> None:
    """The same commands without a new process for each, which would take most of the time to import torch."""
    assert len(commands_of(snippet)) == len(snippet.code.strip().splitlines()), "only hf-mmembed commands can be run"
    for words in commands_of(snippet):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 0, f"README.md, line {snippet.line}: hf-mmembed {shlex.join(words)}"


def test_snippets_run_in_order(folder, monkeypatch):
    """One test, not one per snippet: each builds on the files of those before it."""
    monkeypatch.chdir(folder)
    shell = [snippet for snippet in RUNNING if snippet.language == "bash"]
    for snippet in RUNNING:
        if snippet.language == "python":
            exec(compile(snippet.code, f"README.md, line {snippet.line}", "exec"), {"__name__": "__main__"})
        elif snippet is shell[0]:
            run_in_bash(snippet)
        else:
            run_here(snippet)
    assert (folder / "hits.html").stat().st_size > 0


@pytest.mark.parametrize("snippet", [s for s in MARKED if s.language == "bash"], ids=str)
def test_marked_commands_use_options_that_exist(snippet):
    from typer.main import get_command

    from hf_mmembed.cli.main import app

    lines = commands_of(snippet)
    others = re.findall(r"^hf download ", snippet.code, re.MULTILINE)
    assert len(lines) + len(others) == len(snippet.code.strip().splitlines()), (
        "only hf-mmembed commands can be checked"
    )
    for words in lines:
        command = get_command(app)
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0) if words[0] in command.commands else "run"]
        command.make_context("hf-mmembed", words, resilient_parsing=False)


@pytest.mark.parametrize("snippet", [s for s in MARKED if s.language == "python"], ids=str)
def test_marked_python_uses_names_that_exist(snippet):
    tree = ast.parse(snippet.code)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "hf_mmembed":
            assert all(hasattr(hf_mmembed, alias.name) for alias in node.names)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = {"hf_mmembed": hf_mmembed, "model": hf_mmembed.MMEmbedder}[node.value.id]
            assert hasattr(owner, node.attr), ast.unparse(node)


def test_the_table_of_commands_names_commands_that_exist():
    from typer.main import get_command

    from hf_mmembed.cli.main import app

    rows = re.findall(r"^\| `hf-mmembed ([^`]+)`(.*?)\|", README, re.MULTILINE)
    assert len(rows) >= 8
    for first, others in rows:
        words = first.split()
        command = get_command(app).commands[words[0]]
        for name in [*words[1:2], *re.findall(r"`(\w+)`", others)]:
            if hasattr(command, "commands"):
                assert name in command.commands, f"{words[0]} {name}"


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_links_point_to_files(target):
    assert (ROOT / target).is_file()
