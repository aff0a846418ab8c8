"""What the queries and documents of the drawn world mean, so that a false negative can be told from a true one.

In: scenes, and texts that the grammar of `captions.py` wrote. Out: meanings, int8 rows `(n, FIELDS)`, one field per fact
(kind, number, colour and shape of everything, size, fill, relation, background, place), `OPEN` where nothing is said.
A document answers a query when one of the two entails the other: every fact of the one is a fact of the other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from hf_mmembed.data.captions import NUMBERS, RELATION_PHRASES, SYNONYMS, place_of, plural_of
from hf_mmembed.data.scenes import BACKGROUNDS, COLORS, FILLS, OPPOSITE, RELATIONS, SHAPES, SIZES, Scene, relation

__all__ = [
    "FIELDS",
    "OPEN",
    "Meaning",
    "answers",
    "disagreements",
    "meaning_of_caption",
    "meaning_of_label",
    "meaning_of_scene",
]

OPEN = -1
_NOTHING = -2
_PLACES = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
_LABELS = (*SHAPES, *COLORS, *SIZES, *FILLS, *BACKGROUNDS, *NUMBERS.values(), "yes", "no")
_THINGS = 3
FIELDS = 5 + 4 * _THINGS

Meaning = NDArray[np.int8]


@dataclass(frozen=True)
class _Thing:
    """A shape as far as it is described; None where it is not."""

    shape: str
    color: str
    size: str | None
    fill: str | None


def answers(queries: Meaning, documents: Meaning) -> NDArray[np.bool_]:
    """Whether each document is a true answer to each query: `(n_queries, n_documents)` of meanings `(n, FIELDS)`.

    >>> star, red_star = meaning_of_caption("a large pink star"), meaning_of_caption("a pink star on black")
    >>> answers(np.stack([star, red_star]), np.stack([star, meaning_of_caption("a pink star")]))
    array([[ True,  True],
           [False,  True]])
    """
    asked, said = queries[:, None], documents[None]
    same = asked == said
    return (same | (asked == OPEN)).all(-1) | (same | (said == OPEN)).all(-1)


def disagreements(queries: Meaning, documents: Meaning) -> NDArray[np.int64]:
    """On how many facts each query and its document differ, where neither leaves them open: `(n,)` of `(n, FIELDS)`.

    >>> star, circle = meaning_of_caption("a large pink star"), meaning_of_caption("a green circle on black")
    >>> disagreements(np.stack([star, star]), np.stack([star, circle]))
    array([0, 2])
    """
    stated = (queries != OPEN) & (documents != OPEN)
    return (stated & (queries != documents)).sum(-1)


def meaning_of_scene(scene: Scene, *, placed: bool = True) -> Meaning:
    """Everything there is to say of a picture; without the place of a single shape if not `placed`."""
    things = [_Thing(shape.shape, shape.color, shape.size, shape.fill) for shape in scene.distinct]
    return _meaning(
        things,
        number=len(scene.shapes),
        named=relation(*scene.shapes) if scene.kind == "two" else None,
        background=scene.background,
        place=place_of(scene.shapes[0]) if placed and scene.kind == "one" else None,
    )


def meaning_of_label(label: str) -> Meaning:
    """A class name or one-word answer, which nothing but itself answers.

    Raises:
        ValueError: The drawn world has no such label.
    """
    if label not in _LABELS:
        raise ValueError(f"{label!r} is no label; the labels are {', '.join(_LABELS)}")
    row = np.full(FIELDS, _NOTHING, dtype=np.int8)
    row[1] = _LABELS.index(label)
    return row


def meaning_of_caption(text: str) -> Meaning:
    """What a caption says, whatever its wording.

    Raises:
        ValueError: `captions.caption` would not write this text.
    """
    form = _caption_form().fullmatch(text)
    if form is None:
        raise ValueError(f"{text!r} is no caption of the drawn world")
    things = [
        _Thing(
            _concepts()[thing["shape"]], _concepts()[thing["color"]], _concept(thing["size"]), _concept(thing["fill"])
        )
        for thing in _thing_form().finditer(form["things"])
    ]
    named = next((name for name, phrases in RELATION_PHRASES.items() if form["relation"] in phrases), None)
    numbers = {word: number for number, word in NUMBERS.items()}
    return _meaning(
        things,
        number=numbers.get(form["number"], len(things)),
        named=named,
        background=_concept(form["background"]),
        place=form["place"],
    )


def _meaning(
    things: list[_Thing], *, number: int, named: str | None, background: str | None, place: str | None
) -> Meaning:
    if len(things) == 2 and (things[0].shape, things[0].color) > (things[1].shape, things[1].color):
        named = OPPOSITE[named] if named else None
    things = sorted(things, key=lambda thing: (thing.shape, thing.color))
    row = [
        len(things),
        number,
        _place_in(RELATIONS, named),
        _place_in(tuple(BACKGROUNDS), background),
        _place_in(_PLACES, place),
    ]
    for thing in things:
        row += [
            _place_in(SHAPES, thing.shape),
            _place_in(tuple(COLORS), thing.color),
            _place_in(SIZES, thing.size),
            _place_in(FILLS, thing.fill),
        ]
    return np.array(row + [_NOTHING] * (FIELDS - len(row)), dtype=np.int8)


def _place_in(names: tuple[str, ...], name: str | None) -> int:
    return OPEN if name is None else names.index(name)


@cache
def _concepts() -> dict[str, str]:
    groups = (*SHAPES, *COLORS, *SIZES, *FILLS, *BACKGROUNDS)
    forms = {form: concept for concept in groups for form in SYNONYMS.get(concept, (concept,))}
    return forms | {plural_of(form): concept for form, concept in forms.items() if concept in SHAPES}


def _concept(word: str | None) -> str | None:
    return None if word is None else _concepts()[word]


def _any_of(concepts: tuple[str, ...], *, plurals: bool = False) -> str:
    forms = {form for concept in concepts for form in SYNONYMS.get(concept, (concept,))}
    forms |= {plural_of(form) for form in forms} if plurals else set()
    return "|".join(sorted(forms, key=len, reverse=True))


@cache
def _thing_form() -> re.Pattern[str]:
    size, fill, color = _any_of(SIZES), _any_of(FILLS), _any_of(tuple(COLORS))
    shape = _any_of(SHAPES, plurals=True)
    return re.compile(rf"(?:(?P<size>{size}) )?(?:(?P<fill>{fill}) )?(?P<color>{color}) (?P<shape>{shape})\b")


@cache
def _caption_form() -> re.Pattern[str]:
    thing = r"(?:an? )?" + re.sub(r"\?P<\w+>", "?:", _thing_form().pattern)
    relations = "|".join(sorted(sum(RELATION_PHRASES.values(), ()), key=len, reverse=True))
    background = _any_of(tuple(BACKGROUNDS))
    return re.compile(
        r"(?:a picture of |an image of |there is |there are |this shows |a drawing of |we see )?"
        rf"(?:(?P<number>{'|'.join(NUMBERS.values())}) )?"
        rf"(?P<things>{thing}(?:(?:, | and | (?P<relation>{relations}) ){thing})*)"
        rf"(?: (?:in|at) the (?P<place>{'|'.join(sorted(_PLACES, key=len, reverse=True))})(?: of the image)?)?"
        rf"(?:(?: on(?: a)? | in front of a |, )(?P<background>{background})(?: background)?)?"
    )
