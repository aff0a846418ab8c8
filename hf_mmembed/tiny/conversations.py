"""The chats that `mmembed-tiny` learns from: the ordinary diet of a multimodal chat model, about the drawn world.

In: a `random.Random` and a `Lesson`. Out: a `Conversation`: turns of a user and an assistant, perhaps about a picture
of a scene. Captions, questions, paraphrases, edits, and summaries in one word of pictures and of texts. The model
predicts the assistant's words and nothing else; there is no contrast between pairs anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal

from hf_mmembed.data.captions import caption, edit, noun_phrase, pick, salient_words, salient_words_of_text, synonym
from hf_mmembed.data.questions import TOPICS, Question, Topic, ask
from hf_mmembed.data.scenes import KIND_WEIGHTS, NOVEL_COMBINATIONS, Scene, Shape, random_scene, relation, split_of
from hf_mmembed.tiny.wordings import (
    CAPTION_REQUESTS,
    IMAGE_REPLIES,
    LISTING_REQUESTS,
    PARAPHRASE_REQUESTS,
    SENTENCE_REQUEST,
    TEXT_REPLIES,
    one_word_request,
    one_word_system,
    plain_system,
)

__all__ = ["Conversation", "Lesson", "Turn", "converse"]

Lesson = Literal["naming", "binding", "mix", "relations", "review"]
"""What a stage of the curriculum talks about: single shapes, whose attribute is whose, everything, how two shapes stand
to each other, or everything with that."""

MIRRORED = 0.5
"""Share of the false relations asked about that are sure to be the opposite of the true one. When any false one was as
likely, the axis gave five in six answers, and a whole *review* passed without the model looking any closer."""

_TEXT_TOPICS: tuple[Topic, ...] = ("color", "shape")
_WHOSE_TOPICS: tuple[Topic, ...] = ("color", "color", "shape")
_NAMING_TOPICS: tuple[Topic, ...] = ("color", "shape", "size", "fill", "background")
_PAIR_TOPICS: tuple[Topic, ...] = ("side", "relation", "relation", "related_shape", "related_color")
_MIX_TOPICS: tuple[Topic, ...] = tuple(topic for topic in TOPICS if topic != "side")


@dataclass(frozen=True)
class Turn:
    """A user's message and the assistant's answer.

    `first_words` holds the probabilities of all equally true one-word answers: the loss is then the expected
    next-token loss over them, of which `answer` is one sample.
    """

    user: str
    answer: str
    first_words: dict[str, float] | None = None


@dataclass(frozen=True)
class Conversation:
    """Turns under an optional system prompt; `scene` is the picture at the head of the first user message."""

    system: str | None
    turns: tuple[Turn, ...]
    scene: Scene | None = None


def converse(rng: Random, lesson: Lesson) -> Conversation:
    """One conversation of the lesson, about scenes of the train split only."""
    if lesson == "naming":
        return _naming(rng)
    if lesson == "binding":
        return pick(rng, (_table, _table, _table, _whose, _whose, _whose, _naming))(rng)
    if lesson == "relations":
        return pick(rng, (*[_side_table] * 5, *[_side_list] * 2, *[_pair] * 2, _mix))(rng)
    if lesson == "review":
        return pick(rng, (_side_table, *[_pair] * 3, *[_mix] * 6))(rng)
    return _mix(rng)


def _mix(rng: Random) -> Conversation:
    """The diet of a chat model, except for where a shape is, which has lessons of its own."""
    tasks = (
        (_describe, 12),
        (_questions, 14),
        (_binding, 8),
        (_whose, 4),
        (_listing, 4),
        (_one_word_image, 20),
        (_one_word_question, 8),
        (_edited_image, 6),
        (_one_word_text, 12),
        (_text_questions, 5),
        (_paraphrase, 3),
        (_reply, 8),
    )
    return rng.choices([task for task, _ in tasks], [weight for _, weight in tasks])[0](rng)


def _naming(rng: Random) -> Conversation:
    """Short questions about a single shape, or what a lone concept word stands for."""
    if rng.random() < 0.2:
        shape = random_scene(rng, "train", {"one": 1}).shapes[0]
        phrase = noun_phrase(shape, rng, size=1, fill=1)
        asked = rng.sample(("shape", "color", "size", "fill"), 2)
        return Conversation(
            plain_system(rng),
            tuple(
                Turn(f"{phrase if i == 0 else ''}\nwhat {a}?".strip(), getattr(shape, a)) for i, a in enumerate(asked)
            ),
        )
    scene = random_scene(rng, "train", {"one": 1})
    if rng.random() < 0.3:
        return Conversation(
            plain_system(rng),
            (
                Turn(pick(rng, CAPTION_REQUESTS), noun_phrase(scene.shapes[0], rng, size=1, fill=1)),
                *_ask(scene, rng, 1, _NAMING_TOPICS),
            ),
            scene,
        )
    return Conversation(plain_system(rng), _ask(scene, rng, 3, _NAMING_TOPICS), scene)


def _binding(rng: Random) -> Conversation:
    """Which attribute belongs to which of two shapes, where they stand, how many there are.

    Half of the answers are sentences that repeat what was asked, so that the word to look up stands next to the word
    that answers.
    """
    scene = random_scene(rng, "train", {"two": 8, "three": 1, "count": 1})
    if rng.random() < 0.3:
        request = pick(rng, CAPTION_REQUESTS)
        return Conversation(plain_system(rng), (Turn(request, caption(scene, rng)), *_ask(scene, rng, 2)), scene)
    return Conversation(plain_system(rng), _ask(scene, rng, 3, sentences=0.5), scene)


def _whose(rng: Random) -> Conversation:
    """The colour of one shape and the shape of one colour, asked of two or three shapes."""
    while True:
        scene = random_scene(rng, "train", {"two": 4, "three": 1})
        turns = _ask(scene, rng, 3, _WHOSE_TOPICS, sentences=0.5)
        if turns:  # two shapes alike in shape and colour leave nothing to ask
            return Conversation(plain_system(rng), turns, scene)


def _pair(rng: Random) -> Conversation:
    """How two shapes stand to each other: where one is, whether it is left of the other, what it is that is left of it.

    Yes and no follow from where the shape is, and answers in a sentence say so: first what is seen, then yes or no.
    """
    scene = random_scene(rng, "train", {"two": 1})
    return Conversation(plain_system(rng), _ask(scene, rng, 4, _PAIR_TOPICS, sentences=0.3), scene)


def _side_list(rng: Random) -> Conversation:
    """Where each of two shapes is, next to its name."""
    scene = random_scene(rng, "train", {"two": 1})
    answer = ", ".join(f"{synonym(s.color, rng)} {synonym(s.shape, rng)} {side}" for s, side in _sides(scene, rng))
    request = pick(rng, LISTING_REQUESTS["side"])
    return Conversation(plain_system(rng), (Turn(request, answer), *_ask(scene, rng, 2, _PAIR_TOPICS)), scene)


def _side_table(rng: Random) -> Conversation:
    """A `_table` of two shapes with where each one is, which is looked up like its colour."""
    scene = random_scene(rng, "train", {"two": 1})
    sides = _sides(scene, rng)
    first, second = pick(rng, (("shape", "color"), ("color", "shape")))
    lines = [f"{getattr(s, first)} {side} {getattr(s, second)} {s.size} {s.fill}" for s, side in sides]
    return Conversation(plain_system(rng), (Turn(f"Make a table by {first} with sides.", ", ".join(lines)),), scene)


def _sides(scene: Scene, rng: Random) -> list[tuple[Shape, str | None]]:
    """Each of two shapes with where it is, seen from the other, in either order."""
    a, b = rng.sample(scene.shapes, 2)
    return [(a, relation(a, b)), (b, relation(b, a))]


def _listing(rng: Random) -> Conversation:
    """The colour next to each shape or the shape next to each colour: the shortest way from one to the other."""
    scene = random_scene(rng, "train", {"two": 4, "three": 1})
    by_shape = rng.random() < 0.7
    pairs = [
        (synonym(shape.shape, rng), synonym(shape.color, rng)) for shape in rng.sample(scene.shapes, len(scene.shapes))
    ]
    answer = ", ".join(f"{form} {color}" if by_shape else f"{color} {form}" for form, color in pairs)
    request = pick(rng, LISTING_REQUESTS["shape" if by_shape else "color"])
    return Conversation(plain_system(rng), (Turn(request, answer), *_ask(scene, rng, 1, _WHOSE_TOPICS)), scene)


def _table(rng: Random) -> Conversation:
    """All attributes of all shapes: after its first word, each word of a line is looked up in the picture."""
    shapes = list((scene := random_scene(rng, "train", {"two": 1, "three": 1})).shapes)
    rng.shuffle(shapes)
    first, second = pick(rng, (("shape", "color"), ("color", "shape")))
    lines = [f"{getattr(shape, first)} {getattr(shape, second)} {shape.size} {shape.fill}" for shape in shapes]
    return Conversation(plain_system(rng), (Turn(f"Make a table by {first}.", ", ".join(lines)),), scene)


def _describe(rng: Random) -> Conversation:
    scene = random_scene(rng, "train")
    return Conversation(
        plain_system(rng), (Turn(pick(rng, CAPTION_REQUESTS), caption(scene, rng)), *_ask(scene, rng, 2)), scene
    )


def _questions(rng: Random) -> Conversation:
    scene = random_scene(rng, "train")
    return Conversation(plain_system(rng), _ask(scene, rng, 4, sentences=0.3), scene)


def _one_word_image(rng: Random) -> Conversation:
    """A summary of the picture, or of what it becomes by an edit, asked for by the system, the user or both."""
    scene = shown = random_scene(rng, "train")
    system, request = _one_word_prompts(rng, "image")
    if rng.random() < 0.25:
        instruction, scene = _edit(shown, rng)
        request = f"{instruction}.\n{request}".rstrip()
    return Conversation(system, (_summary(rng, request, salient_words(scene)),), shown)


def _one_word_question(rng: Random) -> Conversation:
    """A question on the picture under prompts that ask for one word: the word is the answer, not a summary."""
    scene = random_scene(rng, "train")
    system, request = _one_word_prompts(rng, "question")
    turns = _ask(scene, rng, 2)
    return Conversation(system, tuple(Turn(f"{turn.user}\n{request}".rstrip(), turn.answer) for turn in turns), scene)


def _edited_image(rng: Random) -> Conversation:
    scene = random_scene(rng, "train")
    instruction, changed = _edit(scene, rng)
    return Conversation(plain_system(rng), (Turn(f"{instruction}.", caption(changed, rng)),), scene)


def _one_word_text(rng: Random) -> Conversation:
    """Summaries of texts: class names, noun phrases, captions, captions with an edit."""
    system, request = _one_word_prompts(rng, "text")
    turns = []
    for _ in range(3):
        scene = random_scene(rng, "train")
        kind, shape = rng.random(), pick(rng, scene.shapes)
        if kind < 0.12:
            text = synonym(getattr(shape, pick(rng, ("shape", "color", "shape", "color", "size", "fill"))), rng)
            words = salient_words_of_text(text)
        elif kind < 0.25:
            text = noun_phrase(shape, rng)
            words = salient_words_of_text(text)
        elif kind < 0.37:
            instruction, changed = _edit(scene, rng)
            text, words = f"{caption(scene, rng)}. {instruction}.", salient_words(changed)
        else:
            text = caption(scene, rng)
            words = salient_words_of_text(text)
        turns.append(_summary(rng, f"{text}\n{request}".rstrip(), words))
    return Conversation(system, tuple(turns))


def _text_questions(rng: Random) -> Conversation:
    """A caption and questions that it answers: the same look-up as on a picture, in text."""
    while True:
        scene = random_scene(rng, "train", {"one": 1, "two": 4, "three": 1})
        turns = _ask(scene, rng, 2, _TEXT_TOPICS, sentences=0.3)
        if turns:
            text = caption(scene, rng)
            return Conversation(plain_system(rng), (Turn(f"{text}\n{turns[0].user}", turns[0].answer), *turns[1:]))


def _paraphrase(rng: Random) -> Conversation:
    scene = random_scene(rng, "train", {kind: KIND_WEIGHTS[kind] for kind in ("one", "count", "two")})
    text, same = noun_phrase(scene.shapes[0], rng, size=1, fill=1), noun_phrase(scene.shapes[0], rng, size=1, fill=1)
    if scene.kind == "two":
        other = scene.shapes[1]
        text = f"{text} and {noun_phrase(other, rng, size=1, fill=1)}"
        same = f"{same} and {noun_phrase(other, rng, size=1, fill=1)}"
    return Conversation(plain_system(rng), (Turn(f"{text}\n{pick(rng, PARAPHRASE_REQUESTS)}", same),))


def _reply(rng: Random) -> Conversation:
    """A picture or a text without any request: a chat model repeats in a sentence what it was given."""
    scene = random_scene(rng, "train")
    if rng.random() < 0.4:
        return Conversation(plain_system(rng), (Turn("", pick(rng, IMAGE_REPLIES) + caption(scene, rng)),), scene)
    turns = []
    for _ in range(2):
        scene = random_scene(rng, "train")
        kind, shape = rng.random(), pick(rng, scene.shapes)
        if kind < 0.15:
            text = synonym(getattr(shape, pick(rng, ("shape", "color", "size", "fill"))), rng)
        else:
            text = noun_phrase(shape, rng) if kind < 0.4 else caption(scene, rng)
        turns.append(Turn(text, pick(rng, TEXT_REPLIES) + text))
    return Conversation(plain_system(rng), tuple(turns))


def _ask(
    scene: Scene, rng: Random, number: int, topics: tuple[Topic, ...] = _MIX_TOPICS, *, sentences: float = 0
) -> tuple[Turn, ...]:
    questions = [_ask_once(scene, rng, topics) for _ in range(number)]
    distinct = {question.text: question for question in questions if question is not None}
    turns = []
    for question in distinct.values():
        in_full = rng.random() < sentences
        user = f"{question.text} {SENTENCE_REQUEST}" if in_full else question.text
        turns.append(Turn(user, question.sentence if in_full else question.answer))
    return tuple(turns)


def _ask_once(scene: Scene, rng: Random, topics: tuple[Topic, ...]) -> Question | None:
    """A question, but none on whether a combination is there that no training shall hear of."""
    while (
        question := ask(scene, rng, topics, mirrored=MIRRORED)
    ) is not None and question.about in NOVEL_COMBINATIONS:
        pass
    return question


def _one_word_prompts(rng: Random, kind: str) -> tuple[str | None, str]:
    """(system, request): one word is asked for by the system alone, the user alone or, most often, by both."""
    level = rng.random()
    if level < 0.35:
        return one_word_system(rng), ""
    return (one_word_system(rng) if level < 0.75 else plain_system(rng)), one_word_request(rng, kind)


def _summary(rng: Random, user: str, words: dict[str, float]) -> Turn:
    return Turn(user, rng.choices(list(words), list(words.values()))[0], words)


def _edit(scene: Scene, rng: Random) -> tuple[str, Scene]:
    """An edit whose result is in the train split as well."""
    while True:
        instruction, changed = edit(scene, rng)
        if split_of(changed) == "train":
            return instruction, changed
