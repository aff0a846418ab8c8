"""The shipped weights serve the generative model and, converted once, the embedder."""

from __future__ import annotations

import multiprocessing
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from hf_mmembed.sentence_transformer import MMEmbedder
from hf_mmembed.tiny import checkpoint, checkpoint_path, generative_path, saha_path
from hf_mmembed.tiny.architecture import build_image_processor
from tests.forks import exit_codes


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


def test_processes_that_come_first_together_wait_for_one_of_them(shipped: Path) -> None:
    start = multiprocessing.get_context("fork").Barrier(4)

    def ask() -> None:
        start.wait()
        checkpoint_path()

    assert exit_codes(ask, *[()] * 4) == [0] * 4
    assert (checkpoint_path() / "config.json").is_file()


def test_threads_that_come_first_together_wait_for_one_of_them(shipped: Path) -> None:
    checkpoint_path()
    start = Barrier(8)

    def ask(_: int) -> Path:
        start.wait()
        return saha_path()

    with ThreadPoolExecutor(8) as threads:
        (adapter,) = set(threads.map(ask, range(8)))
    assert (adapter / "adapter_config.json").is_file()


def test_what_is_left_of_a_broken_conversion_is_replaced(shipped: Path) -> None:
    embedder = checkpoint_path()
    (embedder / "config.json").unlink()
    assert (checkpoint_path() / "config.json").is_file()


def test_a_cache_that_cannot_be_written_says_which_and_what_to_do(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = str(tmp_path / ("long" * 100))
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", cache)
    with pytest.raises(OSError, match="the shipped model.*too long.*HF_ASSETS_CACHE"):
        checkpoint_path()


def test_a_cache_that_takes_no_adapter_says_what_to_do(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, data: bytes) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    checkpoint_path()
    monkeypatch.setattr(checkpoint, "write_atomically", refused)
    with pytest.raises(OSError, match="the shipped model.*Permission denied.*HF_ASSETS_CACHE"):
        saha_path()


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


def test_the_adapter_of_saha_is_joined_with_its_base() -> None:
    queries, documents = ["a red star", "a blue circle"], [{"text": "a star that is red"}, {"text": "a circle"}]
    tuned, base = (MMEmbedder(path, device="cpu") for path in (saha_path(), checkpoint_path()))
    embeddings = tuned.encode_query(queries)
    assert np.abs(embeddings - base.encode_query(queries)).max() > 1e-2
    plain = SentenceTransformer(str(saha_path()), device="cpu", trust_remote_code=True)
    np.testing.assert_allclose(plain.encode_query([{"text": text} for text in queries]), embeddings, atol=2e-5)
    assert (tuned.similarity(embeddings, tuned.encode_document(documents)).argmax(1) == torch.arange(2)).all()
    assert sum(file.stat().st_size for file in Path(checkpoint.__file__).with_name("saha").iterdir()) < 2_000_000
