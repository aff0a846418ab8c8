"""The shipped weights serve the generative model and, converted once, the embedder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from hf_mmembed.sentence_transformer import MMEmbedder
from hf_mmembed.tiny import checkpoint, checkpoint_path, generative_path
from hf_mmembed.tiny.architecture import build_image_processor


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model, tokenizer) -> Path:  # type: ignore[no-untyped-def]
    """An untrained model in the place of the shipped one, and an empty cache."""
    folder = tmp_path / "generative"
    for part in (model, tokenizer, build_image_processor()):
        part.save_pretrained(folder)
    monkeypatch.setattr(checkpoint, "_GENERATIVE", folder)
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "cache"))
    return folder


def test_the_embedder_is_converted_once_and_has_unit_embeddings(shipped: Path) -> None:
    first = checkpoint_path()
    written = (first / "model.safetensors").stat().st_mtime_ns
    assert checkpoint_path() == first
    assert (first / "model.safetensors").stat().st_mtime_ns == written
    embedding = MMEmbedder(str(first), device="cpu").encode_query("a red star", convert_to_tensor=True)
    torch.testing.assert_close(embedding.norm(), torch.tensor(1.0))


def test_changed_weights_are_converted_anew(shipped: Path) -> None:
    before = checkpoint_path()
    (shipped / "generation_config.json").write_text("{}\n")
    assert checkpoint_path() != before


def test_missing_weights_say_what_to_do(shipped: Path) -> None:
    (shipped / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="hf-mmembed tiny train"):
        generative_path()
    shutil.rmtree(shipped)
    with pytest.raises(FileNotFoundError):
        checkpoint_path()
