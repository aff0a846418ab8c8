"""What ``hf-mmembed quickstart`` searches, and how it knows which hits are right.

In: an empty folder. Out: 300 drawn pictures in it with their scene graphs, and four searches. The searches are written
down here, not chosen by what the model answers well; each has right answers among the pictures because they were put
there, and a hit is judged by the scene graph of its picture.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from hf_mmembed.data.scenes import (
    BACKGROUNDS,
    FILLS,
    SIZES,
    Scene,
    Shape,
    draw,
    move_apart,
    random_scene,
    relation,
    split_of,
)

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["PICTURES", "SEARCHES", "Search", "describe", "draw_folder"]

PICTURES = 300
_SEED = 2026

Thing = tuple[str, str]  # shape, colour


@dataclass(frozen=True)
class Search:
    """One search.

    Attributes:
        title: What kind of search it is.
        wanted: The shapes of a right picture, with their colours.
        text: Text of the query.
        shown: What the picture of the query shows; None for a query without one.
        stands: How the first wanted shape stands to the second, where that is asked.
        alone: Whether a right picture shows nothing else.
        planted: Scenes put among the pictures for this search, as (shapes, relation).
    """

    title: str
    wanted: tuple[Thing, ...]
    text: str | None = None
    shown: tuple[Thing, ...] | None = None
    stands: str | None = None
    alone: bool = False
    planted: tuple[tuple[tuple[Thing, ...], str | None], ...] = ()

    def picture(self) -> Image | None:
        """The picture of the query, drawn anew: it is not one of the folder's."""
        if self.shown is None:
            return None
        rng = Random(f"{_SEED} {self.title}")
        return draw(_scene_of(self.shown, None, rng), rng)

    def is_right(self, scene: Scene) -> bool:
        """Whether a picture of `scene` is what was asked for."""
        things = [shape.attributes[:2] for shape in scene.shapes]
        if self.alone and sorted(things) != sorted(self.wanted):
            return False
        if not set(self.wanted) <= set(things):
            return False
        if self.stands is None:
            return True
        first, second = (scene.shapes[things.index(thing)] for thing in self.wanted)
        return relation(first, second) == self.stands


_CIRCLE_AND_STAR = (("circle", "blue"), ("star", "yellow"))
_TRIANGLE_AND_SQUARE = (("triangle", "orange"), ("square", "blue"))
_HEART_AND_MOON = (("heart", "purple"), ("moon", "orange"))
_PINK_STAR = (("star", "pink"), ("square", "green"))
_BLUE_STAR = (("star", "blue"), ("square", "green"))

SEARCHES = (
    Search(
        "By text",
        _CIRCLE_AND_STAR,
        text="a blue circle and a yellow star",
        planted=((_CIRCLE_AND_STAR, None), (_CIRCLE_AND_STAR, None)),
    ),
    Search(
        "By a relation",
        _TRIANGLE_AND_SQUARE,
        text="an orange triangle above a blue square",
        stands="above",
        planted=((_TRIANGLE_AND_SQUARE, "above"), (_TRIANGLE_AND_SQUARE, "below")),
    ),
    Search(
        "By picture",
        _HEART_AND_MOON,
        shown=_HEART_AND_MOON,
        alone=True,
        planted=((_HEART_AND_MOON, None), (_HEART_AND_MOON, None)),
    ),
    Search(
        "By picture and change",
        _BLUE_STAR,
        text="make the star blue",
        shown=_PINK_STAR,
        alone=True,
        planted=((_BLUE_STAR, None), (_BLUE_STAR, None)),
    ),
)


def draw_folder(directory: Path) -> dict[str, Scene]:
    """Draws the pictures as PNG files and returns their scene graphs by file name.

    All are of the test split: the shipped model has seen none of these graphs. The same 300 every time; a file that
    already has the right content is left alone, so that an index over the folder stays valid.

    Raises:
        ValueError: `directory` holds something else; only drawn pictures can be judged.
    """
    rng = Random(_SEED)
    scenes = [_scene_of(things, stands, rng) for search in SEARCHES for things, stands in search.planted]
    scenes += [random_scene(rng, "test") for _ in range(PICTURES - len(scenes))]
    rng.shuffle(scenes)
    directory.mkdir(parents=True, exist_ok=True)
    named = {f"{number:03}.png": scene for number, scene in enumerate(scenes)}
    foreign = sorted(item.name for item in directory.iterdir() if item.name not in named and item.name[0] != ".")
    if foreign:
        raise ValueError(
            f"{directory} holds {', '.join(foreign[:5])}{' ...' if foreign[5:] else ''}, which the quickstart did not "
            "draw: move what is yours elsewhere, or choose another directory with --out"
        )
    for name, scene in named.items():
        buffer = io.BytesIO()
        draw(scene, rng).save(buffer, "PNG")
        path = directory / name
        if not path.is_file() or path.read_bytes() != buffer.getvalue():
            path.write_bytes(buffer.getvalue())
    return named


def describe(scene: Scene) -> str:
    """What a picture shows, in the words of its graph.

    >>> describe(Scene("one", (Shape("star", "red", "small", "solid"),), "white"))
    'red star'
    """
    things = [f"{shape.color} {shape.shape}" for shape in scene.shapes]
    if scene.kind == "count":
        return f"{len(things)} times {things[0]}"
    if scene.kind == "two" and (named := relation(*scene.shapes)):
        return f"{things[0]} {named.replace('left', 'left of').replace('right', 'right of')} {things[1]}"
    return ", ".join(things)


def _scene_of(things: tuple[Thing, ...], stands: str | None, rng: Random) -> Scene:
    """A scene of the test split with these shapes, in some size, fill, layout and background."""
    for _ in range(2000):
        shapes = tuple(Shape(shape, color, rng.choice(SIZES), rng.choice(FILLS)) for shape, color in things)
        scene = Scene("one" if len(shapes) == 1 else "two", shapes, rng.choice(list(BACKGROUNDS)))
        placed = move_apart(scene, rng, keep=stands)
        if placed is not None and split_of(placed) == "test":
            return placed
    raise ValueError(f"no scene of the test split shows {things} with relation {stands}")
