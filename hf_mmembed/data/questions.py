"""Questions about a scene with their one-word answers.

In: a `Scene` and a `random.Random`. Out: `Question`s that the scene answers without ambiguity: the shape or colour
that a question names occurs once in the picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal, get_args

from hf_mmembed.data.captions import NUMBERS, RELATION_PHRASES, pick, synonym, with_article
from hf_mmembed.data.scenes import (
    BACKGROUNDS,
    COLORS,
    FILLS,
    OPPOSITE,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    Shape,
    relation,
)

__all__ = ["ANSWERS", "TOPICS", "Question", "Topic", "ask"]

Topic = Literal[
    "color",
    "shape",
    "size",
    "fill",
    "background",
    "count",
    "related_shape",
    "related_color",
    "exists",
    "relation",
    "side",
]
TOPICS: tuple[Topic, ...] = get_args(Topic)

ANSWERS: dict[Topic, tuple[str, ...]] = {
    "color": tuple(COLORS),
    "shape": SHAPES,
    "size": SIZES,
    "fill": FILLS,
    "background": tuple(BACKGROUNDS),
    "count": tuple(NUMBERS.values()),
    "related_shape": SHAPES,
    "related_color": tuple(COLORS),
    "exists": ("yes", "no"),
    "relation": ("yes", "no"),
    "side": RELATIONS,
}
"""The answers a topic can have: their number is the rate of a blind guess."""

_WORDINGS: dict[Topic, tuple[str, ...]] = {
    "color": ("what color is the {}?", "which color is the {}?", "what is the color of the {}?"),
    "shape": ("what shape is the {}?", "which shape is the {}?", "what is the shape of the {}?"),
    "size": ("what size is the {}?", "how big is the {}?"),
    "fill": ("what pattern does the {} have?", "which texture is the {}?"),
    "background": ("what color is the background?", "which background color?"),
    "count": ("how many objects are there?", "how many shapes?"),
    "related_shape": ("what shape is {} the {}?", "which shape is {} the {}?"),
    "related_color": ("what color is the object {} the {}?", "which color is the thing {} the {}?"),
    "exists": ("is there {}?", "do you see {}?"),
    "relation": ("is the {} {} the {}?",),
    "side": (
        "where is the {}?",
        "on which side is the {}?",
        "where is the {}, seen from the {}?",
        "on which side of the {1} is the {0}?",
    ),
}


@dataclass(frozen=True)
class Question:
    """A question, its one-word answer, and the same answer as a sentence that says first what is seen.

    `about` is the (shape, colour) that a question of the topic ``"exists"`` asks for, which need not be there.
    """

    topic: Topic
    text: str
    answer: str
    sentence: str
    about: tuple[str, str] | None = None


def ask(scene: Scene, rng: Random, topics: tuple[Topic, ...] = TOPICS, *, mirrored: float = 0.0) -> Question | None:
    """One question on one of `topics`; None if the scene allows none of them without ambiguity.

    Args:
        scene: What is asked about.
        rng: Decides topic, shape and words.
        topics: What may be asked for.
        mirrored: Share of the false relations that are sure to be the opposite of the true one; the others are any
            but the true one, of which the axis alone (left or right, but not which) gives two in three away.
    """
    for topic in rng.sample(topics, len(topics)):
        question = _ask(scene, rng, topic, mirrored)
        if question is not None:
            return question
    return None


def _ask(scene: Scene, rng: Random, topic: Topic, mirrored: float) -> Question | None:
    wording = pick(rng, _WORDINGS[topic])
    shape = pick(rng, scene.distinct)
    if topic == "background":
        return Question(topic, wording, scene.background, f"the background is {scene.background}")
    if topic == "count":
        number = NUMBERS[len(scene.shapes)]
        return Question(topic, wording, number, f"there {'is' if number == 'one' else 'are'} {number}")
    if topic == "exists":
        return _exists(scene, shape, wording, rng)
    if topic in ("relation", "side", "related_shape", "related_color"):
        return _related(scene, shape, topic, wording, rng, mirrored)
    name = _name(scene, shape, rng, without=topic)
    if name is None:
        return None
    answer = getattr(shape, topic)
    return Question(
        topic, wording.format(name), answer, f"the {name} is {with_article(answer) if topic == 'shape' else answer}"
    )


def _name(scene: Scene, shape: Shape, rng: Random, *, without: str) -> str | None:
    """A name that only `shape` bears and that does not give the attribute `without` away."""
    if len(scene.distinct) == 1 and rng.random() < 0.5:
        return "object"
    others = [other for other in scene.distinct if other is not shape]
    names = []
    if without != "shape" and all(other.shape != shape.shape for other in others):
        names.append(synonym(shape.shape, rng))
    if without != "color" and all(other.color != shape.color for other in others):
        names.append(f"{synonym(shape.color, rng)} object")
    if without not in ("shape", "color"):
        names.append(f"{synonym(shape.color, rng)} {synonym(shape.shape, rng)}")
    return pick(rng, names) if names else None


def _exists(scene: Scene, shape: Shape, wording: str, rng: Random) -> Question:
    """Half yes, half no; a no mixes the attributes of two shapes where it can, so that a bag of words cannot answer."""
    color, form, answer = shape.color, shape.shape, "yes"
    if rng.random() < 0.5:
        answer = "no"
        present = {other.attributes[:2] for other in scene.shapes}
        swaps = [(a.shape, b.color) for a in scene.distinct for b in scene.distinct]
        wrong = [pair for pair in swaps if pair not in present]
        if not wrong or rng.random() < 0.4:
            wrong = [(form, other) for other in COLORS] + [(other, color) for other in SHAPES]
        form, color = pick(rng, [pair for pair in wrong if pair not in present])
    name = with_article(f"{synonym(color, rng)} {synonym(form, rng)}")
    alike = dict.fromkeys(with_article(f"{other.color} {form}") for other in scene.shapes if other.shape == form)
    seen = " and ".join(alike) or f"no {form}"
    return Question("exists", wording.format(name), answer, f"there is {seen}, {answer}", (form, color))


def _related(scene: Scene, shape: Shape, topic: Topic, wording: str, rng: Random, mirrored: float) -> Question | None:
    """Questions on how the two shapes of a pair stand to each other."""
    if scene.kind != "two":
        return None
    other = next(candidate for candidate in scene.shapes if candidate is not shape)
    named = relation(shape, other)
    if named is None:
        return None
    if topic in ("relation", "side"):
        said = named if topic == "side" or rng.random() < 0.5 else _other_than(named, rng, mirrored)
        first, second = (f"{synonym(s.color, rng)} {synonym(s.shape, rng)}" for s in (shape, other))
        phrase = pick(rng, RELATION_PHRASES[said])
        seen = f"the {first} is {phrase if said == named else RELATION_PHRASES[named][0]} the {second}"
        if topic == "side":
            return Question(topic, wording.format(first, second), named, seen)
        answer = "yes" if said == named else "no"
        return Question(topic, wording.format(first, phrase, second), answer, f"{seen}, {answer}")
    reference = _name(scene, other, rng, without="")
    if reference is None:
        return None
    phrase = pick(rng, RELATION_PHRASES[named])
    answer = shape.shape if topic == "related_shape" else shape.color
    sentence = f"{phrase} the {reference} is {with_article(f'{shape.color} {shape.shape}')}"
    return Question(topic, wording.format(phrase, reference), answer, sentence)


def _other_than(named: str, rng: Random, mirrored: float) -> str:
    """A relation that does not hold where `named` does."""
    if mirrored and rng.random() < mirrored:
        return OPPOSITE[named]
    return pick(rng, [other for other in RELATIONS if other != named])
