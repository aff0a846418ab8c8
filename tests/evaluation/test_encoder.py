"""Real models, ours and others': what reaches them, and that scores do not depend on how inputs are batched."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from hf_mmembed import MMEmbedder, MMEmbedProcessor
from hf_mmembed.evaluation import SentenceEncoder, evaluate, load_encoder
from hf_mmembed.evaluation.encoder import _fingerprint, model_name
from hf_mmembed.evaluation.items import ImageFile, Item
from hf_mmembed.thinking import make_unified
from tests.evaluation import layouts


@pytest.fixture(scope="module")
def checkpoint(embedder):
    return embedder("qwen2_vl")


@pytest.fixture
def picture(tmp_path):
    layouts.write_pictures(tmp_path, [200])
    return ImageFile(tmp_path / "200.png")


def test_a_unified_model_is_ours_and_reads_traces(generative, tmp_path):
    encoder = load_encoder(make_unified(generative("qwen2_vl"), tmp_path / "unified", head="mlp"), device="cpu")
    assert encoder.ours and isinstance(encoder.model, MMEmbedder)
    plain, traced = encoder([Item("a", role="query"), Item("a", role="query", trace="<think> b </think> c")])
    assert np.abs(plain - traced).max() > 1e-3


def test_items_reach_our_model_with_their_side_and_instruction(checkpoint, picture):
    encoder = load_encoder(checkpoint, device="cpu")
    assert encoder.name == checkpoint.name and isinstance(encoder.model, MMEmbedder)
    items = [
        Item("a red square", role="query"),
        Item("a red square"),
        Item("a red square", (picture,), "Find it.", "query"),
        Item(None, (picture, picture)),
        Item(""),
        Item("a red square", role="query", trace="<think> red </think> square"),
    ]
    model, data = encoder.model, picture.read()
    expected = [
        model.encode_query("a red square"),
        model.encode_document("a red square"),
        model.encode_query({"text": "a red square", "image": data, "instruction": "Find it."}),
        model.encode_document({"image": [data, data]}),
        model.encode_document(""),
        model.encode_query("a red square", traces="<think> red </think> square"),
    ]
    found = encoder(items)
    assert np.abs(found - np.stack(expected)).max() < 1e-5
    assert len({vector.tobytes() for vector in found}) == len(items)


def test_how_line_breaks_of_the_words_are_read_decides_what_is_kept(checkpoint, monkeypatch):
    model = load_encoder(checkpoint, device="cpu").model
    before, content = _fingerprint(model), MMEmbedProcessor._content
    monkeypatch.setattr(
        MMEmbedProcessor, "_content", lambda *arguments: content(*arguments).replace("words\n\n", "words\n")
    )
    assert _fingerprint(model) != before


def test_a_broken_picture_is_named(checkpoint, tmp_path, caplog):
    layouts.write_small_v1(tmp_path / "data", rows=4, candidates=3)
    broken = tmp_path / "data" / "images" / "GQA" / "2.png"
    broken.write_bytes(broken.read_bytes()[:50])
    encoder = load_encoder(checkpoint, device="cpu")
    results = evaluate(encoder, "mmeb-v1", tmp_path / "data", subsets=["GQA"], out=tmp_path / "out")
    assert str(broken) in results.failed["GQA"]


def test_the_key_follows_weights_and_prompt_but_not_the_place(checkpoint, embedder, tmp_path):
    import shutil

    import torch

    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    first, second = load_encoder(checkpoint, device="cpu"), load_encoder(copy, device="cpu")
    assert first.key == second.key
    with torch.no_grad():
        next(second.model.parameters()).view(-1)[0] += 1
    assert SentenceEncoder(second.model).key != first.key
    other = load_encoder(embedder("qwen2_vl", prompt="plain"), device="cpu")
    assert other.key != first.key


@pytest.mark.parametrize("choice", [{"readout": "pre_mlp"}, {"pooling": "mean"}, {"embedding_dim": 8}])
def test_the_key_follows_how_the_backbone_is_read_out(checkpoint, choice):
    plain, other = (SentenceEncoder(MMEmbedder(checkpoint, device="cpu", config_kwargs=own)) for own in ({}, choice))
    first, second = plain([Item("a red square")]), other([Item("a red square")])
    assert first.shape != second.shape or np.abs(first - second).max() > 1e-3
    assert plain.key != other.key


def test_the_key_of_another_model_follows_its_pooling():
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, WordEmbeddings
    from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer

    words = WordEmbeddings(WhitespaceTokenizer(["a", "b"], stop_words=[]), np.eye(2, dtype=np.float32))
    keys = [
        SentenceEncoder(SentenceTransformer(modules=[words, Pooling(2, mode)], device="cpu")).key
        for mode in ("mean", "max", "mean")
    ]
    assert keys[0] == keys[2] != keys[1]


def test_what_trainings_write_is_called_after_the_training(tmp_path, monkeypatch):
    names = {
        "saha-qwen2-vl-2b/model": "saha-qwen2-vl-2b",
        "unime/stage-1/model": "unime/stage-1",
        "unime/model/": "unime",
        "saha-qwen2-vl-2b/checkpoint-40": "saha-qwen2-vl-2b/checkpoint-40",
        "an-embedder": "an-embedder",
    }
    for path in names:
        (tmp_path / path).mkdir(parents=True)
    assert {path: model_name(tmp_path / path) for path in names} == names
    monkeypatch.chdir(tmp_path / "unime" / "model")
    assert [model_name(path) for path in (".", "../stage-1/model")] == ["unime", "unime/stage-1"]
    assert model_name("someone/model") == "someone/model"  # on the Hub


def test_pictures_are_scaled_as_asked(checkpoint, picture):
    whole, small = load_encoder(checkpoint, device="cpu"), load_encoder(checkpoint, device="cpu", longest_edge=5000)
    assert small.metadata["image_size"] == whole.metadata["image_size"] | {"longest_edge": 5000}
    assert small.key != whole.key
    Image.new("RGB", (300, 200), "red").save(picture.path)
    items = [Item(None, (picture,))]
    assert not np.allclose(small(items), whole(items), atol=1e-4)
    with pytest.raises(ValueError, match="longest_edge=1 does not fit"):
        load_encoder(checkpoint, device="cpu", longest_edge=1)


def test_scores_do_not_depend_on_the_batch_size(checkpoint, tmp_path):
    layouts.write_small_v1(tmp_path / "data", rows=8, candidates=6)
    scores = []
    for batch_size in (1, 16):
        model = MMEmbedder(checkpoint, device="cpu")
        encoder = SentenceEncoder(model, "tiny", batch_size=batch_size)
        results = evaluate(encoder, "mmeb-v1", tmp_path / "data", out=tmp_path / f"out{batch_size}")
        scores.append({name: row["hit@1"] for name, row in results.metrics["image"].items()})
        assert results.metadata["embedding_dimension"] == model.get_embedding_dimension()
    assert scores[0] == scores[1] and len(scores[0]) == 2


def test_any_sentence_transformer_will_do(tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: number for number, word in enumerate(["?", *"abcdefgh"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    text_only = SentenceTransformer(
        modules=[StaticEmbedding(tokenizer, embedding_weights=np.eye(9, dtype=np.float32))], device="cpu"
    )
    encoder = SentenceEncoder(text_only, "static")
    found = encoder([Item("a b", instruction="c", role="query"), Item("a b", role="query"), Item("d")])
    assert found[0].argmax() in (1, 2, 3) and found[0, 3] > 0 and found[1, 3] == 0 and found[2].argmax() == 4
    folder = tmp_path / "set"
    layouts.write_pictures(folder, [1])
    layouts.write_jsonl(folder / "metadata.jsonl", [{"file_name": "1.png", "text": "a b"}])
    results = evaluate(text_only, "retrieval", tmp_path, out=tmp_path / "out")
    assert set(results.failed) == {"set_t2i", "set_i2t"}  # it cannot read pictures, and says so
