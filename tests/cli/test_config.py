"""``--config FILE.yaml``: values become defaults, flags win, mistakes are named."""

from __future__ import annotations

from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from hf_mmembed.cli.config import ConfigOption
from hf_mmembed.cli.main import app as hf_mmembed_app

app = typer.Typer(add_completion=False)


@app.command()
def embed(
    model: str,
    batch_size: Annotated[int, typer.Option()] = 8,
    shuffle: Annotated[bool, typer.Option()] = False,
    as_json: Annotated[bool, typer.Option("--json")] = False,
    k: Annotated[int, typer.Option("-k")] = 10,
    config: ConfigOption = None,
) -> None:
    typer.echo(f"{model} {batch_size} {shuffle}" + (f" {k} as JSON" if as_json else ""))


@pytest.fixture
def run(tmp_path):
    def run_with(text: str, *flags: str):
        path = tmp_path / "job.yaml"
        path.write_text(text, encoding="utf-8")
        return CliRunner().invoke(app, [*flags, "--config", str(path)])

    return run_with


def test_values_become_defaults(run):
    result = run("model: tiny\nbatch_size: 32\nshuffle: true\n")
    assert (result.exit_code, result.stdout) == (0, "tiny 32 True\n")


def test_dashes_are_underscores(run):
    assert run("batch-size: 32\n", "tiny").stdout == "tiny 32 False\n"


def test_keys_are_the_names_of_the_options(run):
    assert run("json: true\nk: 3\n", "tiny").stdout == "tiny 8 False 3 as JSON\n"


@pytest.mark.parametrize("flags", [["--batch-size", "2", "tiny"], ["tiny", "--batch-size", "2"]])
def test_flags_win(run, flags):
    assert run("model: other\nbatch_size: 32\n", *flags).stdout == "tiny 2 False\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("batch_sise: 4", "did you mean 'batch_size'?"),
        ("qqqq: 4", "known: batch_size, json, k, model, shuffle"),
        ("- a\n- b", "must hold a mapping"),
        ("a: [", "is not valid YAML"),
        ("!!python/object/apply:os.system ['true']", "is not valid YAML"),
        ("as_json: true", "did you mean 'json'?"),
        ("model: no", "'model' is False to YAML"),
        ("batch_size: many", "Invalid value for '--batch-size'"),
    ],
)
def test_mistakes_are_usage_errors(run, text, expected):
    result = run(text, "tiny")
    assert result.exit_code == 2
    assert expected in " ".join(result.stderr.replace("│", " ").split())


def test_missing_file_is_a_usage_error(tmp_path):
    result = CliRunner().invoke(app, ["tiny", "--config", str(tmp_path / "none.yaml")])
    assert result.exit_code == 2


def leaves(command, path=()):
    """Every command without commands of its own, with its name in words."""
    inside = getattr(command, "commands", None)
    if inside is None:
        yield " ".join(path), command
    for name, one in (inside or {}).items():
        yield from leaves(one, (*path, name))


def test_every_command_with_options_reads_them_from_a_file():
    # A recipe is such a file already; the doctor has nothing to set.
    for name, command in leaves(typer.main.get_command(hf_mmembed_app)):
        options = {word for parameter in command.params for word in parameter.opts if word.startswith("--")}
        assert "--config" in options or not options - {"--help"} or name == "think-train", (name, options)
