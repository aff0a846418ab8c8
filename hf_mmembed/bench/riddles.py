"""Queries of the drawn world that have to be thought about, and what an oracle that sees the scene graph thinks.

In: a seed. Out: queries with the picture that answers each, and a trace: ``<think> reasoning </think> conclusion``. The
oracle knows what is in the query's picture and what is asked, never the picture that answers. Four tasks: the shape
that stands somewhere (``relation``), as many of another shape (``count``), the picture after a change (``composed``),
and, where there is nothing to think about, a plain caption (``caption``). The scene of a query is of the split asked for;
but for ``caption``, the picture that answers may show a scene of any.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from datasets import Dataset
from PIL import Image

from hf_mmembed.data.captions import NUMBERS, RELATION_PHRASES, SYNONYMS, caption, edit, pick, plural_of, with_article
from hf_mmembed.data.pairs import PAIR_FEATURES
from hf_mmembed.data.scenes import (
    BACKGROUNDS,
    COLORS,
    FILLS,
    SHAPES,
    SIZES,
    Scene,
    Shape,
    Split,
    draw,
    graph_key,
    move_apart,
    random_scene,
    relation,
)
from hf_mmembed.thinking.templates import FAMILIES, Templates

__all__ = [
    "DRAWN_TEMPLATES",
    "FAMILY_OF",
    "TASKS",
    "Riddle",
    "RiddleTest",
    "as_pairs",
    "build_riddles",
    "draw_riddles",
]

FAMILY_OF = {"relation": "grounding", "count": "qa", "composed": "composed", "caption": "content"}
"""The task family of each task."""
TASKS = tuple(FAMILY_OF)

# The request of a large model is some 150 tokens to a vocabulary of shapes and colours, which has no word of it.
DRAWN_TEMPLATES = Templates(
    version="drawn-1",
    system="",
    form="then answer.",
    answer="",
    requests=dict.fromkeys(FAMILIES, "think,"),
    think={family: family != "content" for family in FAMILIES},
)
"""What a model of the drawn world is asked."""

PIXELS = 64
_COUNTS = (2, 3, 4)
_PLAIN = {form: word for word, forms in SYNONYMS.items() for form in forms}
_PLAIN |= {plural_of(form): plural_of(word) for form, word in _PLAIN.items() if word in SHAPES}


@dataclass(frozen=True)
class Riddle:
    """A query, the picture that answers it, and the oracle's trace.

    Attributes:
        task: One of `TASKS`.
        text: Of the query.
        picture: Of the query; None for a caption.
        target: The picture that answers.
        trace: Of the oracle.
        answer: What the target shows, as far as it is asked for: riddles with the same one have each other's answer.
        distractor: A picture that the query resembles more than the one that answers; only of ``composed``.
    """

    task: str
    text: str
    picture: Image.Image | None
    target: Image.Image
    trace: str
    answer: object
    distractor: Image.Image | None = None

    @property
    def query(self) -> dict[str, Any]:
        """For `MMEmbedder.encode`."""
        return {"text": self.text} if self.picture is None else {"text": self.text, "image": self.picture}


@dataclass(frozen=True)
class RiddleTest:
    """The riddles of one task with the pictures to choose from; `right[i]` is the place of the target of `riddles[i]`."""

    riddles: list[Riddle]
    pictures: list[Image.Image]
    right: list[int]


def draw_riddles(seed: int, *, blocks: int = 100, size: int = 16) -> list[Riddle]:
    """Riddles for training, their scenes from the mine split.

    Args:
        seed: Of everything.
        blocks: A quarter of them of each task, one after the other.
        size: Riddles of a block, no two of which have the same answer.
    """
    rng = Random(f"riddles/mine/{seed}")
    return [riddle for block in range(blocks) for riddle in _distinct(rng, TASKS[block % len(TASKS)], size, "mine")]


def build_riddles(seed: int, *, queries: int = 150) -> dict[str, RiddleTest]:
    """The test of a seed, its queries from the test split, by task.

    Pictures to choose from: one of each shape in each colour for ``relation``, two to four of each for ``count``; for
    ``composed`` the pictures after and before each change; for ``caption`` as many more as there are queries.
    """
    rng = Random(f"riddle-test/{seed}")
    found: dict[str, RiddleTest] = {}
    for task, numbers in (("relation", (1,)), ("count", _COUNTS)):
        pictures = {(n, s, c): _picture(_alike(n, s, c, rng), rng) for n in numbers for s in SHAPES for c in COLORS}
        riddles = [_MAKE[task](rng, "test") for _ in range(queries)]
        places = {key: place for place, key in enumerate(pictures)}
        found[task] = RiddleTest(riddles, list(pictures.values()), [places[riddle.answer] for riddle in riddles])  # type: ignore[index]
    riddles = _distinct(rng, "composed", queries, "test")
    distractors = [riddle.distractor for riddle in riddles if riddle.distractor is not None]
    found["composed"] = RiddleTest(riddles, [r.target for r in riddles] + distractors, list(range(queries)))
    captions = _distinct(rng, "caption", 2 * queries, "test")
    found["caption"] = RiddleTest(captions[:queries], [r.target for r in captions], list(range(queries)))
    return found


def as_pairs(riddles: list[Riddle]) -> Dataset:
    """Riddles as pairs, `subset` being the task."""
    empty = [""] * len(riddles)
    columns: dict[str, list[Any]] = {
        "query_text": [riddle.text for riddle in riddles],
        "query_image": [_encoded(riddle.picture) for riddle in riddles],
        "query_instruction": empty,
        "pos_text": empty,
        "pos_image": [_encoded(riddle.target) for riddle in riddles],
        "pos_instruction": empty,
        "subset": [riddle.task for riddle in riddles],
    }
    return Dataset.from_dict(columns, features=PAIR_FEATURES)


def _distinct(rng: Random, task: str, number: int, split: Split) -> list[Riddle]:
    found: dict[object, Riddle] = {}
    while len(found) < number:
        riddle = _MAKE[task](rng, split)
        found.setdefault(riddle.answer, riddle)
    return list(found.values())


def _relation(rng: Random, split: Split) -> Riddle:
    scene = random_scene(rng, split, {"two": 1})
    asked, other = rng.sample(scene.shapes, 2)
    named = relation(asked, other)
    assert named is not None  # of the scenes of two
    name = f"{other.color} one" if other.color != asked.color and rng.random() < 0.5 else _name(other)
    answer, where = with_article(_name(asked)), RELATION_PHRASES[named][0]
    think = f"{with_article(_name(other))} and {answer}. {where} the {_name(other)} is {answer}."
    return Riddle(
        "relation",
        f"the shape {pick(rng, RELATION_PHRASES[named])} the {name}",
        _picture(scene, rng),
        _picture(_alike(1, asked.shape, asked.color, rng), rng),
        _trace(think, answer),
        (1, asked.shape, asked.color),
    )


def _count(rng: Random, split: Split) -> Riddle:
    scene = random_scene(rng, split, {"count": 1})
    number, shape, color = len(scene.shapes), pick(rng, SHAPES), pick(rng, tuple(COLORS))
    answer = f"{NUMBERS[number]} {color} {plural_of(shape)}"
    seen = f"{NUMBERS[number]} {scene.shapes[0].color} {plural_of(scene.shapes[0].shape)}"
    return Riddle(
        "count",
        f"how many objects are there? as many {color} {plural_of(shape)}",
        _picture(scene, rng),
        _picture(_alike(number, shape, color, rng), rng),
        _trace(f"{seen}. so {answer}.", answer),
        (number, shape, color),
    )


def _composed(rng: Random, split: Split) -> Riddle:
    scene = random_scene(rng, split)
    while True:
        instruction, after = edit(scene, rng)
        # The relation of a pair is part of what the query shows; where two of three are left, nobody asks for it.
        kept = relation(*scene.shapes) if scene.kind == after.kind == "two" else None
        target, distractor = move_apart(after, rng, keep=kept), move_apart(scene, rng, keep=kept)
        if target is not None and distractor is not None:
            break
    seen = _description(scene, relation(*scene.shapes) if scene.kind == "two" else None)
    return Riddle(
        "composed",
        f"{instruction}.",
        _picture(scene, rng),
        _picture(target, rng),
        _trace(f"{seen}. {_in_plain_words(instruction)}.", _description(after, kept)),
        graph_key(target),
        _picture(distractor, rng),
    )


def _caption(rng: Random, split: Split) -> Riddle:
    scene = random_scene(rng, split)
    text = caption(scene, rng)
    plain = _in_plain_words(text)
    return Riddle("caption", text, None, _picture(scene, rng), _trace(f"it says {plain}.", plain), graph_key(scene))


_MAKE: dict[str, Callable[[Random, Split], Riddle]] = {
    "relation": _relation,
    "count": _count,
    "composed": _composed,
    "caption": _caption,
}


def _trace(think: str, final: str) -> str:
    return f"<think> {think} </think> {final}"


def _name(shape: Shape) -> str:
    return f"{shape.color} {shape.shape}"


def _description(scene: Scene, named: str | None) -> str:
    """Everything there is to say of a scene, always in the same words."""
    looks = [f"{shape.size} {shape.fill} {_name(shape)}" for shape in scene.distinct]
    if scene.kind == "count":
        words = f"{NUMBERS[len(scene.shapes)]} {plural_of(looks[0])}"
    elif named is not None:
        words = f" {RELATION_PHRASES[named][0]} ".join(map(with_article, looks))
    else:
        words = " and ".join(map(with_article, looks))
    return f"{words} on a {scene.background} background"


def _in_plain_words(text: str) -> str:
    """The text with one word for each thing.

    >>> _in_plain_words("two tiny golden boxes, azure disc")
    'two small yellow squares, blue circle'
    """
    words = (word.partition(",") for word in text.split())
    return " ".join(_PLAIN.get(word, word) + comma for word, comma, _ in words)


def _alike(number: int, shape: str, color: str, rng: Random) -> Scene:
    """So many of a shape in a colour, the rest left to chance."""
    size = pick(rng, SIZES) if number < 3 else "small"
    shapes = (Shape(shape, color, size, pick(rng, FILLS)),) * number
    while True:
        scene = move_apart(Scene("one" if number == 1 else "count", shapes, pick(rng, tuple(BACKGROUNDS))), rng)
        if scene is not None:
            return scene


def _picture(scene: Scene, rng: Random) -> Image.Image:
    return draw(scene, rng).resize((PIXELS, PIXELS), Image.Resampling.BICUBIC)


def _encoded(picture: Image.Image | None) -> dict[str, Any] | None:
    if picture is None:
        return None
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}
