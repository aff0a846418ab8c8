"""The cache of the teacher, with a real one."""

from __future__ import annotations

import numpy as np
import pytest

from hf_mmembed.distillation.sentences import as_sentence_pairs
from hf_mmembed.distillation.teacher import embed_with_teacher
from tests.distillation.conftest import SENTENCES


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
    assert counting.embedded == len(SENTENCES)
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
