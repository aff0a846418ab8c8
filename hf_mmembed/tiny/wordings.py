"""How people ask a chat model for a caption, a paraphrase or a summary in one word.

In: a `random.Random`. Out: system prompts and user requests. The exact strings of the embedding prompts
(`HELD_OUT`) are never among them: a model trained on these wordings meets the embedding prompts for the first time
when it is asked to embed, so its zero-shot numbers are zero-shot.
"""

from __future__ import annotations

from random import Random

from hf_mmembed.data.captions import pick

__all__ = [
    "CAPTION_REQUESTS",
    "GENERIC_SYSTEM",
    "HELD_OUT",
    "IMAGE_REPLIES",
    "LISTING_REQUESTS",
    "PARAPHRASE_REQUESTS",
    "SENTENCE_REQUEST",
    "TEXT_REPLIES",
    "normalised",
    "one_word_request",
    "one_word_system",
    "plain_system",
]

GENERIC_SYSTEM = "You are a helpful assistant."
CAPTION_REQUESTS = ("Describe the image.", "What is in the image?", "Write a caption.", "Describe this picture.")
LISTING_REQUESTS = {
    "shape": ("List the shapes with their colors.", "Which color has each shape?"),
    "color": ("List the colors with their shapes.", "Which shape has each color?"),
    "side": ("List the shapes with their sides.", "On which side is each shape?"),
}
IMAGE_REPLIES = ("I can see ", "The picture shows ", "Here we have ")
TEXT_REPLIES = ("You write: ", "So you say: ", "I understand: ")
SENTENCE_REQUEST = "Answer in a sentence."
PARAPHRASE_REQUESTS = ("Say it differently:", "Paraphrase:", "Rewrite the text:")

HELD_OUT = frozenset(
    {
        "given an image, summarize the provided image in one word. given only text, describe the text in one word",
        "represent the given text in one word",
        "represent the given image in one word",
        "represent the given text/image in one word",
        "summarize the above image in one word",
        "summarize the above text in one word",
        "summarize the above sentence in one word",
        "summarize the above sentences in one word",
        "summary above image in one word",
        "summary above text in one word",
        "summary above sentence in one word",
        "summary above sentences in one word",
    }
)

_PLAIN_SYSTEMS = (GENERIC_SYSTEM, GENERIC_SYSTEM, GENERIC_SYSTEM, "You are a friendly assistant.", "Answer briefly.")
_VERBS = ("summarize", "describe", "name", "represent", "condense", "express")
_IN_ONE_WORD = (
    "in one word",
    "with one word",
    "in a single word",
    "using one word",
    "in only one word",
    "as one word",
)
_DETERMINERS = ("the", "the given", "the provided", "the above", "this", "the input")
_SHORT_SYSTEMS = (
    "Answer in one word.",
    "Reply with a single word that describes the input.",
    "You give a one word summary of the image or text.",
    "Always respond with exactly one word.",
)


def normalised(text: str) -> str:
    """Case, surrounding space and final punctuation do not make a wording a different one."""
    return " ".join(text.lower().split()).rstrip(".:!")


def plain_system(rng: Random) -> str | None:
    """A system prompt that says nothing about one word; a quarter of the time none is given."""
    return None if rng.random() < 0.25 else pick(rng, _PLAIN_SYSTEMS)


def one_word_system(rng: Random) -> str:
    """A system prompt that asks for one word about whatever comes."""
    while True:
        image, text, way = pick(rng, _VERBS), pick(rng, _VERBS), pick(rng, _IN_ONE_WORD)
        other_way = way if rng.random() < 0.5 else pick(rng, _IN_ONE_WORD)
        the_image, the_text = f"{pick(rng, _DETERMINERS)} image", f"{pick(rng, _DETERMINERS)} text"
        wording = pick(
            rng,
            (
                f"Given an image, {image} {the_image} {way}. Given only text, {text} {the_text} {other_way}.",
                f"Given an image, {image} {the_image} {way}. Given a text, {text} {the_text} {other_way}.",
                f"{image.capitalize()} {the_image} {way}. If there is only text, {text} {the_text} {other_way}.",
                f"Given a text, {text} {the_text} {way}. Given an image, {image} {the_image} {other_way}.",
                f"{image.capitalize()} every input {way}.",
                pick(rng, _SHORT_SYSTEMS),
            ),
        )
        if normalised(wording) not in HELD_OUT:
            return wording


def one_word_request(rng: Random, kind: str) -> str:
    """The same as a user's request about the `kind` ("image", "text" or "question") that stands above it."""
    while True:
        named = kind if rng.random() < 0.6 else pick(rng, ("input", "text/image", "content"))
        verb, determiner, way = pick(rng, _VERBS).capitalize(), pick(rng, _DETERMINERS), pick(rng, _IN_ONE_WORD)
        wording = f"{verb} {determiner} {named} {way}{pick(rng, (':', '.', ''))}"
        if normalised(wording) not in HELD_OUT:
            return wording
