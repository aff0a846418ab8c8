"""What is said about a scene: noun phrases, captions, one-word summaries and edits.

In: a `Scene` and a `random.Random`. Out: plain English from a small grammar with synonyms and paraphrases. Every text
is true of its scene; what it leaves out (size, fill, background, place, relation) is left out at random.

Every choice takes exactly one number from the generator, so two scenes that differ in an attribute are described in
the same words, but for that attribute, when their generators start from the same seed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import TypeVar

from hf_mmembed.data.scenes import BACKGROUNDS, COLORS, FILLS, SHAPES, SIZES, Scene, Shape, move_apart, relation

__all__ = [
    "NUMBERS",
    "RELATION_PHRASES",
    "SYNONYMS",
    "caption",
    "edit",
    "noun_phrase",
    "pick",
    "place_of",
    "plural_of",
    "relation_caption",
    "salient_words",
    "salient_words_of_text",
    "synonym",
    "with_article",
]

SYNONYMS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "circle", "disc"),
    "square": ("square", "square", "box"),
    "cross": ("cross", "cross", "plus"),
    "diamond": ("diamond", "diamond", "rhombus"),
    "moon": ("moon", "moon", "crescent"),
    "red": ("red", "red", "crimson"),
    "blue": ("blue", "blue", "azure"),
    "yellow": ("yellow", "yellow", "golden"),
    "purple": ("purple", "purple", "violet"),
    "small": ("small", "small", "tiny", "little"),
    "large": ("large", "large", "big", "huge"),
    "solid": ("solid", "plain", "filled"),
    "striped": ("striped", "striped", "stripy"),
    "gray": ("gray", "gray", "grey"),
}
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
RELATION_PHRASES = {
    "left": ("left of", "to the left of", "on the left side of"),
    "right": ("right of", "to the right of", "on the right side of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath"),
}
_PLURALS = {"box": "boxes", "cross": "crosses", "plus": "pluses", "rhombus": "rhombuses"}
_OPENINGS = ("", "", "", "a picture of ", "an image of ", "there is ", "this shows ", "a drawing of ", "we see ")
_BACKGROUND_PHRASES = (" on a {} background", " on {}", " in front of a {} background", ", {} background")
_PLACE_PHRASES = (" in the {}", " at the {}", " at the {} of the image")
_OPTIONS: dict[str, tuple[str, ...]] = {"color": tuple(COLORS), "shape": SHAPES, "size": SIZES, "fill": FILLS}
_EDIT_WORDINGS = {
    "color": ("make the {} {}", "change the color of the {} to {}", "paint the {} {}", "turn the {} {}"),
    "shape": ("replace the {} with a {}", "turn the {} into a {}", "change the {} to a {}"),
    "size": ("make the {} {}", "turn the {} {}"),
    "fill": ("make the {} {}", "turn the {} {}"),
}
_SALIENCE = {"shape": 0.37, "color": 0.34, "size": 0.10, "fill": 0.12, "background": 0.07}

T = TypeVar("T")


def pick(rng: Random, choices: Sequence[T]) -> T:
    """A uniformly chosen element for exactly one number of `rng` (`Random.choice` may take several)."""
    return choices[int(rng.random() * len(choices))]


def synonym(word: str, rng: Random) -> str:
    """The word itself or one of its synonyms."""
    return pick(rng, SYNONYMS.get(word, (word,)))


def noun_phrase(
    shape: Shape, rng: Random, *, article: bool = True, plural: bool = False, size: float = 0.6, fill: float = 0.7
) -> str:
    """Colour and shape always, size and fill with the given probabilities ("solid" is mentioned half as often).

    >>> noun_phrase(Shape("star", "green", "small", "solid"), Random(0), size=0, fill=0)
    'a green star'
    """
    size_draw, fill_draw, size_word, fill_word = rng.random(), rng.random(), *_words(rng, shape.size, shape.fill)
    words = [synonym(shape.color, rng), synonym(shape.shape, rng)]
    if plural:
        words[-1] = plural_of(words[-1])
    if fill_draw < (fill if shape.fill == "striped" else fill / 2):
        words.insert(0, fill_word)
    if size_draw < size:
        words.insert(0, size_word)
    return with_article(" ".join(words)) if article else " ".join(words)


def plural_of(word: str) -> str:
    """The word in the plural.

    >>> plural_of("box"), plural_of("star")
    ('boxes', 'stars')
    """
    return _PLURALS.get(word, word + "s")


def with_article(phrase: str) -> str:
    """The phrase after "a" or "an"."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def place_of(shape: Shape) -> str:
    """The part of the picture a shape lies in: "top left", "bottom", "center" and so on."""
    vertical = "top" if shape.y < 24 else "bottom" if shape.y > 40 else ""
    horizontal = "left" if shape.x < 24 else "right" if shape.x > 40 else ""
    return f"{vertical} {horizontal}".strip() or "center"


def caption(scene: Scene, rng: Random) -> str:
    """One true description in one of many wordings."""
    opening, ending = pick(rng, _OPENINGS), _background_phrase(scene, rng)
    detail, first = rng.random(), scene.shapes[0]
    if scene.kind == "one":
        place = pick(rng, _PLACE_PHRASES).format(place_of(first)) if detail < 0.4 else ""
        return opening + noun_phrase(first, rng) + place + ending
    if scene.kind == "count":
        opening = "there are " if opening == "there is " else opening
        return f"{opening}{NUMBERS[len(scene.shapes)]} {noun_phrase(first, rng, article=False, plural=True)}{ending}"
    if scene.kind == "two":
        if detail < 0.75:
            return opening + relation_caption(scene, rng) + ending
        phrases = [noun_phrase(shape, rng) for shape in _rotated(scene.shapes, rng)]
        return f"{opening}{phrases[0]} and {phrases[1]}{ending}"
    phrases = [noun_phrase(shape, rng, size=0.4, fill=0.5) for shape in _rotated(scene.shapes, rng)]
    return f"{opening}{phrases[0]}, {phrases[1]} and {phrases[2]}{ending}"


def relation_caption(scene: Scene, rng: Random) -> str:
    """The two shapes of a scene and how they stand, without opening or background.

    Raises:
        ValueError: The scene does not hold two shapes in a nameable relation.
    """
    first, second = _rotated(scene.shapes, rng)[:2]
    named = relation(first, second)
    if scene.kind != "two" or named is None:
        raise ValueError(f"a relation caption needs two shapes in a clear relation, got a {scene.kind!r} scene")
    phrase = pick(rng, RELATION_PHRASES[named])
    return f"{noun_phrase(first, rng)} {phrase} {noun_phrase(second, rng)}"


def salient_words(scene: Scene) -> dict[str, float]:
    """The words that could summarise the picture, with their probabilities (they sum to 1).

    Shapes and colours weigh most, then fill, size and background; each shape counts alike, and in a scene of several
    equal shapes their number takes a quarter.
    """
    concepts: dict[str, float] = defaultdict(float)
    for shape in scene.shapes:
        for attribute, weight in _SALIENCE.items():
            concept = scene.background if attribute == "background" else getattr(shape, attribute)
            concepts[concept] += weight
    if scene.kind == "count":
        concepts[NUMBERS[len(scene.shapes)]] += sum(concepts.values()) / 3
    return _spread_over_synonyms(concepts)


def salient_words_of_text(text: str) -> dict[str, float]:
    """The same for a text: its known concepts, weighted as in `salient_words`; empty if it names none."""
    concepts: dict[str, float] = defaultdict(float)
    for word in text.replace(",", " ").replace(".", " ").split():
        if word in _CONCEPTS:
            concepts[_CONCEPTS[word]] += _WEIGHTS[_CONCEPTS[word]]
    return _spread_over_synonyms(concepts)


def edit(scene: Scene, rng: Random) -> tuple[str, Scene]:
    """An instruction that changes one thing, and the scene after it, in a new layout.

    Colour, shape, size, fill or background changes, or one of several shapes goes.
    """
    while True:
        target = pick(rng, scene.distinct)
        name = noun_phrase(target, rng, article=False, plural=scene.kind == "count", size=0, fill=0)
        kind = rng.choices(("color", "shape", "size", "fill", "background", "remove"), (35, 30, 5, 10, 10, 10))[0]
        if kind == "background":
            new = pick(rng, [background for background in BACKGROUNDS if background != scene.background])
            wordings = ("make the background {}", "use a {} background", "change the background to {}")
            changed = replace(scene, background=new)
            instruction = pick(rng, wordings).format(synonym(new, rng))
        elif kind == "remove":
            if scene.kind not in ("two", "three"):
                continue
            changed = replace(
                scene,
                kind="one" if scene.kind == "two" else "two",
                shapes=tuple(shape for shape in scene.shapes if shape is not target),
            )
            instruction = pick(rng, ("remove the {}", "delete the {}", "without the {}")).format(name)
        else:
            options = _OPTIONS[kind]
            new = pick(rng, [option for option in options if option != getattr(target, kind)])
            if kind == "size" and (new == "large" and len(scene.shapes) > 2):
                continue
            changed = replace(
                scene,
                shapes=tuple(
                    _with(shape, kind, new) if shape.attributes == target.attributes else shape
                    for shape in scene.shapes
                ),
            )
            instruction = pick(rng, _EDIT_WORDINGS[kind]).format(name, synonym(new, rng))
        if len({shape.attributes[:2] for shape in changed.distinct}) == len(changed.distinct):
            moved = move_apart(changed, rng)
            if moved is not None:
                return instruction, moved


def _with(shape: Shape, attribute: str, value: str) -> Shape:
    fields = {name: getattr(shape, name) for name in ("shape", "color", "size", "fill")} | {attribute: value}
    return Shape(**fields, x=shape.x, y=shape.y, radius=shape.radius)


def _words(rng: Random, *concepts: str) -> list[str]:
    return [synonym(concept, rng) for concept in concepts]


def _spread_over_synonyms(concepts: dict[str, float]) -> dict[str, float]:
    words: dict[str, float] = defaultdict(float)
    total = sum(concepts.values())
    for concept, weight in concepts.items():
        forms = SYNONYMS.get(concept, (concept,))
        for form in forms:
            words[form] += weight / total / len(forms)
    return dict(words)


def _rotated(shapes: tuple[Shape, ...], rng: Random) -> tuple[Shape, ...]:
    start = int(rng.random() * len(shapes))
    return shapes[start:] + shapes[:start]


def _background_phrase(scene: Scene, rng: Random) -> str:
    mentioned, phrase, word = rng.random() < 0.45, pick(rng, _BACKGROUND_PHRASES), synonym(scene.background, rng)
    return phrase.format(word) if mentioned else ""


def _concepts() -> tuple[dict[str, str], dict[str, float]]:
    """Every word form with its concept, and every concept with its salience."""
    groups: dict[str, Sequence[str]] = {
        "shape": SHAPES,
        "color": tuple(COLORS),
        "size": SIZES,
        "fill": FILLS,
        "background": tuple(BACKGROUNDS),
    }
    weights = {concept: _SALIENCE[group] for group, concepts in groups.items() for concept in concepts}
    weights |= dict.fromkeys(tuple(NUMBERS.values())[1:], 0.33)
    forms = {form: concept for concept in weights for form in SYNONYMS.get(concept, (concept,))}
    forms |= {plural_of(form): concept for form, concept in forms.items() if concept in SHAPES}
    return forms, weights


_CONCEPTS, _WEIGHTS = _concepts()
