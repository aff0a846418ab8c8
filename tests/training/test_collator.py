from __future__ import annotations

import pickle

import pytest
from datasets import Dataset

from hf_mmembed.data.pairs import read_pairs
from hf_mmembed.mining import content_ids
from hf_mmembed.training.collator import ROW, PairCollator
from tests.training.conftest import make_pairs


def collate(pairs, rows):
    return PairCollator(content_ids(pairs))([{**pairs[row], ROW: row} for row in rows])


def test_positives_of_a_query_are_those_of_the_whole_dataset():
    rows = {"query": ["a disc", "A disc.", "a box"], "positive": ["round", "circular", "square"]}
    facts = collate(read_pairs(Dataset.from_dict(rows)), [2, 0])["facts"]
    assert facts.rows.tolist() == [2, 0]
    assert facts.document_ids.tolist() == [2, 0]
    assert facts.positives.tolist() == [[2, -1], [0, 1]]


def test_negatives_follow_the_positives_and_know_their_row():
    pairs = make_pairs(6, negatives=True)
    batch = collate(pairs, [1, 3, 2])
    queries, documents = batch["sides"]
    facts = batch["facts"]
    assert facts.negative_rows.tolist() == [1, 2, 2]
    assert len(queries.places) == 3 and len(documents.places) == 6
    texts = [documents.messages[place][-1]["content"][-1]["text"] for place in documents.places if place != 1]
    assert texts == ["a green one, number 1", "a blue one, number 2", "no green", "no blue", "no blue"]
    assert facts.negative_ids[1] == facts.negative_ids[2] != facts.negative_ids[0]
    assert (queries.task, documents.task) == ("query", "document")


def test_pictures_stay_encoded():
    pairs = make_pairs(4)
    _, documents = collate(pairs, [0])["sides"]
    assert documents.messages[0][0]["content"][0]["image"] == pairs[0]["pos_image"]["bytes"]


def test_travels_to_workers_and_back():
    batch = pickle.loads(pickle.dumps(collate(make_pairs(4, negatives=True), range(4))))  # noqa: S301, made here
    assert batch["facts"].rows.tolist() == [0, 1, 2, 3]


def test_a_row_that_cannot_be_embedded_is_named():
    pairs = make_pairs(4)
    broken = {**pairs[1], "pos_text": "", "pos_image": None, ROW: 1}
    with pytest.raises(ValueError, match=r"inputs\[1\] has neither text nor image"):
        PairCollator(content_ids(pairs))([broken])
