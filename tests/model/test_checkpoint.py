"""Checkpoints that are broken or pickled are refused when they are opened."""

from __future__ import annotations

import os
import shutil

import pytest
import torch
from peft import AdaLoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from hf_mmembed import convert
from hf_mmembed.model.checkpoint_mmembed import require_safetensors


@pytest.fixture
def copied(embedder, tmp_path):
    return shutil.copytree(embedder("qwen2_vl"), tmp_path / "copy")


def test_a_missing_weight_file_is_an_error(copied):
    (copied / "model.safetensors").unlink()
    with pytest.raises(OSError, match="copy holds no weights: model.safetensors is missing; download or copy"):
        AutoModel.from_pretrained(copied)


@pytest.fixture
def sharded(embedder, tmp_path):
    AutoModel.from_pretrained(embedder("qwen2_vl")).save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    return tmp_path / "sharded"


def test_a_missing_shard_is_an_error_that_names_it(sharded, tmp_path):
    first, second, *others = sorted(sharded.glob("*.safetensors"))
    number = len(others) + 2
    AutoModel.from_pretrained(sharded)
    second.unlink()
    expected = f"sharded lacks 1 of the {number} weight files that its index names, the first is {second.name}; down"
    with pytest.raises(OSError, match=expected):
        AutoModel.from_pretrained(sharded)
    with pytest.raises(OSError, match=expected):
        convert(sharded, tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


def test_an_index_that_nobody_reads_need_not_be_complete(sharded, tmp_path):
    AutoModel.from_pretrained(sharded).save_pretrained(tmp_path / "half", variant="fp16", max_shard_size="100KB")
    shutil.copy(sharded / "model.safetensors.index.json", tmp_path / "half")
    AutoModel.from_pretrained(tmp_path / "half", variant="fp16")
    require_safetensors(tmp_path / "half", variant="fp16")
    (tmp_path / "half/adapter_config.json").write_text("{}")
    require_safetensors(tmp_path / "half")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'])
def test_a_broken_index_of_shards_is_an_error_that_names_it(sharded, content):
    (sharded / "model.safetensors.index.json").write_text(content)
    with pytest.raises(
        OSError, match=r"model.safetensors.index.json is no index of weights .*download or copy it again"
    ):
        AutoModel.from_pretrained(sharded)


@pytest.mark.parametrize("damage", ["cut", "header", "garbage"])
def test_a_corrupt_weight_file_is_an_error_that_names_it(copied, damage):
    weights = copied / "model.safetensors"
    data = weights.read_bytes()
    broken = {"cut": data[: len(data) // 2], "header": b"\xff" * 8 + data[8:], "garbage": os.urandom(1000)}[damage]
    weights.write_bytes(broken)
    with pytest.raises(OSError, match=r"copy: the weights cannot be read.*download or copy them again"):
        AutoModel.from_pretrained(copied)


def test_missing_and_misshapen_weights_are_an_error_not_random_numbers(copied):
    weights = load_file(copied / "model.safetensors")
    name = sorted(weights)[3]
    save_file(
        {key: value for key, value in weights.items() if key != name}, copied / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ValueError, match="1 weights are missing or have another shape"):
        AutoModel.from_pretrained(copied)
    save_file({**weights, name: torch.zeros(3, 3)}, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"1 weights are missing or have another shape .* the first is '{name}'"):
        AutoModel.from_pretrained(copied)


def test_pickled_weights_are_never_read(copied):
    weights = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    torch.save(weights, copied / "pytorch_model.bin")
    with pytest.raises(
        OSError, match=r"copy holds only pickled weights \(pytorch_model\.bin\).*give a checkpoint with"
    ):
        AutoModel.from_pretrained(copied)


def test_an_adalora_lacks_the_constant_that_peft_does_not_save(embedder, tmp_path):
    folder = embedder("qwen2_vl")
    config = AdaLoraConfig(target_modules=["q_proj"], total_step=10)
    adapted = get_peft_model(AutoModel.from_pretrained(folder), config).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.normal_()
    adapted.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(folder).eval()
    again.load_adapter(tmp_path)
    ids = torch.arange(3, 13)[None]
    with torch.no_grad():
        plain = AutoModel.from_pretrained(folder).eval()(input_ids=ids).embeddings
        expected, read = adapted(input_ids=ids).embeddings, again(input_ids=ids).embeddings
    assert torch.equal(read, expected) and not torch.allclose(expected, plain, atol=1e-3)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    name = next(name for name in sorted(weights) if "lora_E" in name)
    save_file({key: value for key, value in weights.items() if key != name}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="1 weights are missing .*lora_E"):
        AutoModel.from_pretrained(folder).load_adapter(tmp_path)
