"""Batches are a function of seed and step, hold whole conversations, and learn the assistant's words only."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from hf_mmembed.data.scenes import random_scene
from hf_mmembed.tiny.architecture import END, START
from hf_mmembed.tiny.batches import (
    ATTRIBUTE_WORDS,
    IGNORE,
    ROW_TOKENS,
    cell_labels,
    pack,
    picture_batch,
    text_batch,
    tokenise,
)
from hf_mmembed.tiny.conversations import Conversation, Turn, converse


@pytest.fixture(scope="module")
def batch(tokenizer):  # type: ignore[no-untyped-def]
    return text_batch(tokenizer, 0, 7, "mix", rows=12, images=14)


def test_batches_are_reproducible_and_differ_by_step(tokenizer, batch) -> None:  # type: ignore[no-untyped-def]
    again = text_batch(tokenizer, 0, 7, "mix", rows=12, images=14)
    other = text_batch(tokenizer, 0, 8, "mix", rows=12, images=14)
    for name in ("ids", "positions", "supervised", "targets", "weights"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(again, name))
    assert not np.array_equal(batch.ids, other.ids)


def test_rows_are_well_filled(batch) -> None:  # type: ignore[no-untyped-def]
    assert (batch.conversation > 0).mean() > 0.85


def test_what_is_learned_follows_from_the_text(tokenizer) -> None:  # type: ignore[no-untyped-def]
    chat = Conversation("Be brief.", (Turn("what color?", "red"), Turn("what shape?", "star")))
    draft = tokenise(tokenizer, chat)
    text = f"{START}system\nBe brief.{END}\n{START}user\nwhat color?{END}\n{START}assistant\nred{END}\n"
    text += f"{START}user\nwhat shape?{END}\n{START}assistant\nstar{END}"
    assert draft.ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    learned = [draft.ids[place + 1] for place, _ in draft.answers]
    assert tokenizer.decode(learned) == f"red{END}star{END}"
    assert all(spread == {draft.ids[place + 1]: 1.0} for place, spread in draft.answers)


def test_target_weights_of_a_place_sum_to_one(batch) -> None:  # type: ignore[no-untyped-def]
    totals = np.bincount(batch.target_of, weights=batch.weights)
    assert len(totals) == len(batch.supervised)
    np.testing.assert_allclose(totals, 1, atol=1e-5)
    assert np.bincount(batch.target_of).max() > 4  # summaries spread over several words


def test_conversations_lie_whole_in_one_row_and_never_overlap(tokenizer) -> None:  # type: ignore[no-untyped-def]
    rng = Random(0)
    drafts = [tokenise(tokenizer, converse(rng, "binding")) for _ in range(30)]
    packed = pack(drafts, rng, rows=8, images=30)
    for number in np.unique(packed.conversation[packed.conversation > 0]):
        rows, columns = np.nonzero(packed.conversation == number)
        assert len(set(rows)) == 1 and (np.diff(columns) == 1).all()
        assert packed.ids[rows, columns].tolist() == drafts[number - 1].ids


def test_one_per_row_keeps_the_order(tokenizer) -> None:  # type: ignore[no-untyped-def]
    rng = Random(0)
    drafts = [tokenise(tokenizer, converse(rng, "naming")) for _ in range(5)]
    packed = pack(drafts, rng, rows=5, images=5, one_per_row=True)
    assert [row[: len(d.ids)].tolist() for row, d in zip(packed.ids, drafts, strict=True)] == [d.ids for d in drafts]
    assert packed.ids.shape == (5, ROW_TOKENS)


def test_cells_are_labelled_with_what_lies_on_them() -> None:
    rng = Random(1)
    for _ in range(40):
        scene = random_scene(rng, "train")
        labels = cell_labels(scene)
        on_shape = labels[:, 0] != IGNORE
        on_ground = labels[:, 6] != IGNORE
        assert not (on_shape & on_ground).any()
        seen = {
            tuple(words[i] for words, i in zip(ATTRIBUTE_WORDS, row, strict=False)) for row in labels[on_shape, :4]
        }
        assert seen <= {shape.attributes for shape in scene.shapes}
        assert (labels[on_ground, 6] == len(scene.shapes) - 1).all()
        assert ((labels[:, 4] != IGNORE) <= (on_shape & (scene.kind == "two"))).all()


def test_easy_pictures_show_one_large_centred_shape() -> None:
    easy, hard = (picture_batch(0, 0, 16, difficulty) for difficulty in (0.0, 1.0))
    assert (easy.labels[:, [5, 6, 9, 10], 0] != IGNORE).mean() > 0.9
    assert (easy.labels[..., 3] != 1).all()  # nothing striped
    assert (hard.labels[..., 3] == 1).any() and (hard.labels[..., 4] != IGNORE).any()
