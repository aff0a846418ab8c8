"""What the lessons talk about."""

from __future__ import annotations

from random import Random

import pytest

from hf_mmembed.data.captions import RELATION_PHRASES, SYNONYMS
from hf_mmembed.data.scenes import NOVEL_COMBINATIONS, split_of
from hf_mmembed.tiny.conversations import Conversation, Lesson, converse
from hf_mmembed.tiny.wordings import SENTENCE_REQUEST

BASE = {form: concept for concept, words in SYNONYMS.items() for form in words}


def chats(lesson: Lesson, number: int = 300) -> list[Conversation]:
    rng = Random(0)
    return [converse(rng, lesson) for _ in range(number)]


def asks_for_a_side(chat: Conversation) -> bool:
    return any(turn.user.startswith(("where is", "on which side")) for turn in chat.turns)


@pytest.mark.parametrize("lesson", ["naming", "binding", "mix", "relations", "review"])
def test_every_chat_has_turns_and_a_scene_of_the_train_split(lesson: Lesson) -> None:
    for chat in chats(lesson):
        assert chat.turns and all(turn.answer for turn in chat.turns)
        assert chat.scene is None or split_of(chat.scene) == "train"


def test_where_a_shape_lies_is_asked_in_the_last_lessons_alone() -> None:
    assert any(map(asks_for_a_side, chats("relations"))) and any(map(asks_for_a_side, chats("review")))
    assert not any(asks_for_a_side(chat) for lesson in ("naming", "binding", "mix") for chat in chats(lesson))


def test_a_yes_or_no_in_a_sentence_comes_after_what_is_seen() -> None:
    turns = [turn for chat in chats("review") for turn in chat.turns if turn.user.endswith(SENTENCE_REQUEST)]
    in_full = [turn.answer for turn in turns if turn.answer.endswith((", yes", ", no"))]
    assert len(in_full) > 20
    for answer in in_full:
        seen = answer.rsplit(", ", 1)[0]
        assert seen.startswith("there is ") or any(
            f" is {phrase} the " in seen for phrases in RELATION_PHRASES.values() for phrase in phrases
        )


def test_no_question_names_a_combination_that_training_must_not_see() -> None:
    users = [turn.user for chat in chats("mix", 4000) for turn in chat.turns]
    asked = [user.split("?")[0].split()[-2:] for user in users if user.startswith(("is there a", "do you see a"))]
    named = {(BASE.get(shape, shape), BASE.get(color, color)) for color, shape in asked}
    assert len(named) > 50 and not named & NOVEL_COMBINATIONS
