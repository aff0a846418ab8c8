from __future__ import annotations

import os
import shutil

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


def test_another_model_in_the_same_directory_is_refused(generative, tmp_path):
    base = shutil.copytree(generative("qwen2_vl"), tmp_path / "base")
    opened = open_embedder(base, tmp_path / "run", device="cpu")
    assert_same(trained_weights(open_embedder(base, tmp_path / "run", device="cpu")), trained_weights(opened))
    with pytest.raises(
        ValueError, match=r"run/embedder was made with another prompt; choose another output directory"
    ):
        open_embedder(base, tmp_path / "run", prompt="e5v", device="cpu")
    moved = shutil.copytree(base, tmp_path / "other")
    with pytest.raises(ValueError, match=rf"run/embedder was made of {base}, not of {moved}; choose .*, or delete"):
        open_embedder(moved, tmp_path / "run", device="cpu")
    os.utime(base / "model.safetensors", (0, 0))
    with pytest.raises(ValueError, match=rf"run/embedder was made of other weights in {base}; choose"):
        open_embedder(base, tmp_path / "run", device="cpu")
    # As an earlier version left it: all that is known is the name of the model.
    (tmp_path / "run" / "embedder.json").unlink()
    open_embedder(base, tmp_path / "run", device="cpu")
    with pytest.raises(ValueError, match=rf"run/embedder was made of base, not of {moved}; choose"):
        open_embedder(moved, tmp_path / "run", device="cpu")
