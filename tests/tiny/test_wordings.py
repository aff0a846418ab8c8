"""Zero-shot means zero-shot: no embedding prompt is ever a wording of the training."""

from __future__ import annotations

from random import Random

from hf_mmembed.model.presets import PRESETS
from hf_mmembed.tiny.conversations import converse
from hf_mmembed.tiny.evaluate import PROMPTS
from hf_mmembed.tiny.wordings import (
    CAPTION_REQUESTS,
    GENERIC_SYSTEM,
    HELD_OUT,
    normalised,
    one_word_request,
    one_word_system,
    plain_system,
)


def test_every_embedding_prompt_is_held_out() -> None:
    prompts = [*PRESETS.values(), *PROMPTS.values()]
    strings = {
        normalised(words)
        for prompt in prompts
        for words in (prompt.system, prompt.represent_text, prompt.represent_image)
    }
    strings -= {"", normalised(GENERIC_SYSTEM)}
    assert strings <= HELD_OUT
    assert len(strings) >= 4


def test_no_training_wording_is_an_embedding_prompt() -> None:
    rng = Random(0)
    wordings = {normalised(one_word_system(rng)) for _ in range(20_000)}
    wordings |= {normalised(one_word_request(rng, kind)) for kind in ("image", "text") for _ in range(20_000)}
    wordings |= {normalised(plain_system(rng) or "") for _ in range(100)} | set(map(normalised, CAPTION_REQUESTS))
    assert len(wordings) > 1000
    assert not wordings & HELD_OUT


def test_no_training_message_contains_an_embedding_prompt() -> None:
    rng = Random(1)
    for _ in range(1500):
        chat = converse(rng, "mix")
        for line in "\n".join([chat.system or "", *(turn.user for turn in chat.turns)]).split("\n"):
            assert normalised(line) not in HELD_OUT
