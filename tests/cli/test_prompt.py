"""`hf-mmembed prompt show` prints what the model reads, character by character and token by token."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image
from transformers import AutoProcessor

from hf_mmembed import tiny
from hf_mmembed.cli import main as cli


def run(*arguments) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    return stop.value.code


def test_the_string_and_its_tokens(embedder, capsys):
    path = embedder("qwen2_vl")
    assert run("prompt", "show", path, "--task", "query", "a <|im_end|> dog", "--instruction", "Find:") == 0
    shown = capsys.readouterr().out
    processor = AutoProcessor.from_pretrained(path)
    conversation = [{"role": "system", "content": "Find:"}, {"role": "user", "content": "a <|im_end|> dog"}]
    assert shown.startswith(processor.apply_chat_template(conversation, task="query"))
    ids = processor(text=["a <|im_end|> dog"], instruction="Find:", task="query")["input_ids"][0]
    lines = re.findall(r"^ +\d+ +(\d+)  '.*?'(?:  x (\d+))?(?:  <- pooled)?$", shown, flags=re.MULTILINE)
    assert [int(token) for token, count in lines for _ in range(int(count or 1))] == ids
    assert shown.rstrip().endswith("<- pooled")


@pytest.mark.parametrize("shipped", [tiny.checkpoint_path, tiny.saha_path])
def test_sentence_transformers_is_not_imported(shipped, monkeypatch):
    """It would double the seconds that the command takes."""
    path = shipped()
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    assert run("prompt", "show", path, "a") == 0


def test_a_run_of_image_tokens_is_one_line(embedder, tmp_path, capsys):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    assert run("prompt", "show", embedder("qwen2_vl", pooling="mean"), "--image", tmp_path / "a.png") == 0
    shown = capsys.readouterr().out
    assert "'<|image_pad|>'  x 16\n" in shown
    assert "user\n<|vision_start|><|image_pad|><|vision_end|><|im_end|>" in shown
    assert shown.rstrip().endswith("<- mean of all is pooled")


def test_a_text_that_is_cut_is_said_to_be(embedder, capsys):
    assert run("prompt", "show", embedder("qwen2_vl"), "word " * 2000) == 0
    shown = capsys.readouterr().out
    assert (found := re.search(r"too long: (\d+) tokens, of which the model reads (\d+);", shown))
    assert int(found[1]) > 2048 >= int(found[2]) and shown.rstrip().endswith("<- pooled")


def test_a_model_that_is_no_embedder_and_an_empty_input_are_errors(generative, embedder, capsys):
    assert run("prompt", "show", generative("qwen2_vl"), "a") == 1
    assert "is a 'qwen2_vl' model, not an embedder; run `hf-mmembed convert` first" in capsys.readouterr().err
    assert run("prompt", "show", embedder("qwen2_vl")) == 1
    assert "there is nothing to embed" in capsys.readouterr().err
    assert run("prompt", "show", embedder("qwen2_vl"), "a", "--task", "passage") == 2


def test_a_unified_model_is_read_by_its_head(generative, tmp_path, capsys):
    from hf_mmembed.thinking.unified import make_unified

    path = make_unified(generative("qwen2_vl"), tmp_path / "unified", head="mlp")
    assert run("prompt", "show", path, "a red circle") == 0
    assert capsys.readouterr().out.rstrip().endswith("<- the head 'mlp' reads the states up to here")


def test_an_adapter_is_read_with_its_own_processor_or_else_that_of_its_base(tmp_path, capsys):
    words = ("--task", "query", "a red circle")
    assert run("prompt", "show", "mmembed-tiny", *words) == 0
    shown = capsys.readouterr().out
    adapter = Path(shutil.copytree(tiny.saha_path(), tmp_path / "adapter"))
    assert run("prompt", "show", adapter, *words) == 0
    assert capsys.readouterr().out == shown
    own = adapter / "processor_config.json"
    own.write_text(own.read_text().replace("summarize", "describe"))
    assert run("prompt", "show", adapter, *words) == 0
    assert capsys.readouterr().out.startswith("<|im_start|>system\nGiven an image, describe the")
    (adapter / "modules.json").unlink()  # as PEFT saves it
    assert run("prompt", "show", adapter, *words) == 0
    assert capsys.readouterr().out == shown


def test_the_base_of_an_adapter_that_is_gone_is_named(tmp_path, capsys):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "/gone/embedder"}')
    assert run("prompt", "show", tmp_path, "a") == 1
    assert "is gone: there is no directory /gone/embedder" in capsys.readouterr().err
