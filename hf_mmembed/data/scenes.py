"""The drawn world: scene graphs of one to four shapes, and the pictures drawn from them.

In: a `random.Random` and the name of a split. Out: a `Scene` (shapes with colour, size, fill and position on a
background) and, from `draw`, an anti-aliased `PIL.Image` of 192 x 192 pixels.

Splits are disjoint by construction: a scene belongs to the split that the checksum of its *graph* (what is in it and
how two shapes relate, not where exactly they lie) selects, and `NOVEL_COMBINATIONS` of shape and colour occur in the
test split alone.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace
from functools import cache
from random import Random
from typing import Literal

from PIL import Image, ImageChops, ImageDraw

__all__ = [
    "BACKGROUNDS",
    "COLORS",
    "FILLS",
    "GRID",
    "KIND_WEIGHTS",
    "NOVEL_COMBINATIONS",
    "OPPOSITE",
    "RELATIONS",
    "SHAPES",
    "SIZES",
    "Kind",
    "Scene",
    "Shape",
    "Split",
    "draw",
    "graph_key",
    "move_apart",
    "random_scene",
    "relation",
    "split_of",
]

Split = Literal["train", "mine", "val", "test"]
Kind = Literal["one", "two", "three", "count"]

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "diamond", "moon")
COLORS = {
    "red": (220, 30, 35),
    "green": (30, 150, 50),
    "blue": (40, 70, 220),
    "yellow": (245, 215, 40),
    "orange": (250, 135, 20),
    "purple": (130, 40, 170),
    "pink": (250, 130, 190),
    "brown": (125, 75, 35),
}
BACKGROUNDS = {"white": (250, 250, 250), "black": (15, 15, 18), "gray": (150, 150, 150)}
SIZES = ("small", "large")
FILLS = ("solid", "striped")
RELATIONS = ("left", "right", "above", "below")
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
NOVEL_COMBINATIONS = frozenset({("moon", "red"), ("heart", "blue"), ("star", "green"), ("cross", "yellow")})
KIND_WEIGHTS: dict[Kind, float] = {"one": 0.25, "two": 0.5, "three": 0.13, "count": 0.12}

GRID = 64.0
"""Scene coordinates run over a 64 x 64 square, whatever the size of the drawing."""

_RADII = {"small": (8.5, 10.0), "large": (13.0, 15.0)}
_MARGIN = 1.5
_CLEAR_RATIO = 1.6  # one axis must dominate this clearly before a relation is named
_COLOR_JITTER = 12.0


@dataclass(frozen=True)
class Shape:
    """One drawn object; `x`, `y` and `radius` are in scene coordinates (0 to 64, y down)."""

    shape: str
    color: str
    size: str
    fill: str
    x: float = GRID / 2
    y: float = GRID / 2
    radius: float = 12.0

    @property
    def attributes(self) -> tuple[str, str, str, str]:
        """(shape, colour, size, fill): what the object is, without where it is."""
        return self.shape, self.color, self.size, self.fill


@dataclass(frozen=True)
class Scene:
    """Shapes on a background. `kind` says how they were chosen: one, two or three distinct shapes, or 2-4 equal ones."""

    kind: Kind
    shapes: tuple[Shape, ...]
    background: str

    @property
    def distinct(self) -> tuple[Shape, ...]:
        """The shapes that differ in attributes: a `count` scene has one, repeated."""
        return self.shapes[:1] if self.kind == "count" else self.shapes


def relation(a: Shape, b: Shape) -> str | None:
    """Where `a` lies seen from `b`: one of `RELATIONS`, or None when neither axis dominates by 1.6 to 1.

    >>> relation(Shape("star", "red", "small", "solid", x=10), Shape("moon", "blue", "small", "solid", x=50))
    'left'
    """
    dx, dy = a.x - b.x, a.y - b.y
    if abs(dx) > _CLEAR_RATIO * abs(dy):
        return "left" if dx < 0 else "right"
    if abs(dy) > _CLEAR_RATIO * abs(dx):
        return "above" if dy < 0 else "below"
    return None


def graph_key(scene: Scene) -> tuple[object, ...]:
    """What identifies a scene graph: kind, the sorted (shape, colour, size) of its shapes, the relation of a pair."""
    ordered = sorted(scene.shapes, key=lambda shape: shape.attributes[:3])
    key: tuple[object, ...] = (scene.kind, *(shape.attributes[:3] for shape in ordered))
    return (*key, relation(ordered[0], ordered[1])) if scene.kind == "two" else key


def split_of(scene: Scene) -> Split:
    """The one split a scene belongs to: 5/8 train, 1/8 each mine, val and test, by checksum of its graph."""
    if any((shape.shape, shape.color) in NOVEL_COMBINATIONS for shape in scene.shapes):
        return "test"
    eighth = zlib.crc32(repr(graph_key(scene)).encode()) % 8
    return ("mine", "val", "test")[eighth] if eighth < 3 else "train"


def random_scene(rng: Random, split: Split | None = "test", kinds: dict[Kind, float] | None = None) -> Scene:
    """Draws a scene graph with a layout from `split` (None: from any split).

    `kinds` weighs the kinds of scene; defaults to `KIND_WEIGHTS`.
    """
    weights = KIND_WEIGHTS if kinds is None else kinds
    while True:
        kind = rng.choices(list(weights), list(weights.values()))[0]
        scene = move_apart(Scene(kind, _random_shapes(rng, kind), rng.choice(list(BACKGROUNDS))), rng)
        if scene is not None and (split is None or split_of(scene) == split):
            return scene


def move_apart(scene: Scene, rng: Random, *, keep: str | None = None) -> Scene | None:
    """The same graph with a new layout: no two shapes touch, and a pair stands in a nameable relation.

    `keep` fixes that relation (of the first shape to the second). None when 200 layouts failed.
    """
    for _ in range(200):
        placed: list[Shape] = []
        for shape in scene.shapes:
            radius = rng.uniform(*_RADII[shape.size])
            low, high = radius + 1, GRID - 1 - radius
            placed.append(replace(shape, x=rng.uniform(low, high), y=rng.uniform(low, high), radius=radius))
        if all(_apart(a, b) for i, a in enumerate(placed) for b in placed[:i]):
            named = relation(placed[0], placed[1]) if scene.kind == "two" else None
            if scene.kind != "two" or (named is not None and keep in (None, named)):
                return replace(scene, shapes=tuple(placed))
    return None


def draw(scene: Scene, rng: Random, *, pixels: int = 192) -> Image.Image:
    """Draws the scene as an RGB picture of `pixels` x `pixels`; `rng` jitters the colours by up to 12 of 255."""
    scale = 2 * pixels / GRID  # twice the size, then averaged: anti-aliasing
    background = _jitter(BACKGROUNDS[scene.background], rng)
    canvas = Image.new("RGB", (2 * pixels, 2 * pixels), background)
    for shape in scene.shapes:
        color = _jitter(COLORS[shape.color], rng)
        outline = [
            (scale * (shape.x + shape.radius * x), scale * (shape.y + shape.radius * y))
            for x, y in _unit_outline(shape.shape)
        ]
        striped = shape.fill == "striped"
        ImageDraw.Draw(canvas).polygon(outline, fill=_blend(color, background) if striped else color)
        if striped:
            canvas.paste(color, mask=_stripes(canvas.size, outline, shape, scale))
    return canvas.reduce(2)


def _random_shapes(rng: Random, kind: Kind) -> tuple[Shape, ...]:
    if kind == "count":
        number = rng.choice((2, 3, 4))
        return (_random_shape(rng, "small" if number > 2 else None),) * number
    number = {"one": 1, "two": 2, "three": 3}[kind]
    while True:
        # A third shape only fits beside small ones.
        sizes: list[str | None] = [None] * number if number < 3 else [None, "small", "small"]
        shapes = [_random_shape(rng, size) for size in sizes]
        rng.shuffle(shapes)
        if len({shape.attributes[:2] for shape in shapes}) == number:
            return tuple(shapes)


def _random_shape(rng: Random, size: str | None) -> Shape:
    return Shape(rng.choice(SHAPES), rng.choice(list(COLORS)), size or rng.choice(SIZES), rng.choice(FILLS))


def _apart(a: Shape, b: Shape) -> bool:
    return math.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius + _MARGIN


def _jitter(color: tuple[int, int, int], rng: Random) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, round(value + rng.uniform(-_COLOR_JITTER, _COLOR_JITTER)))) for value in color)
    return red, green, blue


def _blend(color: tuple[int, int, int], background: tuple[int, int, int]) -> tuple[int, int, int]:
    """The gaps between stripes: mostly background, yet the outline of the shape stays readable."""
    red, green, blue = (round(0.35 * c + 0.65 * b) for c, b in zip(color, background, strict=True))
    return red, green, blue


def _stripes(size: tuple[int, int], outline: list[tuple[float, float]], shape: Shape, scale: float) -> Image.Image:
    inside, stripes = Image.new("1", size, 0), Image.new("1", size, 0)
    ImageDraw.Draw(inside).polygon(outline, fill=1)
    period, pen = 4.6 * scale, ImageDraw.Draw(stripes)
    top = scale * (shape.y - 1.2 * shape.radius)
    left, right = scale * (shape.x - 1.3 * shape.radius), scale * (shape.x + 1.3 * shape.radius)
    for stripe in range(math.ceil(2.4 * shape.radius * scale / period)):
        y = top + stripe * period
        pen.rectangle((left, y, right, y + 0.55 * period), fill=1)
    return ImageChops.logical_and(inside, stripes)


def _star(points: int, inner: float) -> list[tuple[float, float]]:
    angles = [math.pi * (step / points - 0.5) for step in range(2 * points)]
    return [(r * math.cos(a), r * math.sin(a)) for a, r in zip(angles, [1.08, inner] * points, strict=True)]


def _heart() -> list[tuple[float, float]]:
    turn = [2 * math.pi * step / 40 for step in range(40)]
    return [
        (
            16 * math.sin(t) ** 3 / 16.5,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16.5,
        )
        for t in turn
    ]


def _moon() -> list[tuple[float, float]]:
    """A disc from which a second disc, shifted to the right, has bitten a piece."""
    tip = math.radians(50)
    shift = 0.55
    bite = math.hypot(math.cos(tip) - shift, math.sin(tip))
    start = math.atan2(math.sin(tip), math.cos(tip) - shift)
    outer = [tip + (2 * math.pi - 2 * tip) * step / 24 for step in range(25)]
    inner = [2 * math.pi - start - (2 * math.pi - 2 * start) * step / 18 for step in range(1, 18)]
    return [(math.cos(a), math.sin(a)) for a in outer] + [
        (shift + bite * math.cos(a), bite * math.sin(a)) for a in inner
    ]


@cache
def _unit_outline(shape: str) -> tuple[tuple[float, float], ...]:
    """Polygon of a shape of radius 1 around the origin."""
    arm, half = 0.95, 0.33
    outlines: dict[str, list[tuple[float, float]]] = {
        "circle": [(0.95 * math.cos(math.pi * s / 24), 0.95 * math.sin(math.pi * s / 24)) for s in range(48)],
        "square": [(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)],
        "triangle": [(1.1 * math.cos(a), 1.1 * math.sin(a)) for a in map(math.radians, (-90, 30, 150))],
        "star": _star(5, 0.45),
        "heart": _heart(),
        "cross": [
            *[(-half, -arm), (half, -arm), (half, -half), (arm, -half), (arm, half), (half, half)],
            *[(half, arm), (-half, arm), (-half, half), (-arm, half), (-arm, -half), (-half, -half)],
        ],
        "diamond": [(0, -1), (0.68, 0), (0, 1), (-0.68, 0)],
        "moon": _moon(),
    }
    return tuple(outlines[shape])
