"""Questions have one answer, and it is right."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_mmembed.data.captions import NUMBERS, RELATION_PHRASES, SYNONYMS
from hf_mmembed.data.questions import ANSWERS, TOPICS, ask
from hf_mmembed.data.scenes import OPPOSITE, random_scene, relation

BASE = {form: concept for concept, words in SYNONYMS.items() for form in words}


def named_shapes(scene, words):  # type: ignore[no-untyped-def]
    """The shapes of the scene that all the concept words apply to."""
    concepts = {BASE.get(word, word) for word in words}
    return [s for s in scene.distinct if concepts & {s.shape, s.color} and concepts <= {s.shape, s.color, "object"}]


@pytest.mark.parametrize("topic", TOPICS)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_answers_are_among_the_possible_ones(topic: str, seed: int) -> None:
    rng = Random(seed)
    question = ask(random_scene(rng, None), rng, (topic,))  # type: ignore[arg-type]
    if question is not None:
        assert question.answer in ANSWERS[question.topic] and question.topic == topic
        said = RELATION_PHRASES.get(question.answer, (question.answer,))  # left may be said as "to the left of"
        assert any(phrase in question.sentence for phrase in said)


@given(st.integers(0, 2**32), st.sampled_from(["color", "shape", "size", "fill"]))
@settings(max_examples=40, deadline=None)
def test_attribute_questions_name_one_shape(seed: int, topic: str) -> None:
    rng = Random(seed)
    scene = random_scene(rng, None, {"two": 1, "three": 1})
    question = ask(scene, rng, (topic,))  # type: ignore[arg-type]
    if question is None:
        return
    after = question.text.rstrip("?").split(" the ")[-1].removesuffix(" have").split()
    found = named_shapes(scene, after)
    assert len(found) == 1, (question.text, scene)
    assert getattr(found[0], topic) == question.answer


@given(st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_existence_and_count_are_answered_from_the_scene(seed: int) -> None:
    rng = Random(seed)
    scene = random_scene(rng, None)
    exists, count = ask(scene, rng, ("exists",)), ask(scene, rng, ("count",))
    assert exists is not None and count is not None
    color, shape = (BASE.get(word, word) for word in exists.text.rstrip("?").split()[-2:])
    present = (shape, color) in {s.attributes[:2] for s in scene.shapes}
    assert exists.answer == ("yes" if present else "no") and exists.about == (shape, color)
    seen, answer = exists.sentence.removeprefix("there is ").rsplit(", ", 1)
    alike = {s.color for s in scene.shapes if s.shape == shape}
    assert answer == exists.answer and {words.split()[-2] for words in seen.split(" and ")} == (alike or {"no"})
    assert count.answer == NUMBERS[len(scene.shapes)]


@given(st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_relation_questions_agree_with_the_layout(seed: int) -> None:
    rng = Random(seed)
    scene = random_scene(rng, None, {"two": 1})
    question = ask(scene, rng, ("relation",))
    assert question is not None
    first = question.text.removeprefix("is the ").split()[:2]
    subject = named_shapes(scene, first)[0]
    other = next(s for s in scene.shapes if s is not subject)
    if len(named_shapes(scene, first)) == 1:
        assert question.answer == ("yes" if relation(subject, other) == said_in(question.text) else "no")
        assert relation(subject, other) == said_in(question.sentence)


@pytest.mark.parametrize("mirrored", [0.0, 0.5, 1.0])
def test_of_the_false_relations_as_many_are_mirrored_as_is_asked_for(mirrored: float) -> None:
    rng = Random(0)
    found = []
    while len(found) < 600:
        question = ask(random_scene(rng, None, {"two": 1}), rng, ("relation",), mirrored=mirrored)
        if question is not None:
            found.append((question.answer, said_in(question.text), said_in(question.sentence)))
    false = [(said, seen) for answer, said, seen in found if answer == "no"]
    assert 0.45 < len(false) / len(found) < 0.55 and all(said != seen for said, seen in false)
    share = sum(said == OPPOSITE[seen] for said, seen in false) / len(false)
    assert share == pytest.approx(mirrored + (1 - mirrored) / 3, abs=0.06)


def said_in(text: str) -> str:
    return next(name for name, phrases in RELATION_PHRASES.items() if any(f" {p} the " in text for p in phrases))


@given(st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_where_a_shape_lies_is_seen_from_the_other(seed: int) -> None:
    rng = Random(seed)
    scene = random_scene(rng, None, {"two": 1})
    question = ask(scene, rng, ("side",))
    assert question is not None
    words = question.text.replace(",", "").rstrip("?").split()
    asked = words[3:5] if words[0] == "where" else words[-2:]
    subject = named_shapes(scene, asked)[0]
    other = next(s for s in scene.shapes if s is not subject)
    if len(named_shapes(scene, asked)) == 1:
        assert question.answer == relation(subject, other) == said_in(question.sentence)
    if len(words) > 7:
        assert other in named_shapes(scene, words[-2:] if words[0] == "where" else words[5:7])


def test_no_question_on_the_relation_of_a_single_shape() -> None:
    assert ask(random_scene(Random(0), None, {"one": 1}), Random(0), ("relation", "related_shape", "side")) is None
