"""Training pairs of the drawn world with planted difficulty, and the truth about every other pairing of them.

In: a seed. Out: a `DrawnPairs` of the *mine* split: pairs in the schema of `hf_mmembed.data.pairs`, and what every query
and document means. Scenes come in families: a scene and others that differ from it in one attribute, in which shape has
which colour, or in how two shapes stand. Each scene has several pictures and captions, of which every pair names
only some, so a batch of near neighbours holds both what training needs (near misses) and what hurts it (true answers
that no pair names).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from PIL import Image

from hf_mmembed.data.captions import caption, edit
from hf_mmembed.data.pairs import PAIR_FEATURES
from hf_mmembed.data.questions import Topic, ask
from hf_mmembed.data.scenes import Kind, Scene, draw, graph_key, move_apart, random_scene, relation, split_of
from hf_mmembed.tiny.testset import CHANGES, changed
from hf_mmembed.tiny.truth import OPEN, Meaning, answers, meaning_of_caption, meaning_of_label, meaning_of_scene

__all__ = ["DrawnPairs", "draw_pairs"]

_BASES: dict[Kind, float] = {"two": 0.7, "one": 0.1, "three": 0.1, "count": 0.1}
_NEAR = 4  # scenes of a family beside the one it grew from
_EDITS = 30  # edits tried of each scene; those that leave the split, seven in eight, are dropped
_LABELLED: tuple[Topic, ...] = ("shape", "color", "related_shape", "related_color")


@dataclass(frozen=True)
class DrawnPairs:
    """Pairs whose truth is known.

    Attributes:
        pairs: Rows of `PAIR_FEATURES`; `subset` is ``text_to_image``, ``image_to_text``, ``composed`` or ``classify``.
        queries: Meaning of the query of every row, `(n_rows, FIELDS)`.
        documents: Meaning of the document of every row, `(n_rows, FIELDS)`.
    """

    pairs: Dataset
    queries: Meaning
    documents: Meaning

    def truth(self, queries: NDArray[np.integer], documents: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Whether the document of row `documents[j]` truly answers the query of row `queries[i]`, labelled or not.

        Returns:
            Array of shape `(len(queries), len(documents))`.
        """
        return answers(self.queries[queries], self.documents[documents])


@dataclass(frozen=True)
class _Row:
    query: tuple[str, bytes | None]
    document: tuple[str, bytes | None]
    subset: str
    meanings: tuple[Meaning, Meaning]


def draw_pairs(seed: int, *, families: int = 300, pictures: int = 2, pixels: int = 64) -> DrawnPairs:
    """Draws pairs, about 33 per family with two pictures a scene; the same arguments give the same pairs.

    Args:
        seed: Seed of everything.
        families: How many groups of near-duplicate scenes.
        pictures: Of every scene. The more there are, the more true answers of a query are named by no pair of it.
        pixels: Side of the stored pictures, drawn at 192 and scaled down with a bicubic filter. At the default, what
            `mmembed-tiny` sees, its image processor has nothing left to scale.
    """
    rng = Random(f"pairs/{seed}")
    rows = [row for _ in range(families) for row in _family_rows(rng, pictures, pixels)]
    rng.shuffle(rows)
    columns: dict[str, list[Any]] = {
        "query_text": [row.query[0] for row in rows],
        "query_image": [_encoded(row.query[1]) for row in rows],
        "query_instruction": [""] * len(rows),
        "pos_text": [row.document[0] for row in rows],
        "pos_image": [_encoded(row.document[1]) for row in rows],
        "pos_instruction": [""] * len(rows),
        "subset": [row.subset for row in rows],
    }
    queries, documents = (np.stack([row.meanings[side] for row in rows]) for side in (0, 1))
    return DrawnPairs(Dataset.from_dict(columns, features=PAIR_FEATURES), queries, documents)


def _family_rows(rng: Random, n_pictures: int, pixels: int) -> Iterator[_Row]:
    for scene, edits in _family(rng):
        pictures = [_png(layout, rng, pixels) for layout in _layouts(scene, n_pictures, rng)]
        yield from _caption_rows(scene, pictures, rng)
        yield from _composed_rows(pictures, edits, rng, pixels)
        yield from _label_rows(scene, pictures, rng)


def _family(rng: Random) -> list[tuple[Scene, list[tuple[str, Scene]]]]:
    """A scene and its near-duplicates, each with the edits of it that stay in the split."""
    while True:
        base = random_scene(rng, "mine", _BASES)
        same_words = _same_words(base, rng)
        if base.kind != "two" or same_words:
            break
    edits = _edits(base, rng)
    near = {graph_key(scene): scene for scene in [*same_words, *(after for _, after in edits)]}
    near.pop(graph_key(base), None)
    found = [(base, edits)]
    return found + [(scene, _edits(scene, rng)) for scene in list(near.values())[:_NEAR]]


def _same_words(scene: Scene, rng: Random) -> list[Scene]:
    """Scenes of the split with the shapes and colours of this pair, but bound or standing differently."""
    if scene.kind != "two":
        return []
    named = relation(*scene.shapes)
    found = []
    for change in CHANGES:
        if change.startswith("swap") or change == "replace_relation":
            after = changed(scene, change, rng)
            keep = relation(*after.shapes) if change == "replace_relation" else named
            moved = move_apart(after, rng, keep=keep)
            if moved is not None and split_of(moved) == "mine" and graph_key(moved) != graph_key(scene):
                found.append(moved)
    return found


def _edits(scene: Scene, rng: Random) -> list[tuple[str, Scene]]:
    """Instructions with the scenes they lead to, one for each scene, those that change the graph first."""
    found: dict[bytes, tuple[str, Scene]] = {}
    for _ in range(_EDITS):
        instruction, after = edit(scene, rng)
        keep = relation(*scene.shapes) if scene.kind == after.kind == "two" else None
        moved = move_apart(after, rng, keep=keep)
        if moved is not None and split_of(moved) == "mine":
            found.setdefault(meaning_of_scene(moved, placed=False).tobytes(), (instruction, moved))
    return sorted(found.values(), key=lambda pair: graph_key(pair[1]) == graph_key(scene))


def _layouts(scene: Scene, number: int, rng: Random) -> list[Scene]:
    """The scene as it is and laid out anew: different pictures that no caption of the other facts tells apart."""
    keep = relation(*scene.shapes) if scene.kind == "two" else None
    anew = (move_apart(scene, rng, keep=keep) for _ in range(number - 1))
    return [scene, *(layout for layout in anew if layout is not None)]


def _caption_rows(scene: Scene, pictures: list[tuple[Scene, bytes]], rng: Random) -> Iterator[_Row]:
    """Text to picture and back. One caption has all pictures, every picture several captions."""
    shared = caption(replace(scene, shapes=pictures[-1][0].shapes), rng)
    for layout, png in pictures:
        meaning = meaning_of_scene(layout)
        for text in dict.fromkeys((caption(layout, rng), shared)):  # a set has another order in every process
            said = meaning_of_caption(text)
            if answers(said[None], meaning[None]).all():  # the place of a single shape may differ
                yield _Row((text, None), ("", png), "text_to_image", (said, meaning))
        for text in dict.fromkeys((caption(layout, rng), caption(layout, rng))):
            yield _Row(("", png), (text, None), "image_to_text", (meaning, meaning_of_caption(text)))


def _composed_rows(
    pictures: list[tuple[Scene, bytes]], edits: list[tuple[str, Scene]], rng: Random, pixels: int
) -> Iterator[_Row]:
    """The first edit asked of every picture of the scene, each with a target of its own, the second of one picture."""
    for instruction, after, (scene, png) in [
        *((*change, picture) for change in edits[:1] for picture in pictures),
        *((*change, pictures[0]) for change in edits[1:2]),
    ]:
        keep = relation(*after.shapes) if after.kind == "two" else None  # part of what decides the split
        layout, target = _png(move_apart(after, rng, keep=keep) or after, rng, pixels)
        asked = meaning_of_scene(layout, placed=False)
        if scene.kind != "two":
            asked[2] = OPEN  # where the query shows no pair, how the two that are left stand is not asked
        yield _Row((f"{instruction}.", png), ("", target), "composed", (asked, meaning_of_scene(layout)))


def _label_rows(scene: Scene, pictures: list[tuple[Scene, bytes]], rng: Random) -> Iterator[_Row]:
    """One question per picture whose answer is one of eight shapes or eight colours."""
    for layout, png in pictures:
        if len(scene.distinct) == 1:
            topic = rng.choice(("shape", "color"))
            text, label = f"what {topic} is the object?", getattr(scene.shapes[0], topic)
        else:
            question = ask(layout, rng, _LABELLED)
            if question is None:
                continue
            text, label = question.text, question.answer
        meaning = meaning_of_label(label)
        yield _Row((text, png), (label, None), "classify", (meaning, meaning))


def _png(scene: Scene, rng: Random, pixels: int) -> tuple[Scene, bytes]:
    buffer = io.BytesIO()
    draw(scene, rng).resize((pixels, pixels), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return scene, buffer.getvalue()


def _encoded(png: bytes | None) -> dict[str, Any] | None:
    return None if png is None else {"bytes": png, "path": None}
