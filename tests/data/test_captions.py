"""What is said about a scene is true of it."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_mmembed.data.captions import (
    RELATION_PHRASES,
    SYNONYMS,
    caption,
    edit,
    noun_phrase,
    relation_caption,
    salient_words,
    salient_words_of_text,
)
from hf_mmembed.data.scenes import OPPOSITE, Scene, random_scene, relation
from hf_mmembed.tiny.testset import CHANGES, changed

seeds = st.integers(0, 2**32)


def forms(concept: str) -> set[str]:
    return set(SYNONYMS.get(concept, (concept,)))


@given(seeds)
@settings(max_examples=40, deadline=None)
def test_captions_name_every_shape_with_its_color(seed: int) -> None:
    rng = Random(seed)
    scene = random_scene(rng, None)
    text = caption(scene, rng)
    for shape in scene.shapes:
        assert any(f"{color} {form}" in text for color in forms(shape.color) for form in forms(shape.shape)), (
            text,
            shape,
        )


@given(seeds)
@settings(max_examples=50, deadline=None)
def test_relation_captions_state_the_relation_that_holds(seed: int) -> None:
    rng = Random(seed)
    scene = random_scene(rng, None, {"two": 1})
    text = relation_caption(scene, rng)
    first, second = scene.shapes
    named = relation(first, second)
    assert named is not None
    starts_with_first = any(
        0 <= text.find(f"{color} {form}") < len(text) // 2
        for color in forms(first.color)
        for form in forms(first.shape)
    )
    phrases = RELATION_PHRASES[named if starts_with_first else OPPOSITE[named]]
    assert any(f" {phrase} " in text for phrase in phrases), (text, named)


def test_relation_captions_need_a_pair() -> None:
    with pytest.raises(ValueError, match="two shapes"):
        relation_caption(Scene("three", random_scene(Random(0), None, {"three": 1}).shapes, "white"), Random(0))


@given(seeds)
@settings(max_examples=40, deadline=None)
def test_salient_words_are_a_distribution_over_true_words(seed: int) -> None:
    rng = Random(seed)
    scene = random_scene(rng, None)
    words = salient_words(scene)
    assert sum(words.values()) == pytest.approx(1)
    for shape in scene.shapes:
        assert forms(shape.shape) | forms(shape.color) <= set(words)
    of_text = salient_words_of_text(caption(scene, rng))
    assert sum(of_text.values()) == pytest.approx(1)
    assert set(of_text) <= set(words) | {"one"}


def test_a_text_without_known_concepts_has_no_salient_word() -> None:
    assert salient_words_of_text("nothing of this world") == {}


@given(seeds)
@settings(max_examples=50, deadline=None)
def test_edits_change_exactly_one_thing(seed: int) -> None:
    rng = Random(seed)
    scene = random_scene(rng, None)
    instruction, after = edit(scene, rng)
    assert instruction
    if len(after.shapes) < len(scene.shapes):
        assert {s.attributes for s in after.shapes} < {s.attributes for s in scene.shapes}
        return
    differences = {
        (name, old, new)
        for a, b in zip(scene.shapes, after.shapes, strict=True)
        for name, old, new in zip(("shape", "color", "size", "fill"), a.attributes, b.attributes, strict=True)
        if old != new
    }
    assert len(differences) + (scene.background != after.background) == 1
    for _, _, new in differences:
        assert any(form in instruction for form in forms(new))


@given(seeds, st.sampled_from(CHANGES))
@settings(max_examples=50, deadline=None)
def test_the_same_seed_words_a_changed_scene_alike(seed: int, change: str) -> None:
    rng = Random(seed)
    scene = random_scene(rng, None, {"two": 1})
    if scene.shapes[0].shape == scene.shapes[1].shape or scene.shapes[0].color == scene.shapes[1].color:
        return
    other = changed(scene, change, rng)  # type: ignore[arg-type]
    true, false = relation_caption(scene, Random(seed)), relation_caption(other, Random(seed))
    assert true != false
    if change != "replace_relation":
        assert len(true.split()) == len(false.split())


def test_noun_phrases_use_an_before_a_vowel() -> None:
    orange = random_scene(Random(0), None, {"one": 1}).shapes[0]
    phrases = [noun_phrase(orange, Random(seed)) for seed in range(50)]
    assert all((phrase.split()[0] == "an") == (phrase.split()[1][0] in "aeiou") for phrase in phrases)
