from __future__ import annotations

import pytest
from datasets import Dataset

from hf_mmembed.distillation import read_sentences
from tests.training.conftest import make_pairs


def texts(pairs):
    return [(row["query_text"], row["pos_text"]) for row in pairs]


def test_pairs_of_any_columns():
    rows = Dataset.from_dict({"sent0": ["a", "b"], "sent1": ["c", "d"]})
    columns = {"query_text": "sent0", "pos_text": "sent1"}
    assert texts(read_sentences(rows, columns=columns)) == [("a", "c"), ("b", "d")]
    usual = Dataset.from_dict({"anchor": ["a"], "positive": ["b"]})
    assert texts(read_sentences(usual)) == [("a", "b")]


def test_lines_of_a_file(tmp_path):
    path = tmp_path / "sentences.txt"
    path.write_text("one\n\n two \nthree\n", encoding="utf-8")
    assert texts(read_sentences(path)) == [("one", "two"), ("three", "three")]
    with pytest.raises(FileNotFoundError, match=r"none\.txt"):
        read_sentences(tmp_path / "none.txt")


def test_a_table_of_plain_sentences(tmp_path):
    path = tmp_path / "sentences.csv"
    path.write_text("sentence,label\na,0\nb,1\n")
    assert texts(read_sentences(path, column="sentence")) == [("a", "b")]


def test_pictures_are_named():
    with pytest.raises(ValueError, match=r"2 of 6 rows are no pair of sentences.*rows 0, 3\."):
        read_sentences(make_pairs(6))
