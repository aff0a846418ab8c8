"""The weights that ship are those of the figures in their card; on a small part of its tests they are as good."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from transformers import (
    AutoImageProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLForConditionalGeneration,
)

from hf_mmembed import MMEmbedder
from hf_mmembed.data.captions import SYNONYMS
from hf_mmembed.data.scenes import draw, random_scene
from hf_mmembed.tiny import checkpoint_path, generative_path
from hf_mmembed.tiny.evaluate import PROMPTS, weights_of, zero_shot
from hf_mmembed.tiny.probe import probe
from hf_mmembed.tiny.testset import TestSet, build_testset
from hf_mmembed.tiny.wordings import CAPTION_REQUESTS

CARD = Path(__file__).parents[2] / "model_cards" / "mmembed-tiny.json"


@pytest.fixture(scope="module")
def embedder() -> MMEmbedder:
    return MMEmbedder(str(checkpoint_path()), device="cpu")


@pytest.fixture(scope="module")
def test_set() -> TestSet:
    return build_testset(0, candidates=100, small=24)


@pytest.fixture(scope="module")
def parent() -> tuple[Qwen2VLForConditionalGeneration, PreTrainedTokenizerFast]:
    path = generative_path()
    model = Qwen2VLForConditionalGeneration.from_pretrained(path, dtype=torch.float32).eval()
    return model, PreTrainedTokenizerFast.from_pretrained(path)


def test_the_figures_of_the_card_are_of_these_weights() -> None:
    assert json.loads(CARD.read_text(encoding="utf-8"))["weights"] == weights_of(generative_path())


@pytest.mark.parametrize(
    ("prompt", "at_1", "at_10"), [("hierarchical", (85, 100), (99, 100)), ("generic system", (0, 5), (0, 25))]
)
def test_one_word_makes_an_embedding_space_and_a_generic_prompt_does_not(
    embedder: MMEmbedder, test_set: TestSet, prompt: str, at_1: tuple[int, int], at_10: tuple[int, int]
) -> None:
    embedder.processor.prompt = PROMPTS[prompt]
    scores = zero_shot(embedder, test_set)
    embedder.processor.prompt = PROMPTS["hierarchical"]
    assert at_1[0] <= scores["text→image R@1"] <= at_1[1] and at_10[0] <= scores["text→image R@10"] <= at_10[1]
    if prompt == "hierarchical":
        assert scores["classify shape"] >= 95 and scores["classify color"] >= 95 and scores["composed R@10"] >= 90


@pytest.mark.parametrize(
    ("kind", "least"),
    [
        ("one", {"color": 97, "shape": 97, "size": 85, "fill": 85, "exists": 85}),
        ("two", {"color": 70, "shape": 70, "side": 85, "relation": 75}),
        ("count", {"count": 70}),
    ],
)
def test_it_sees(parent, kind, least) -> None:  # type: ignore[no-untyped-def]
    for found in probe(*parent, kind, topics=tuple(least), questions=48):
        assert found.right >= max(least[found.topic], found.guess + 15), found


def test_it_describes_a_picture(parent) -> None:  # type: ignore[no-untyped-def]
    model, tokenizer = parent
    base = {form: concept for concept, forms in SYNONYMS.items() for form in forms}
    processor = AutoImageProcessor.from_pretrained(generative_path(), backend="pil")
    for seed in range(6):
        rng = Random(seed)
        scene = random_scene(rng, "val", {"one": 1})
        chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": CAPTION_REQUESTS[0]}]}]
        text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        inputs = tokenizer(text.replace("<|image_pad|>", 16 * "<|image_pad|>"), return_tensors="pt")
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == model.config.image_token_id).int()
        picture = processor(draw(scene, rng), return_tensors="pt")
        ids = model.generate(**inputs, **picture, max_new_tokens=32)[0, inputs["input_ids"].shape[1] :]
        said = {base.get(word, word) for word in tokenizer.decode(ids, skip_special_tokens=True).split()}
        assert {scene.shapes[0].shape, scene.shapes[0].color} <= said, (scene, said)


def test_vectors_do_not_depend_on_the_batch(embedder: MMEmbedder, test_set: TestSet) -> None:
    texts = [" and ".join(test_set.captions[:count]) for count in (1, 2, 40, 5, 30)]
    inputs = [
        *({"text": text} for text in texts),
        *({"image": picture} for picture in test_set.pictures[:4]),
        {"text": "in red", "image": test_set.pictures[4]},
        {"image": test_set.pictures[5:8]},
    ]
    together = embedder.encode_query(inputs, batch_size=len(inputs))
    alone = np.concatenate([embedder.encode_query([item]) for item in inputs])
    assert np.abs(together - alone).max() <= 2e-5
    assert np.abs(np.linalg.norm(together, axis=1) - 1).max() <= 1e-6
