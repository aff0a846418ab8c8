"""Conversion writes one complete directory or nothing, and says what is wrong with a base that cannot be converted."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, BertConfig, LlamaConfig

from hf_mmembed import HierarchicalPrompt, MMEmbedProcessor, convert
from tests.forks import in_processes

FILES = {
    "README.md",    "chat_template.jinja", "checkpoint_mmembed.py", "config.json", "config_sentence_transformers.json", "configuration_mmembed.py",
    "family_mmembed.py", "images_mmembed.py", "language_mmembed.py", "lean_mmembed.py", "model.safetensors", "modeling_mmembed.py",
    "modules.json", "overlay_mmembed.py", "pixels_mmembed.py", "pooled_mmembed.py", "prefix_mmembed.py", "processing_mmembed.py", "product_mmembed.py", "processor_config.json", "rows_mmembed.py", "sentence_bert_config.json",
    "tokenizer.json", "tokenizer_config.json", "vision_mmembed.py",
}  # fmt: skip


@pytest.fixture
def base(generative, tmp_path):
    """A copy of a generative checkpoint, to be damaged."""
    return shutil.copytree(generative("qwen2_vl"), tmp_path / "base")


def test_the_directory(embedder):
    path = embedder("qwen2_vl")
    assert {entry.name for entry in path.iterdir()} == FILES
    stored = json.loads((path / "config.json").read_text())
    assert (stored["model_type"], stored["base_model"], stored["base_revision"]) == ("mmembed", "qwen2_vl", None)
    assert stored["backbone_config"]["model_type"] == "qwen2_vl"
    processor = json.loads((path / "processor_config.json").read_text())
    assert processor["auto_map"]["AutoProcessor"] == "processing_mmembed.MMEmbedProcessor"


def test_nothing_in_it_tells_where_it_was_made(embedder, generative):
    path, parent = embedder("qwen2_vl"), generative("qwen2_vl").parent
    for entry in path.glob("*.json"):
        assert str(parent) not in entry.read_text(), entry.name


def test_the_readme_is_true_and_its_snippet_runs(embedder, capsys):
    path = embedder("qwen2_vl", readout="pre_mlp", embedding_dim=8)
    readme = (path / "README.md").read_text()
    header = yaml.safe_load(readme.split("---")[1])
    assert header["pipeline_tag"] == "feature-extraction" and "base_model" not in header
    assert "| embedding | 8 dimensions" in readme and "| readout, pooling | `pre_mlp`, `last` |" in readme
    assert r"| end of a query with text alone | `'\nRepresent the given text in one word.'` |" in readme
    (snippet,) = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    exec(compile(snippet.replace("path/to/this/directory", str(path)), "README.md", "exec"), {})
    assert "tensor([[" in capsys.readouterr().out


def test_choices_are_stored(base, tmp_path):
    prompt = HierarchicalPrompt("S", "T", "I")
    out = convert(
        base, tmp_path / "deep" / "out", prompt=prompt, readout="pre_mlp", pooling="mean", embedding_dim=8,
        dtype="bfloat16",
    )  # fmt: skip
    config = AutoConfig.from_pretrained(out)
    assert (config.readout, config.pooling, config.embedding_dim) == ("pre_mlp", "mean", 8)
    assert (config.dtype, config.base_revision) == (torch.bfloat16, None)
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    assert MMEmbedProcessor.from_pretrained(out).prompt == prompt


def test_the_weights_are_those_of_the_base_without_its_head(generative, embedder):
    parent = AutoModelForImageTextToText.from_pretrained(generative("qwen2_vl")).model.state_dict()
    ours = AutoModel.from_pretrained(embedder("qwen2_vl")).backbone.state_dict()
    assert parent.keys() == ours.keys()
    assert all(torch.equal(parent[name], ours[name]) for name in parent)
    stored = load_file(embedder("qwen2_vl") / "model.safetensors")
    assert not any("lm_head" in name for name in stored)


def test_the_limit_of_positions_is_the_limit_of_tokens(base, tmp_path):
    config = json.loads((base / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 333
    (base / "config.json").write_text(json.dumps(config))
    out = convert(base, tmp_path / "out")
    assert MMEmbedProcessor.from_pretrained(out).tokenizer.model_max_length == 333


def test_what_exists_is_not_overwritten(base, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="exists and is not an empty directory"):
        convert(base, out)
    assert [entry.name for entry in out.iterdir()] == ["mine.txt"]


def test_an_empty_directory_is_filled_wherever_it_is(base, tmp_path, monkeypatch):
    """The working directory, the target of a link and a mount point cannot be replaced by another directory."""
    out = tmp_path / "mine"
    out.mkdir()
    identity = out.stat().st_ino
    (tmp_path / "link").symlink_to(out)
    moved = []
    replace = os.replace
    monkeypatch.setattr(
        os, "replace", lambda source, target: moved.append(Path(target).name) or replace(source, target)
    )
    monkeypatch.chdir(out)
    for name in (".", tmp_path / "link"):
        assert convert(base, name) == Path(name)
        assert {entry.name for entry in out.iterdir()} == FILES and out.stat().st_ino == identity
        assert moved[-1] == "config.json"
        assert "# mine\n" in (out / "README.md").read_text()
        for entry in out.iterdir():
            entry.unlink()


def test_a_failure_leaves_nothing_behind(base, tmp_path, monkeypatch):
    def fail(self, *args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(MMEmbedProcessor, "save_pretrained", fail)
    target = tmp_path / "target"
    for out in (target / "out", target):
        with pytest.raises(OSError, match="No space left"):
            convert(base, out)
        assert list(target.iterdir()) == []


def _converted_by_every_process(rank: int, base: Path, folder: Path) -> bool:
    opened = AutoModel.from_pretrained(convert(base, folder / f"of-process-{rank}"))
    return opened.config.model_type == "mmembed"


def test_every_process_of_a_group_may_convert(base, tmp_path):
    """transformers saves models on the first process alone, also for a caller who says that another is to do it."""
    assert in_processes(_converted_by_every_process, base, tmp_path, store=tmp_path / "store") == [True, True]


def test_what_a_killed_conversion_left_is_replaced(base, tmp_path):
    out = tmp_path / "out"
    (out / ".out.unfinished").mkdir(parents=True)
    (out / ".out.unfinished" / "model.safetensors").write_text("half of it")
    convert(base, out)
    assert {entry.name for entry in out.iterdir()} == FILES


def test_pickled_weights_are_refused_with_a_way_out(base, tmp_path):
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"only pickled weights \(pytorch_model\.bin\).*save_pretrained"):
        convert(base, tmp_path / "out")


def test_a_base_without_weights_is_named(base, tmp_path):
    (base / "model.safetensors").unlink()
    with pytest.raises(OSError, match="base holds no weights"):
        convert(base, tmp_path / "out")


def test_corrupt_weights_are_named(base, tmp_path):
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(OSError, match="the weights of .*base cannot be read"):
        convert(base, tmp_path / "out")


def test_incomplete_weights_are_named(base, tmp_path):
    weights = load_file(base / "model.safetensors")
    del weights[min(name for name in weights if name.endswith("model.norm.weight"))]
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights, the first is 'language_model.norm.weight'"):
        convert(base, tmp_path / "out")


@pytest.mark.parametrize("part", [None, "text_config"])
def test_a_quantised_base_is_refused_before_its_weights_are_read(base, tmp_path, part):
    config = json.loads((base / "config.json").read_text())
    (config[part] if part else config)["quantization_config"] = {"quant_method": "awq", "bits": 4}
    (base / "config.json").write_text(json.dumps(config))
    (base / "model.safetensors").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"base is quantised \('awq'\).* model_kwargs=\{'quantization_config': \.\.\.\}"
    ):
        convert(base, tmp_path / "out")


@pytest.mark.parametrize("scale", ["weight_scale_inv", "weight_scale", "qzeros", "weight_packed", "weight.absmax"])
def test_scales_of_weights_that_no_config_speaks_of_are_refused(base, tmp_path, scale):
    weights = load_file(base / "model.safetensors")
    name = f"model.layers.0.self_attn.q_proj.{scale}"
    save_file({**weights, name: torch.ones(2)}, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=rf"base is quantised \(it holds '.*q_proj\.{scale}'\)"):
        convert(base, tmp_path / "out")


def test_misshapen_weights_are_named(base, tmp_path):
    weights = load_file(base / "model.safetensors")
    name = min(name for name in weights if name.endswith("model.norm.weight"))
    save_file({**weights, name: torch.zeros(3)}, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights .* 'language_model.norm.weight': \(3,\) instead of \(32,\)"):
        convert(base, tmp_path / "out")


@pytest.mark.parametrize(("config", "message"), [(BertConfig(), "'bert' model"), (LlamaConfig(), "'llama' model")])
def test_a_base_that_is_no_multimodal_llm_is_named(base, tmp_path, config, message):
    config.save_pretrained(base)
    with pytest.raises(ValueError, match=message):
        convert(base, tmp_path / "out")


def test_a_family_that_has_no_model_without_head_is_named(base, tmp_path, monkeypatch):
    # So it is with Llama 4, the only one.
    monkeypatch.setattr("hf_mmembed.model.convert.AutoModel", AutoModelForImageTextToText)
    with pytest.raises(ValueError, match="'qwen2_vl' model, which .* has as Qwen2VLForConditionalGeneration only"):
        convert(base, tmp_path / "out")


def test_an_embedder_is_not_converted_again(embedder, tmp_path):
    with pytest.raises(ValueError, match="is an embedder already"):
        convert(embedder("qwen2_vl"), tmp_path / "out")


def test_an_adapter_is_to_be_merged_first(base, tmp_path):
    adapted = get_peft_model(AutoModel.from_pretrained(base), LoraConfig(target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="adapter is an adapter; merge it into its base first"):
        convert(tmp_path / "adapter", tmp_path / "out")


def test_a_base_without_chat_template_is_named(base, tmp_path):
    (base / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="no chat template"):
        convert(base, tmp_path / "out")


def test_unknown_choices_are_named_before_anything_is_written(base, tmp_path):
    for choices, message in (
        ({"prompt": "sahaa"}, "no preset 'sahaa'"),
        ({"readout": "x"}, "readout is 'x'"),
        ({"dtype": "bf16"}, "dtype is 'bf16'; use one of 'auto', 'float32', 'bfloat16', 'float16', 'float64'"),
        ({"dtype": "float8_e4m3fn"}, "dtype is 'float8_e4m3fn'"),
        ({"dtype": torch.int8}, "dtype is torch.int8"),
    ):
        with pytest.raises(ValueError, match=message):
            convert(base, tmp_path / "new" / "out", **choices)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("base", ["/nowhere/absent", "absent", "org/absent"])
def test_an_absent_base_is_named(base, tmp_path):
    with pytest.raises(OSError, match=f"there is no directory {base}, and the Hub does not give it either"):
        convert(base, tmp_path / "out")


def test_a_directory_has_no_revision(base, tmp_path):
    with pytest.raises(ValueError, match="is a directory, which has no revision 'v1'"):
        convert(base, tmp_path / "out", revision="v1")


def test_weights_that_are_left_over_are_logged(base, tmp_path, caplog):
    weights = load_file(base / "model.safetensors")
    save_file({**weights, "visual.extra.weight": torch.zeros(2)}, base / "model.safetensors", {"format": "pt"})
    convert(base, tmp_path / "out")
    assert "holds 1 weights that its architecture does not use: ['visual.extra.weight']" in caplog.text
    assert AutoModel.from_pretrained(tmp_path / "out").config.base_model == "base"


def test_a_hub_id_is_recorded_with_its_commit(generative, tmp_path, monkeypatch):
    """Against a cache laid out as the Hub client lays it out."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--org--tiny"
    shutil.copytree(generative("qwen2_vl"), repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "v1").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    convert("org/tiny", tmp_path / "out", revision="v1")
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert (config.base_model, config.base_revision) == ("org/tiny", commit)
    assert "base_model: org/tiny\n" in (tmp_path / "out" / "README.md").read_text()
