"""Does the model see? Questions on unseen pictures, answered by the most likely first token of the whole vocabulary.

In: a generative model. Out: accuracy per topic, to be read beside the rate of a blind guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import cast

import torch
from transformers import PreTrainedTokenizerFast, Qwen2VLForConditionalGeneration

from hf_mmembed.data.questions import ANSWERS, TOPICS, Topic, ask
from hf_mmembed.data.scenes import Kind, random_scene
from hf_mmembed.tiny.batches import ROW_TOKENS, pack, tokenise
from hf_mmembed.tiny.conversations import Conversation, Turn
from hf_mmembed.tiny.fast_forward import hidden_states, to_patches, vision_tokens
from hf_mmembed.tiny.wordings import GENERIC_SYSTEM

__all__ = ["Accuracy", "probe"]

_BATCH = 32


@dataclass(frozen=True)
class Accuracy:
    """Percent right of `questions` about pictures of one kind; `guess` is the rate of the best constant answer."""

    kind: Kind
    topic: Topic
    right: float
    guess: float
    questions: int


@torch.inference_mode()
def probe(
    model: Qwen2VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    kind: Kind,
    *,
    topics: tuple[Topic, ...] = TOPICS,
    questions: int = 200,
) -> list[Accuracy]:
    """Asks `questions` per topic about unseen pictures of `kind`, under the generic system prompt."""
    results = []
    for topic in topics:
        rng = Random(f"0/{kind}/{topic}")
        asked: list[Conversation] = []
        while len(asked) < questions and (asked or _possible(kind, topic)):
            scene = random_scene(rng, "val", {kind: 1.0})
            question = ask(scene, rng, (topic,))
            if question is not None:
                asked.append(Conversation(GENERIC_SYSTEM, (Turn(question.text, question.answer),), scene))
        if asked:
            golds = [conversation.turns[0].answer for conversation in asked]
            said = _answers(model, tokenizer, asked, rng)
            right = sum(a.strip() == b for a, b in zip(said, golds, strict=True))
            guess = max(golds.count(answer) for answer in ANSWERS[topic])
            results.append(Accuracy(kind, topic, 100 * right / len(golds), 100 * guess / len(golds), len(golds)))
    return results


def _possible(kind: Kind, topic: Topic) -> bool:
    return kind == "two" or topic not in ("related_shape", "related_color", "relation", "side")


def _answers(
    model: Qwen2VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    conversations: list[Conversation],
    rng: Random,
) -> list[str]:
    answers: list[str] = []
    for start in range(0, len(conversations), _BATCH):
        drafts = [tokenise(tokenizer, conversation) for conversation in conversations[start : start + _BATCH]]
        batch = pack(drafts, rng, len(drafts), len(drafts), one_per_row=True)
        pixels = torch.from_numpy(batch.pictures.pixels).to(model.device)
        states = hidden_states(model, batch, vision_tokens(model.model.visual, to_patches(pixels)))
        places = [row * ROW_TOKENS + draft.answers[0][0] for row, draft in enumerate(drafts)]
        first = torch.tensor(places, device=model.device)
        tokens = model.lm_head(states.view(-1, states.shape[-1])[first]).argmax(-1)
        answers += [cast(str, tokenizer.decode([token])) for token in tokens.tolist()]
    return answers
