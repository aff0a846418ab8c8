"""Conversations and pictures as arrays of one fixed shape, made by worker processes ahead of the training step.

In: a seed, a step and a `Lesson`; the same three always give the same batch, so a resumed run sees what the first one
would have seen. Out: a `TextBatch`: conversations packed into rows of equal length (a token sees only its own
conversation), or a `PictureBatch` for the vision warm-up.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from transformers import PreTrainedTokenizerFast

from hf_mmembed.data.scenes import (
    BACKGROUNDS,
    COLORS,
    FILLS,
    GRID,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    draw,
    random_scene,
    relation,
)
from hf_mmembed.tiny.architecture import IMAGE_PAD, IMAGE_PIXELS, IMAGE_TOKENS, segments
from hf_mmembed.tiny.conversations import Conversation, Lesson, converse

__all__ = [
    "ATTRIBUTE_WORDS",
    "Draft",
    "PictureBatch",
    "TextBatch",
    "cell_labels",
    "pack",
    "picture_batch",
    "text_batch",
    "to_pixels",
    "tokenise",
]

ROW_TOKENS = 128
IGNORE = -100
_SIDE = int(IMAGE_TOKENS**0.5)
_CELL = GRID / _SIDE

ATTRIBUTE_WORDS: tuple[tuple[str, ...], ...] = (
    SHAPES,
    tuple(COLORS),
    SIZES,
    FILLS,
    RELATIONS,
    tuple(BACKGROUNDS),
    ("one", "two", "three", "four"),
)
"""What a visual token may stand for, in groups of alternatives: words on the shape under it, or on the whole picture."""


@dataclass(frozen=True)
class PictureBatch:
    """`pixels` (images, 64, 64, 3) uint8 and `labels` (images, 16, 7): a word index per group and cell, or -100."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class TextBatch:
    """Packed conversations.

    `ids`, `conversation` (rows, 128); `positions` (3, rows, 128): temporal, height and width index of each token;
    `image_slots` (images, 16): flat position of every visual token; `supervised` (n,): flat positions whose next token
    is learned; `targets`, `target_of`, `weights` (m,): next tokens, the entry of `supervised` they belong to, and
    their probabilities.
    """

    ids: NDArray[np.int64]
    conversation: NDArray[np.int64]
    positions: NDArray[np.int64]
    image_slots: NDArray[np.int64]
    supervised: NDArray[np.int64]
    targets: NDArray[np.int64]
    target_of: NDArray[np.int64]
    weights: NDArray[np.float32]
    pictures: PictureBatch


def to_pixels(picture: Image.Image) -> NDArray[np.uint8]:
    """A picture as the image processor scales it: (64, 64, 3)."""
    return np.asarray(picture.resize((IMAGE_PIXELS, IMAGE_PIXELS), Image.Resampling.BICUBIC))


def cell_labels(scene: Scene) -> NDArray[np.int64]:
    """(16, 7): what each cell shows. Cells at a rim are left out, empty cells stand for background and number.

    The cells of one shape of a pair also say where it stands, seen from the other.
    """
    labels = np.full((IMAGE_TOKENS, len(ATTRIBUTE_WORDS)), IGNORE, dtype=np.int64)
    for cell in range(IMAGE_TOKENS):
        x, y = _CELL * (cell % _SIDE + 0.5), _CELL * (cell // _SIDE + 0.5)
        gaps = [np.hypot(shape.x - x, shape.y - y) - shape.radius for shape in scene.shapes]
        nearest = scene.shapes[int(np.argmin(gaps))]
        if min(gaps) < 1:
            named = [words.index(word) for words, word in zip(ATTRIBUTE_WORDS[:4], nearest.attributes, strict=True)]
            labels[cell, :4] = named
            others = [shape for shape in scene.shapes if shape is not nearest]
            if scene.kind == "two" and (seen := relation(nearest, others[0])) is not None:
                labels[cell, 4] = RELATIONS.index(seen)
        elif min(gaps) > 6:
            labels[cell, 5:] = list(BACKGROUNDS).index(scene.background), len(scene.shapes) - 1
    return labels


def picture_batch(seed: int, step: int, size: int, difficulty: float) -> PictureBatch:
    """Pictures for the vision warm-up, from one big centred solid shape (difficulty 0) to the whole world (1)."""
    rng = Random(f"{seed}/vision/{step}")
    scenes = [_eased(rng, difficulty) for _ in range(size)]
    pixels = np.stack([to_pixels(draw(scene, rng)) for scene in scenes])
    return PictureBatch(pixels, np.stack([cell_labels(scene) for scene in scenes]))


def text_batch(
    tokenizer: PreTrainedTokenizerFast, seed: int, step: int, lesson: Lesson, rows: int, images: int
) -> TextBatch:
    """`rows` x 128 tokens of conversations of `lesson`, with at most `images` pictures (blank ones fill up)."""
    rng = Random(f"{seed}/{lesson}/{step}")
    drafts = (tokenise(tokenizer, converse(rng, lesson)) for _ in itertools.count())
    return pack(drafts, rng, rows, images)


def pack(drafts: Iterable[Draft], rng: Random, rows: int, images: int, *, one_per_row: bool = False) -> TextBatch:
    """Lays each draft into the fullest row with room for it; ends with the drafts or when 30 in turn did not fit.

    With `one_per_row` the drafts keep their order, one to a row.
    """
    ids = np.zeros((rows, ROW_TOKENS), dtype=np.int64)
    conversation = np.zeros((rows, ROW_TOKENS), dtype=np.int64)
    positions = np.zeros((3, rows, ROW_TOKENS), dtype=np.int64)
    slots: list[NDArray[np.int64]] = []
    scenes: list[Scene] = []
    supervised: list[int] = []
    targets: list[int] = []
    target_of: list[int] = []
    weights: list[float] = []
    filled, misses = [0] * rows, 0
    for number, draft in enumerate(drafts, start=1):
        length = len(draft.ids)
        room = 0 if one_per_row else ROW_TOKENS - length
        roomy = [row for row in range(rows) if filled[row] <= room]
        if not roomy or (draft.scene is not None and len(scenes) == images):
            misses += 1
            if misses == 30:
                break
            continue
        misses = 0
        row = max(roomy, key=filled.__getitem__)  # the first of equals, so `one_per_row` keeps the order
        start = filled[row]
        span = slice(start, start + length)
        ids[row, span], conversation[row, span], positions[:, row, span] = draft.ids, number, draft.positions
        filled[row] += length
        first = row * ROW_TOKENS + start
        for place, words in draft.answers:
            target_of += [len(supervised)] * len(words)
            supervised.append(first + place)
            targets += list(words)
            weights += list(words.values())
        if draft.scene is not None:
            slots.append(np.arange(draft.image_start, draft.image_start + IMAGE_TOKENS) + first)
            scenes.append(draft.scene)
    pixels = np.zeros((images, IMAGE_PIXELS, IMAGE_PIXELS, 3), dtype=np.uint8)
    labels = np.full((images, IMAGE_TOKENS, len(ATTRIBUTE_WORDS)), IGNORE, dtype=np.int64)
    for index, scene in enumerate(scenes):
        pixels[index], labels[index] = to_pixels(draw(scene, rng)), cell_labels(scene)
    return TextBatch(
        ids,
        conversation,
        positions,
        np.stack(slots) if slots else np.zeros((0, IMAGE_TOKENS), dtype=np.int64),
        np.array(supervised),
        np.array(targets),
        np.array(target_of),
        np.array(weights, dtype=np.float32),
        PictureBatch(pixels, labels),
    )


@dataclass(frozen=True)
class Draft:
    """One tokenised conversation; `answers` holds (place, {next token: probability}) of every learned place."""

    ids: list[int]
    positions: NDArray[np.int64]
    answers: list[tuple[int, dict[int, float]]]
    image_start: int
    scene: Scene | None


def tokenise(tokenizer: PreTrainedTokenizerFast, conversation: Conversation) -> Draft:
    """The conversation's tokens, what is learned at which place, and where its picture goes."""
    pieces = segments(conversation)
    encoded = tokenizer([text for text, _ in pieces], add_special_tokens=False)["input_ids"]
    ids: list[int] = []
    answers: list[tuple[int, dict[int, float]]] = []
    for number, (tokens, (_, learned)) in enumerate(zip(encoded, pieces, strict=True)):
        if learned:
            words = conversation.turns[number // 2].first_words
            for place, token in enumerate(tokens):
                spread = _first_tokens(tokenizer, words) if words and place == 0 else {token: 1.0}
                answers.append((len(ids) + place - 1, spread))
        ids += tokens
    image_start = ids.index(_image_id(tokenizer)) if conversation.scene is not None else len(ids)
    return Draft(ids, _rope_positions(len(ids), image_start), answers, image_start, conversation.scene)


def _rope_positions(length: int, image_start: int) -> NDArray[np.int64]:
    """(3, length): Qwen2-VL's temporal, height and width positions with one picture at `image_start` (or none)."""
    place = np.arange(length)
    cell = np.clip(place - image_start, 0, IMAGE_TOKENS - 1)
    inside = (place >= image_start) & (place < image_start + IMAGE_TOKENS)
    after = np.where(place >= image_start + IMAGE_TOKENS, place - IMAGE_TOKENS + _SIDE, place)
    return np.stack(
        [np.where(inside, image_start + offset, after) for offset in (0 * cell, cell // _SIDE, cell % _SIDE)]
    )


def _first_tokens(tokenizer: PreTrainedTokenizerFast, words: dict[str, float]) -> dict[int, float]:
    spread: dict[int, float] = {}
    for word, probability in words.items():
        token = _first_token(tokenizer, word)
        spread[token] = spread.get(token, 0.0) + probability
    return spread


@cache
def _first_token(tokenizer: PreTrainedTokenizerFast, word: str) -> int:
    return int(tokenizer(word, add_special_tokens=False)["input_ids"][0])


@cache
def _image_id(tokenizer: PreTrainedTokenizerFast) -> int:
    return int(tokenizer.convert_tokens_to_ids(IMAGE_PAD))


def _eased(rng: Random, difficulty: float) -> Scene:
    """Beyond 0.6 ever more full scenes; below, one shape that shrinks, moves and gets stripes as difficulty grows."""
    if rng.random() < 0.7 * max(0.0, (difficulty - 0.6) / 0.4):
        return random_scene(rng, "train")
    ease = min(1.0, difficulty / 0.7)
    scene = random_scene(rng, "train", {"one": 1})
    shape = scene.shapes[0]
    middle = GRID / 2
    eased = replace(
        shape,
        radius=(1 - ease) * rng.uniform(20, 26) + ease * shape.radius,
        x=middle + ease * (shape.x - middle),
        y=middle + ease * (shape.y - middle),
        fill=shape.fill if rng.random() < ease else "solid",
    )
    return replace(scene, shapes=(eased,))
