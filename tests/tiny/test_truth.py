"""What captions, scenes and labels mean, and when one answers another."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_mmembed.data.captions import caption, relation_caption
from hf_mmembed.data.scenes import Scene, Shape, random_scene
from hf_mmembed.tiny.testset import CHANGES, changed
from hf_mmembed.tiny.truth import FIELDS, answers, meaning_of_caption, meaning_of_label, meaning_of_scene


def true_of(text: str, scene: Scene) -> bool:
    return bool(answers(meaning_of_caption(text)[None], meaning_of_scene(scene)[None])[0, 0])


@given(st.integers(0, 10_000))
def test_every_caption_is_true_of_its_scene(seed: int) -> None:
    rng = Random(seed)
    scene = random_scene(rng, None)
    assert true_of(caption(scene, rng), scene)


@given(st.integers(0, 10_000), st.sampled_from(CHANGES))
def test_a_caption_is_false_of_a_scene_that_was_changed(seed: int, change: str) -> None:
    rng = Random(seed)
    scene = random_scene(rng, None, {"two": 1})
    first, second = scene.shapes
    if first.shape != second.shape and first.color != second.color:
        assert not true_of(relation_caption(scene, rng), changed(scene, change, rng))  # type: ignore[arg-type]


def test_what_is_left_out_may_be_anything_and_what_is_said_may_not() -> None:
    star = Scene("one", (Shape("star", "red", "small", "solid", x=10, y=10),), "white")
    for text in ("a red star", "a tiny crimson star on white", "a plain red star at the top left of the image"):
        assert true_of(text, star), text
    for text in ("a red star on black", "a striped red star", "a red star at the bottom", "two red stars"):
        assert not true_of(text, star), text
    assert not true_of("a red star and a blue circle", star)


def test_a_relation_reads_the_same_from_either_side() -> None:
    above = meaning_of_caption("a red star above a blue circle")
    assert (above == meaning_of_caption("a blue circle beneath a red star")).all()
    assert not (above == meaning_of_caption("a blue circle over a red star")).all()


def test_answers_equal_a_plain_comparison() -> None:
    rng = Random(0)
    scenes = [random_scene(rng, "mine", {"one": 1, "count": 1}) for _ in range(25)]
    rows = np.stack([*(meaning_of_scene(s) for s in scenes), *(meaning_of_caption(caption(s, rng)) for s in scenes)])
    for i, found in enumerate(answers(rows, rows)):
        for j, answer in enumerate(found):
            fields = list(zip(rows[i].tolist(), rows[j].tolist(), strict=True))
            entails = [all(a == b or a == -1 for a, b in fields), all(a == b or b == -1 for a, b in fields)]
            assert answer == any(entails)
    assert rows.shape == (50, FIELDS)


def test_labels_answer_themselves_alone() -> None:
    rows = np.stack([meaning_of_label("star"), meaning_of_label("red"), meaning_of_caption("a red star")])
    assert (answers(rows, rows) == np.eye(3, dtype=bool)).all()


@pytest.mark.parametrize("text", ["a red dog", "", "a red star above", "star"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no caption"):
        meaning_of_caption(text)
    with pytest.raises(ValueError, match="no label"):
        meaning_of_label("dog")
