"""The drawn pairs: schema, truth, and the difficulty that was planted."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from hf_mmembed.bench.ablation import false_negatives
from hf_mmembed.data.pairs import PAIR_FEATURES
from hf_mmembed.mining import content_ids
from hf_mmembed.tiny import pairs as module
from hf_mmembed.tiny.pairs import DrawnPairs, draw_pairs


@pytest.fixture(scope="module")
def drawn() -> DrawnPairs:
    return draw_pairs(0, families=6)


def test_rows_are_of_the_schema_and_every_label_is_true(drawn: DrawnPairs) -> None:
    assert drawn.pairs.features == PAIR_FEATURES
    assert set(drawn.pairs["subset"]) == {"text_to_image", "image_to_text", "composed", "classify"}
    rows = np.arange(len(drawn.pairs))
    assert drawn.truth(rows, rows).diagonal().all()


def test_the_same_seed_draws_the_same_pairs(drawn: DrawnPairs) -> None:
    again, other = draw_pairs(0, families=6), draw_pairs(1, families=1)
    assert again.pairs.to_dict() == drawn.pairs.to_dict()
    assert (again.queries == drawn.queries).all() and (again.documents == drawn.documents).all()
    assert other.pairs["query_text"] != drawn.pairs["query_text"]


def test_every_scene_that_is_drawn_is_of_the_mine_split(monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = []
    draw = module.draw
    monkeypatch.setattr(module, "draw", lambda scene, rng: scenes.append(scene) or draw(scene, rng, pixels=16))
    draw_pairs(3, families=3)
    assert {module.split_of(scene) for scene in scenes} == {"mine"}


def test_difficulty_is_planted(drawn: DrawnPairs) -> None:
    ids = content_ids(drawn.pairs)
    subsets = np.array(drawn.pairs["subset"])
    for subset in ("text_to_image", "image_to_text", "composed"):
        rows = np.flatnonzero(subsets == subset)
        assert false_negatives(drawn, ids, rows) > 0, f"{subset}: no unmarked answers"
    rows = np.flatnonzero(subsets == "text_to_image")
    documents_of = Counter(ids.query_ids[rows].tolist())
    assert max(documents_of.values()) > 1, "no query with several documents"
    assert max(Counter(ids.document_ids[rows].tolist()).values()) > 1, "no picture with several captions"
    assert len(set(ids.document_ids[subsets == "classify"].tolist())) <= 16
    # The same words, bound differently: columns 5, 9 and 6, 10 are shapes and colours of a pair.
    pictures = np.unique(drawn.documents[rows], axis=0)
    pictures = pictures[pictures[:, 0] == 2]
    words = np.concatenate([np.sort(pictures[:, [5, 9]], 1), np.sort(pictures[:, [6, 10]], 1)], 1)
    assert len(np.unique(words, axis=0)) < len(np.unique(pictures[:, [2, 5, 6, 9, 10]], axis=0))


def test_more_pictures_of_a_scene_are_more_false_negatives(drawn: DrawnPairs) -> None:
    shares = []
    for pairs in (drawn, draw_pairs(0, families=6, pictures=6, pixels=16)):
        rows = np.flatnonzero(np.array(pairs.pairs["subset"]) == "text_to_image")
        shares.append(false_negatives(pairs, content_ids(pairs.pairs), rows) / len(rows))
    assert shares[1] > 2 * shares[0]


def test_false_negatives_are_true_and_not_named(drawn: DrawnPairs) -> None:
    ids = content_ids(drawn.pairs)
    batch = np.random.default_rng(0).permutation(len(drawn.pairs))[:60]
    named = set(zip(ids.query_ids.tolist(), ids.document_ids.tolist(), strict=True))
    expected = 0
    for i in batch:
        for j in batch:
            true = drawn.truth(np.array([i]), np.array([j]))[0, 0]
            expected += bool(true) and (ids.query_ids[i], ids.document_ids[j]) not in named
    assert false_negatives(drawn, ids, batch) == expected > 0
