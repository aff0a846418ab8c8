"""`hf-mmembed convert`, as typed."""

from __future__ import annotations

import json

import pytest
import yaml
from transformers import AutoConfig

from hf_mmembed.cli import main as cli


def run(*arguments) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    return stop.value.code


def test_it_writes_an_embedder_and_says_what_to_do_next(generative, tmp_path, capsys):
    out = tmp_path / "out"
    choices = ["--readout", "pre_mlp", "--embedding-dim", 8, "--longest-edge", 1024]
    assert run("convert", generative("qwen2_vl"), out, *choices) == 0
    shown = capsys.readouterr().out
    assert f"wrote {out}" in shown and f"hf-mmembed prompt show {out}" in shown
    config = AutoConfig.from_pretrained(out)
    assert (config.model_type, config.readout, config.embedding_dim) == ("mmembed", "pre_mlp", 8)
    processor = json.loads((out / "processor_config.json").read_text())
    assert processor["image_processor"]["size"]["longest_edge"] == 1024


def test_a_yaml_file_gives_defaults_and_flags_win(generative, tmp_path):
    (tmp_path / "prompt.yaml").write_text(yaml.safe_dump({"system": "S", "represent_text": "", "represent_image": ""}))
    defaults = tmp_path / "config.yaml"
    defaults.write_text(
        yaml.safe_dump({"prompt": str(tmp_path / "prompt.yaml"), "pooling": "mean", "readout": "pre_mlp"})
    )
    assert run("convert", generative("qwen2_vl"), tmp_path / "out", "--config", defaults, "--pooling", "last") == 0
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert (config.pooling, config.readout) == ("last", "pre_mlp")
    assert '"system": "S"' in (tmp_path / "out" / "processor_config.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--prompt", "sahaa"], "no preset 'sahaa'"), (["--pooling", "cls"], "pooling is 'cls'")],
)
def test_a_bad_choice_is_one_line_and_exit_code_1(generative, tmp_path, capsys, arguments, message):
    assert run("convert", generative("qwen2_vl"), tmp_path / "out", *arguments) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert not (tmp_path / "out").exists()
