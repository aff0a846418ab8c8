"""What counts as another embedder."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import AutoConfig

from hf_mmembed.identity import open_identified, prompt_hash, weights_digest
from hf_mmembed.index import identify, local_checkpoint
from hf_mmembed.model import PRESETS, HierarchicalPrompt
from hf_mmembed.model.base_processor import wrap_processor
from tests.index.fake_embedder import FakeEmbedder


@pytest.fixture
def checkpoint(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text(json.dumps({"hidden": 8, "inner": {}, "transformers_version": "5.0"}))
    (tmp_path / "README.md").write_text("a card")
    return tmp_path


def of(directory, prompt="prompt"):
    return identify("name", directory, None, FakeEmbedder(prompt))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("README.md", "another card"),
        ("config.json", '{"transformers_version": "6.0",\n "hidden": 8, "inner": {"_name_or_path": "/elsewhere"}}'),
        ("training_log.txt", "x"),
    ],
)
def test_what_does_not_decide_the_numbers_does_not_count(checkpoint, file, content):
    before = of(checkpoint)
    (checkpoint / file).write_text(content)
    assert of(checkpoint) == before and before.differences(of(checkpoint)) == []


@pytest.mark.parametrize(
    ("file", "content"),
    [("model.safetensors", "Weights"), ("config.json", '{"hidden": 9}'), ("tokenizer.json", "{}")],
)
def test_what_decides_the_numbers_counts_and_is_named(checkpoint, file, content):
    before = of(checkpoint)
    (checkpoint / file).write_text(content)
    after = of(checkpoint)
    assert after.fingerprint != before.fingerprint
    assert before.differences(after) == [f"the model files {file}"]


def test_the_halves_that_a_mac_splits_off_do_not_count(checkpoint):
    root = {"idx": 0, "name": "0", "path": "", "type": "hf_mmembed.Transformer"}
    (checkpoint / "modules.json").write_text(json.dumps([root, {**root, "idx": 1, "path": "1_Dense"}]))
    (checkpoint / "1_Dense").mkdir()
    (checkpoint / "1_Dense/config.json").write_text("{}")
    before = of(checkpoint)
    for name in ("._model.safetensors", "._config.json", "1_Dense/._config.json"):
        (checkpoint / name).write_bytes(b"\0\5\x16\7")
    assert of(checkpoint) == before


def test_a_template_counts_by_its_lines_however_they_end(checkpoint):
    template = checkpoint / "chat_template.jinja"
    template.write_bytes(b"{% if a %}\nb\n{% endif %}")
    before = of(checkpoint)
    assert before.files[template.name] == hashlib.sha256(template.read_bytes()).hexdigest()
    template.write_bytes(b"{% if a %}\r\nb\r\n{% endif %}")  # as transformers writes it on Windows
    assert of(checkpoint) == before
    template.write_bytes(b"{% if a %}\nb{% endif %}")
    assert of(checkpoint).fingerprint != before.fingerprint


def test_modules_behind_the_model_count(checkpoint):
    root = {"idx": 0, "name": "0", "path": "", "type": "hf_mmembed.Transformer"}
    before = of(checkpoint)
    (checkpoint / "modules.json").write_text(json.dumps([root]))
    assert of(checkpoint) == before
    (checkpoint / "modules.json").write_text(json.dumps([root, {**root, "idx": 1, "path": "1_Dense"}]))
    (checkpoint / "1_Dense").mkdir()
    (checkpoint / "1_Dense/config.json").write_text("{}")
    (checkpoint / "1_Dense/model.safetensors").write_bytes(b"projection")
    projected = of(checkpoint)
    assert "modules.json" in before.differences(projected)[0]
    (checkpoint / "1_Dense/model.safetensors").write_bytes(b"another")
    assert projected.differences(of(checkpoint)) == ["the model files 1_Dense/model.safetensors"]


def test_the_prompt_counts_by_what_the_model_reads(checkpoint):
    one, other = of(checkpoint), of(checkpoint, "another prompt")
    assert one.fingerprint == other.fingerprint
    assert [text.split(" (")[0] for text in one.differences(other)] == ["the prompt"]


def test_the_number_format_is_told_and_does_not_count(checkpoint):
    found = of(checkpoint)
    assert found.dtype == "bfloat16" and found.differences(replace(found, dtype="float32")) == []


def test_only_safetensors(checkpoint):
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    with pytest.raises(ValueError, match="only safetensors weights are read"):
        of(checkpoint)


def test_weights_that_may_not_be_read_are_named(checkpoint, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: path.suffix != ".safetensors")
    with pytest.raises(PermissionError, match=r"may not be read: .*model.safetensors"):
        local_checkpoint(checkpoint)


@pytest.mark.parametrize("name", ["./gone", "/gone/model", "a/b/c", "~/model"])
def test_a_path_that_is_not_there_is_not_asked_from_the_hub(name):
    with pytest.raises(ValueError, match="no checkpoint directory"):
        local_checkpoint(name)


def test_a_name_that_is_neither_a_directory_nor_on_the_hub_is_named():
    with pytest.raises(
        OSError, match="no directory no-such/model here, and the Hub does not give it either: Cannot find"
    ):
        local_checkpoint("no-such/model")


def test_a_converted_model_keeps_its_identity_when_saved_again(embedder, tmp_path):
    from hf_mmembed import MMEmbedder

    directory, revision = local_checkpoint(embedder("qwen2_vl"))
    model = MMEmbedder(str(directory), device="cpu")
    model.save_pretrained(str(tmp_path / "again"))
    first = identify("first", directory, revision, model)
    again = identify("again", tmp_path / "again", None, MMEmbedder(str(tmp_path / "again"), device="cpu"))
    assert revision is None and first.prompt_hash == again.prompt_hash
    assert first.files["model.safetensors"] == again.files["model.safetensors"]
    assert first.dimension == again.dimension


def test_what_is_opened_on_a_cpu_computes_in_float32(embedder):
    directory = embedder("qwen2_vl", dtype="bfloat16")
    model, identity = open_identified(directory, device="cpu")
    assert model.dtype == torch.float32 and identity.dtype == "float32" and identity.name == str(directory)
    assert open_identified(directory, name="shipped", device="cpu")[1].name == "shipped"


def test_another_preset_is_another_prompt(embedder):
    from hf_mmembed import MMEmbedder

    found = []
    for prompt in ("saha", "plain"):
        directory, _ = local_checkpoint(embedder("qwen2_vl", prompt=prompt))
        found.append(identify(prompt, directory, None, MMEmbedder(str(directory), device="cpu")))
    assert found[0].differences(found[1])[0].startswith("the prompt (hash ")


# Of prompts without regard to white space around the words, which none had once.
HASHES = {
    "saha": "198b1cbdd1c554b2d36b8d15e02c795e",
    "joined": "5e6faff4a4b2c33bd266efdc54b71170",
    "saha-legacy": "992232ba1f12b238ab1266700e5cdbd9",
    "unime": "c88bd783f92d2b2f9dd3936277792795",
    "e5v": "fcc3b4f298de179e83fe318994dd1c01",
    "vlm2vec": "fc509a6dcdc0638f464c04627a8f72ab",
    "plain": "532b58fef7949d04f985ed7f4ecf1087",
    "a line break": "4db9b0cdd6afede57e664129b9046567",
}


@pytest.mark.parametrize("name", HASHES)
def test_prompts_that_give_way_to_white_space_have_another_hash_than_when_they_did_not(generative, name):
    """An index begun then would go on with words that are read in another way; those of the other prompts go on."""
    own = {"joined": replace(PRESETS["plain"], separator=""), "a line break": HierarchicalPrompt("", "\n", "\n")}
    directory = generative("qwen2_vl")
    processor = wrap_processor(directory, AutoConfig.from_pretrained(directory), {**PRESETS, **own}[name])
    found = prompt_hash(SimpleNamespace(processor=processor, prompts={}))
    assert (found == HASHES[name]) == (name in ("saha", "joined"))


def test_an_adapter_is_another_one_over_another_base(checkpoint, tmp_path_factory):
    base = tmp_path_factory.mktemp("base")
    (base / "model.safetensors").write_bytes(b"weights of the base")
    (base / "config.json").write_text('{"readout": "final"}')
    (checkpoint / "config.json").unlink()
    (checkpoint / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(base), "revision": None})
    )
    before = of(checkpoint)
    (base / "config.json").write_text('{"readout": "pre_mlp"}')
    assert before.differences(of(checkpoint)) == ["the model files base/config.json"]


def layers(dtype=torch.float32, **adapter):
    """As `open_for_training` leaves them: what is trained is in float32."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"q": nn.Linear(8, 8), "v": nn.Linear(8, 8, bias=False), "rest": nn.Linear(8, 8)}).to(dtype)
    if adapter:
        config = LoraConfig(init_lora_weights="gaussian", **{"target_modules": ["q", "v"], **adapter})
        model = inject_adapter_in_model(config, model)
        for parameter in model.parameters():
            parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_adapter_that_has_learned_nothing_is_no_weight(dtype):
    kinds = ({"r": 2}, {"r": 4}, {"r": 2, "use_dora": True}, {"r": 2, "target_modules": ["rest"]})
    assert {weights_digest(layers(dtype, **kind)) for kind in kinds} == {weights_digest(layers(dtype))}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("q.lora_B.default.weight", 1e-6),
        ("v.lora_magnitude_vector.default.weight", 1e-4),
        ("q.base_layer.weight", 1e-2),
        ("rest.bias", 1e-6),
    ],
)
def test_an_adapter_that_has_learned_counts_and_so_does_all_else(name, change):
    model = layers(r=2, use_dora=True)
    before = weights_digest(model)
    model.get_parameter(name).data[-1] += change
    after = weights_digest(model)
    assert after not in (before, weights_digest(layers()))
    model.get_parameter("q.lora_A.default.weight").data += 1  # which B multiplies
    assert (weights_digest(model) != after) == (name in ("q.lora_B.default.weight", "q.base_layer.weight"))


def test_an_adapter_of_an_unknown_kind_counts():
    model = layers(r=2)
    model["q"].lora_shift = nn.Linear(8, 8)
    assert weights_digest(model) != weights_digest(layers())
