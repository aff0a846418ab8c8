"""What MMEmbedder opens and refuses, and what it writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Router, StaticEmbedding
from transformers import AutoModel

from hf_mmembed import MMEmbedder

INPUTS = ["a red circle", Image.new("RGB", (40, 32), "red"), {"text": "a", "image": Image.new("RGB", (20, 60))}]


@pytest.fixture(scope="module")
def directory(embedder) -> str:
    return str(embedder("qwen2_vl"))


@pytest.fixture(scope="module")
def rows(directory) -> np.ndarray:
    return MMEmbedder(directory, device="cpu").encode_query(INPUTS)


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()
    }


def test_saves_what_plain_sentence_transformers_saves(directory, rows, tmp_path):
    for kind in (MMEmbedder, SentenceTransformer):
        model = kind(directory, trust_remote_code=True, device="cpu")
        model.save_pretrained(str(tmp_path / kind.__name__), create_model_card=False)
    ours, plain = contents(tmp_path / "MMEmbedder"), contents(tmp_path / "SentenceTransformer")
    assert list(ours) == list(plain)
    assert {name for name in ours if ours[name] != plain[name]} == set()
    for saved in ("MMEmbedder", "SentenceTransformer"):
        for kind in (MMEmbedder, SentenceTransformer):
            model = kind(str(tmp_path / saved), device="cpu")
            # MMEmbedder asks for the pooled token alone, which rounds in another order.
            np.testing.assert_allclose(model.encode_query(INPUTS), rows, rtol=0, atol=1e-6)


def test_saves_the_files_of_the_checkpoint(directory, tmp_path):
    MMEmbedder(directory, device="cpu").save_pretrained(str(tmp_path))
    assert set(contents(Path(directory))) <= set(contents(tmp_path))
    # config.json is left out: sentence-transformers itself turns `use_cache` off in it.
    for name in ("modules.json", "sentence_bert_config.json", "processor_config.json", "tokenizer.json"):
        assert json.loads((tmp_path / name).read_text()) == json.loads(Path(directory, name).read_text()), name


def test_settings_are_saved(directory, tmp_path):
    model = MMEmbedder(directory, prompts={"query": "Find."}, truncate_dim=8, device="cpu")
    model.save_pretrained(str(tmp_path))
    for kind in (MMEmbedder, SentenceTransformer):
        again = kind(str(tmp_path), device="cpu")
        assert again.prompts == {"query": "Find.", "document": ""}
        assert again.truncate_dim == 8 and again.similarity_fn_name == "cosine"
    np.testing.assert_array_equal(MMEmbedder(str(tmp_path), device="cpu").encode_query("a"), model.encode_query("a"))


@pytest.mark.parametrize("trust", [False, True])
def test_no_remote_code_runs(directory, rows, tmp_path, trust):
    copy = shutil.copytree(directory, tmp_path / "hostile")
    hostile = list(copy.glob("*.py"))
    assert hostile
    for file in hostile:
        file.write_text("raise RuntimeError('remote code was executed')\n")
    model = MMEmbedder(str(copy), trust_remote_code=trust, device="cpu")
    np.testing.assert_array_equal(model.encode_query(INPUTS), rows)


def test_modules_may_be_given(directory, rows):
    opened = MMEmbedder(directory, device="cpu")
    np.testing.assert_array_equal(MMEmbedder(modules=[opened[0]], device="cpu").encode_query(INPUTS), rows)


def test_a_router_may_lead_queries_and_documents_different_ways(directory, rows):
    opened = MMEmbedder(directory, device="cpu")
    dense = Dense(opened.get_embedding_dimension(), 4)
    router = Router.for_query_document([opened[0]], [MMEmbedder(directory, device="cpu")[0], dense])
    model = MMEmbedder(modules=[router], device="cpu")
    np.testing.assert_allclose(model.encode_query(INPUTS), rows, rtol=0, atol=1e-6)
    with torch.no_grad():
        features = torch.from_numpy(opened.encode_document(INPUTS))
        expected = dense({"sentence_embedding": features})["sentence_embedding"]
    np.testing.assert_allclose(model.encode_document(INPUTS), expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"inputs\[1\]"):
        model.encode_query(["a", {"image": "nowhere.png"}])


def test_a_checkpoint_that_was_not_converted_is_refused(generative):
    with pytest.raises(ValueError, match="modules.json.*hf-mmembed convert"):
        MMEmbedder(str(generative("qwen2_vl")))


def test_a_model_of_text_alone_is_refused(directory):
    tokenizer = MMEmbedder(directory, device="cpu").tokenizer
    with pytest.raises(ValueError, match="no chat messages"):
        MMEmbedder(modules=[StaticEmbedding(tokenizer.backend_tokenizer, embedding_dim=4)])


def test_a_path_object_names_a_directory(directory, rows):
    np.testing.assert_array_equal(MMEmbedder(Path(directory), device="cpu").encode_query(INPUTS), rows)


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        MMEmbedder(str(tmp_path / "some" / "nowhere"))


def test_dtype(directory, rows):
    model = MMEmbedder(directory, model_kwargs={"dtype": torch.bfloat16}, device="cpu")
    assert model.dtype == torch.bfloat16
    half = model.encode_query(INPUTS)
    assert half.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(half, axis=1), 1, atol=1e-5)
    assert (half * rows).sum(axis=1).min() > 0.98


class TestAdapters:
    @pytest.fixture(scope="class")
    @classmethod
    def lora(cls) -> LoraConfig:
        return LoraConfig(r=2, target_modules=r".*language_model.*\.(q_proj|v_proj)", init_lora_weights=False)

    def test_saved_by_the_embedder(self, directory, rows, lora, tmp_path):
        model = MMEmbedder(directory, device="cpu")
        model.add_adapter(lora)
        adapted = model.encode_query(INPUTS)
        assert np.abs(adapted - rows).max() > 1e-3
        model.save_pretrained(str(tmp_path))
        assert not list(tmp_path.glob("model*.safetensors"))
        for kind in (MMEmbedder, SentenceTransformer):
            again = kind(str(tmp_path), device="cpu").encode_query(INPUTS)
            np.testing.assert_allclose(again, adapted, atol=1e-6)

    def test_saved_by_peft(self, directory, rows, lora, tmp_path):
        adapted = get_peft_model(AutoModel.from_pretrained(directory), lora)
        adapted.save_pretrained(tmp_path)
        assert not (tmp_path / "modules.json").exists()
        model = MMEmbedder(str(tmp_path), device="cpu")
        merged = MMEmbedder(directory, device="cpu")
        merged[0].model = adapted.merge_and_unload()
        np.testing.assert_allclose(model.encode_query(INPUTS), merged.encode_query(INPUTS), atol=1e-5)
        assert np.abs(model.encode_query(INPUTS) - rows).max() > 1e-3
