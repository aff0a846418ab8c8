from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from hf_mmembed import MMEmbedder
from hf_mmembed.training import models
from hf_mmembed.training.models import adapter_of, open_embedder, save_result
from hf_mmembed.training.trainer import SaHaTrainer
from tests.training.conftest import make_pairs
from tests.training.runs import CLUSTERS, arguments, assert_same, trained_weights


@pytest.mark.parametrize("save_as", ["adapter", "merged"])
def test_the_result_opens_in_sentence_transformers_at_once(uninterrupted, tmp_path, save_as):
    _, trainer, _ = uninterrupted
    trainer.args.save_as = save_as
    result = trainer.save_result(tmp_path / "result")
    assert (result / "adapter_model.safetensors").is_file() == (save_as == "adapter")
    assert (result / "model.safetensors").is_file() == (save_as == "merged")
    inputs = [{"text": "red thing"}, {"text": "blue", "image": Image.new("RGB", (16, 16), "blue")}]
    expected = trainer.model.encode_query(inputs)
    for opened in (
        SentenceTransformer(str(result), trust_remote_code=True, device="cpu"),
        MMEmbedder(result, device="cpu"),
    ):
        np.testing.assert_allclose(opened.encode_query(inputs), expected, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_dora_adapters_open_through_transformers_and_through_peft(embedder, tmp_path):
    args = arguments(tmp_path / "run", use_dora=True, max_steps=1)
    trainer = SaHaTrainer(embedder("qwen2_vl"), args, make_pairs(), CLUSTERS)
    before = trainer.model.encode_query(["red thing"])
    trainer.train()
    expected = trainer.model.encode_query(["red thing"])
    assert np.abs(expected - before).max() > 1e-3
    results = [save_result(trainer.model, tmp_path / str(merged), merged=merged) for merged in (False, True)]
    for path in (tmp_path / "run" / "checkpoint-1", *results):
        np.testing.assert_allclose(MMEmbedder(path, device="cpu").encode_query(["red thing"]), expected, atol=1e-5)


def test_an_adapter_is_merged_into_the_commit_of_the_base_it_was_made_for(
    uninterrupted, embedder, tmp_path, monkeypatch
):
    _, trainer, _ = uninterrupted
    adapter = adapter_of(trainer.model)
    monkeypatch.setattr(adapter, "base_model_name_or_path", "org/base")
    monkeypatch.setattr(adapter, "revision", "abc123")
    opened = []

    def open_base(name, **options):
        opened.append((name, options["revision"]))
        return MMEmbedder(embedder("qwen2_vl"), device="cpu")

    monkeypatch.setattr(models, "MMEmbedder", open_base)
    save_result(trainer.model, tmp_path / "merged", merged=True)
    assert opened == [("org/base", "abc123")]


def test_names_that_no_layer_has_are_told(embedder, tmp_path, caplog):
    args = arguments(tmp_path, lora_target_modules=["q_proj", "qkv_proj", "gate_up_proj"])
    SaHaTrainer(embedder("qwen2_vl"), args, make_pairs(), CLUSTERS)
    assert "no layer of the language model is called gate_up_proj, qkv_proj: nothing is trained there" in caplog.text


def test_layers_of_another_kind_of_block_that_get_no_adapter_are_told(embedder, tmp_path, caplog):
    layers = "linear_attn.in_proj_a, linear_attn.in_proj_b, linear_attn.in_proj_qkv, linear_attn.in_proj_z"
    SaHaTrainer(embedder("qwen3_5"), arguments(tmp_path / "some"), make_pairs(), CLUSTERS)
    assert f"get no adapter: {layers}, linear_attn.out_proj; add them" in caplog.text
    caplog.clear()
    SaHaTrainer(embedder("qwen3_5_moe"), arguments(tmp_path / "experts"), make_pairs(), CLUSTERS)
    assert f"get no adapter: {layers}, linear_attn.out_proj; add them" in caplog.text
    caplog.clear()
    names = ["q_proj", "in_proj_qkv", "down_proj"]
    SaHaTrainer(embedder("qwen3_5"), arguments(tmp_path / "all", lora_target_modules=names), make_pairs(), CLUSTERS)
    SaHaTrainer(embedder("qwen2_vl"), arguments(tmp_path / "one", lora_target_modules=["q_proj"]), make_pairs())
    assert "no adapter" not in caplog.text


def test_an_adapter_goes_on_training(uninterrupted, tmp_path):
    _, trainer, weights = uninterrupted
    trainer.args.save_as = "adapter"
    result = trainer.save_result(tmp_path / "adapter")
    again = SaHaTrainer(result, arguments(tmp_path / "run", max_steps=1), make_pairs(), CLUSTERS)
    before = trained_weights(again.model)
    assert_same(before, weights[6])
    again.train()
    after = trained_weights(again.model)
    assert any(not torch.equal(after[name], before[name]) for name in before)


def test_a_generative_checkpoint_is_converted_and_all_weights_can_be_trained(generative, tmp_path):
    args = arguments(tmp_path / "run", lora_rank=0, max_steps=1, save_strategy="no")
    trainer = SaHaTrainer(generative("qwen2_vl"), args, make_pairs())
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())
    trainer.train()
    result = trainer.save_result(tmp_path / "result")
    assert len(load_file(result / "model.safetensors")) == len(trainer.model.transformers_model.state_dict())
    assert (tmp_path / "run" / "embedder" / "modules.json").is_file()


@pytest.fixture
def project(generative, tmp_path, monkeypatch):
    """A folder with a base and a run that has converted it; what would be opened is told and not opened."""
    monkeypatch.setattr(models, "MMEmbedder", lambda path, **_: Path(path))
    base = shutil.copytree(generative("qwen2_vl"), tmp_path / "project" / "base")
    assert open_embedder(base, tmp_path / "project" / "run") == tmp_path / "project" / "run" / "embedder"
    monkeypatch.setattr(models, "convert", None)
    return tmp_path / "project"


def _other_weights(directory):
    weights = bytearray((directory / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (directory / "model.safetensors").write_bytes(weights)


def test_another_model_in_the_same_directory_is_refused(project):
    base, run = project / "base", project / "run"
    with pytest.raises(
        ValueError, match=r"run/embedder was made with another prompt; choose another output directory"
    ):
        open_embedder(base, run, prompt="e5v")
    _other_weights(other := shutil.copytree(base, project / "other" / "base"))
    with pytest.raises(ValueError, match=rf"run/embedder was made of {base}, .*other weights than .*{other}; choose"):
        open_embedder(other, run)
    _other_weights(base)
    with pytest.raises(ValueError, match=r"choose .*, or delete"):
        open_embedder(base, run)


@pytest.mark.parametrize("recorded", [True, False])
def test_a_hub_id_is_another_model_than_a_directory_of_that_name(project, monkeypatch, recorded):
    if not recorded:
        (project / "run" / "embedder.json").unlink()
    monkeypatch.setattr(models, "find_adapter_config_file", lambda path: None)
    monkeypatch.setattr(models, "is_sentence_transformer_model", lambda path: False)
    with pytest.raises(ValueError, match=r"run/embedder was made of .*base, not of org/base; choose"):
        open_embedder("org/base", project / "run")


def test_of_a_model_of_the_hub_the_whole_id_counts(project, tmp_path, monkeypatch):
    record = project / "run" / "embedder.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "model": "org/base", "weights": {}}))
    monkeypatch.setattr(models, "find_adapter_config_file", lambda path: None)
    monkeypatch.setattr(models, "is_sentence_transformer_model", lambda path: False)
    assert open_embedder("org/base", project / "run") == project / "run" / "embedder"
    for other in ("base", "other/base", project / "base", project / "gone" / "base"):
        with pytest.raises(ValueError, match=rf"run/embedder was made of org/base, not of {other}; choose"):
            open_embedder(other, project / "run")


def test_a_run_may_be_moved_with_its_base(project, tmp_path):
    os.utime(project / "base" / "model.safetensors", (0, 0))
    assert open_embedder(project / "base", project / "run") == project / "run" / "embedder"
    moved = project.rename(tmp_path / "moved")
    (moved / "base").rename(moved / "renamed")
    assert open_embedder(moved / "renamed", moved / "run") == moved / "run" / "embedder"


@pytest.mark.parametrize("recorded", [True, False])
def test_a_base_that_is_gone_is_not_needed(project, tmp_path, monkeypatch, recorded):
    if not recorded:  # by a run that was killed right after the conversion
        (project / "run" / "embedder.json").unlink()
    monkeypatch.setattr(models, "is_sentence_transformer_model", None)  # it would ask the Hub
    shutil.rmtree(project / "base")
    moved = project.rename(tmp_path / "moved")
    for base in (moved / "base", "base", "./base", "../moved/base"):
        assert open_embedder(base, moved / "run") == moved / "run" / "embedder"
    if recorded:
        assert open_embedder("project/base", moved / "run") == moved / "run" / "embedder"
    with pytest.raises(OSError, match="other"):
        open_embedder(moved / "other", moved / "run")


def test_a_conversion_that_is_killed_leaves_no_record_of_an_earlier_one(project, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    shutil.rmtree(project / "run" / "embedder")
    monkeypatch.setattr(models, "convert", killed)
    with pytest.raises(KeyboardInterrupt):
        open_embedder(project / "base", project / "run")
    assert not any((project / "run").iterdir())
