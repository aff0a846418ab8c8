"""The drawn world keeps its promises: layouts, splits, relations and pictures."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations
from math import hypot
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_mmembed.data.scenes import (
    COLORS,
    GRID,
    NOVEL_COMBINATIONS,
    OPPOSITE,
    SHAPES,
    Scene,
    Shape,
    draw,
    graph_key,
    move_apart,
    random_scene,
    relation,
    split_of,
)

seeds = st.integers(0, 2**32)


@given(seeds)
@settings(max_examples=40, deadline=None)
def test_shapes_lie_inside_and_apart(seed: int) -> None:
    scene = random_scene(Random(seed), None)
    for shape in scene.shapes:
        assert shape.radius < shape.x < GRID - shape.radius and shape.radius < shape.y < GRID - shape.radius
    for a, b in combinations(scene.shapes, 2):
        assert hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius


@given(seeds, st.sampled_from(["train", "mine", "val", "test"]))
@settings(max_examples=40, deadline=None)
def test_a_scene_comes_from_the_split_asked_for(seed: int, split: str) -> None:
    assert split_of(random_scene(Random(seed), split)) == split  # type: ignore[arg-type]


def test_splits_share_no_graph_and_novel_combinations_are_test_only() -> None:
    rng = Random(0)
    split_by_graph: dict[object, set[str]] = {}
    for _ in range(4000):
        scene = random_scene(rng, None)
        split_by_graph.setdefault(graph_key(scene), set()).add(split_of(scene))
        if split_of(scene) != "test":
            assert not any((shape.shape, shape.color) in NOVEL_COMBINATIONS for shape in scene.shapes)
    assert all(len(splits) == 1 for splits in split_by_graph.values())
    sizes = Counter(split for splits in split_by_graph.values() for split in splits)
    assert set(sizes) == {"train", "mine", "val", "test"} and sizes["train"] > sizes["mine"]


@given(seeds)
@settings(max_examples=40, deadline=None)
def test_relation_is_antisymmetric(seed: int) -> None:
    a, b = random_scene(Random(seed), None, {"two": 1}).shapes
    named = relation(a, b)
    assert named is not None and relation(b, a) == OPPOSITE[named]


def test_relation_is_none_on_the_diagonal() -> None:
    low, high = Shape("star", "red", "small", "solid", 10, 10), Shape("star", "red", "small", "solid", 50, 50)
    assert relation(low, high) is None


@given(seeds)
@settings(max_examples=40, deadline=None)
def test_a_new_layout_keeps_the_graph(seed: int) -> None:
    rng = Random(seed)
    scene = random_scene(rng, None, {"two": 1})
    moved = move_apart(scene, rng, keep=relation(*scene.shapes))
    assert moved is None or graph_key(moved) == graph_key(scene)


def test_a_scene_that_cannot_fit_has_no_layout() -> None:
    large = Shape("circle", "red", "large", "solid")
    assert move_apart(Scene("three", (large,) * 9, "white"), Random(0)) is None


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fill", ["solid", "striped"])
def test_a_shape_is_drawn_where_it_lies_in_its_color(shape: str, fill: str) -> None:
    drawn = Shape(shape, "blue", "large", fill, x=24, y=40, radius=14)
    pixels = np.asarray(draw(Scene("one", (drawn,), "white"), Random(0))).astype(int)
    assert pixels.shape == (192, 192, 3)
    blue = np.abs(pixels - COLORS["blue"]).max(-1) <= 13
    rows, columns = np.nonzero(blue)
    assert blue.mean() > 0.02
    assert abs(columns.mean() / 3 - 24) < 6 and abs(rows.mean() / 3 - 40) < 4  # a moon leans to the left
    assert columns.min() >= 3 * (24 - 1.15 * 14) and rows.max() <= 3 * (40 + 1.15 * 14)


def test_drawings_are_determined_by_scene_and_generator() -> None:
    scene = random_scene(Random(3))
    assert draw(scene, Random(1)).tobytes() == draw(scene, Random(1)).tobytes()
    other = replace(scene, background="black" if scene.background != "black" else "white")
    assert draw(scene, Random(1)).tobytes() != draw(other, Random(1)).tobytes()
