"""The questions `mmembed-tiny` is measured by: retrieval, classification, composed queries and compositional pairs.

In: a seed. Out: a `TestSet` with the pictures and texts to embed. The scenes are of the test split; what a composed
query makes of one may be of any. Nothing here depends on a model, so the same seed is the same test for every model,
prompt and read-out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Literal, get_args

from PIL import Image

from hf_mmembed.data.captions import caption, edit, pick, relation_caption
from hf_mmembed.data.scenes import COLORS, SHAPES, Scene, draw, graph_key, move_apart, random_scene, relation

__all__ = ["CHANGES", "Change", "Classified", "Composed", "Pair", "TestSet", "build_testset", "changed"]

Change = Literal["swap_attribute", "swap_object", "replace_attribute", "replace_object", "replace_relation"]
CHANGES: tuple[Change, ...] = get_args(Change)


@dataclass(frozen=True)
class Classified:
    """A picture of one shape with the names of its classes."""

    picture: Image.Image
    shape: str
    color: str


@dataclass(frozen=True)
class Composed:
    """A picture, an instruction that changes it, the picture that results, and the unchanged scene laid out anew."""

    picture: Image.Image
    instruction: str
    target: Image.Image
    distractor: Image.Image


@dataclass(frozen=True)
class Pair:
    """A picture of two shapes, a true caption, and the same words with one change that makes it false."""

    picture: Image.Image
    true: str
    false: str


@dataclass(frozen=True)
class TestSet:
    """`pictures[i]` and `captions[i]` belong together; no two are of the same scene graph."""

    __test__ = False  # not a pytest class

    pictures: list[Image.Image]
    captions: list[str]
    classified: list[Classified]
    composed: list[Composed]
    pairs: dict[Change, list[Pair]]


def build_testset(seed: int, *, candidates: int = 1000, small: int = 200) -> TestSet:
    """Draws the test of a seed: `candidates` scenes to retrieve, half as many composed queries, `small` of the rest."""
    rng = Random(f"testset/{seed}")
    scenes = _distinct(rng, candidates)
    pictures = [draw(scene, rng) for scene in scenes]
    captions = [caption(scene, rng) for scene in scenes]
    singles = [random_scene(rng, "test", {"one": 1}) for _ in range(small)]
    classified = [Classified(draw(s, rng), s.shapes[0].shape, s.shapes[0].color) for s in singles]
    composed = [_composed(scene, rng) for scene in scenes[: candidates // 2]]
    pairs = {change: [_pair(change, rng) for _ in range(small)] for change in CHANGES}
    return TestSet(pictures, captions, classified, composed, pairs)


def changed(scene: Scene, change: Change, rng: Random) -> Scene:
    """The two-shape scene after one change that its caption must notice; positions stay, but for the relation."""
    first, second = scene.shapes
    if change == "swap_attribute":
        return replace(scene, shapes=(replace(first, color=second.color), replace(second, color=first.color)))
    if change == "swap_object":
        return replace(scene, shapes=(replace(first, shape=second.shape), replace(second, shape=first.shape)))
    if change == "replace_attribute":
        color = pick(rng, [color for color in COLORS if color not in (first.color, second.color)])
        return replace(scene, shapes=(replace(first, color=color), second))
    if change == "replace_object":
        shape = pick(rng, [shape for shape in SHAPES if shape not in (first.shape, second.shape)])
        return replace(scene, shapes=(replace(first, shape=shape), second))
    return replace(scene, shapes=(replace(first, x=second.x, y=second.y), replace(second, x=first.x, y=first.y)))


def _distinct(rng: Random, number: int) -> list[Scene]:
    found: dict[object, Scene] = {}
    while len(found) < number:
        scene = random_scene(rng, "test")
        found.setdefault(graph_key(scene), scene)
    return list(found.values())


def _composed(scene: Scene, rng: Random) -> Composed:
    while True:
        instruction, after = edit(scene, rng)
        # The relation of a pair is part of what the query shows, so the target keeps it where there still is a pair.
        keep = relation(*scene.shapes) if scene.kind == after.kind == "two" else None
        target, distractor = move_apart(after, rng, keep=keep), move_apart(scene, rng, keep=keep)
        if target is not None and distractor is not None:
            return Composed(draw(scene, rng), f"{instruction}.", draw(target, rng), draw(distractor, rng))


def _pair(change: Change, rng: Random) -> Pair:
    while True:
        scene = random_scene(rng, "test", {"two": 1})
        first, second = scene.shapes
        if first.shape == second.shape or first.color == second.color:
            continue
        wording = rng.getrandbits(32)
        true, false = (relation_caption(s, Random(wording)) for s in (scene, changed(scene, change, rng)))
        return Pair(draw(scene, rng), true, false)
