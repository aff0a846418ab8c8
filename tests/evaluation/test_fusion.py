from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hf_mmembed.evaluation.fusion import SumOfModalities
from hf_mmembed.evaluation.instructions import WORDINGS, built_item, split_item
from hf_mmembed.evaluation.items import ImageFile, Item

PICTURE = (ImageFile(Path("a.png")),)


class Lengths:
    """Embeds texts on one axis, pictures on the other; refuses both at once."""

    name, key, metadata = "lengths", "k", {"dim": 2}

    def __call__(self, items):
        assert not any(item.text and item.images for item in items)
        return np.array([[3.0 * len(item.images), 5.0 * len(item.text or "")] for item in items], np.float32)


def test_both_modalities_are_embedded_apart_and_added():
    encoder = SumOfModalities(Lengths())
    items = [Item("ab", PICTURE, role="query"), Item("a"), Item(None, PICTURE), Item("", PICTURE)]
    np.testing.assert_allclose(encoder(items), [[1, 1], [0, 1], [1, 0], [1, 0]])
    assert encoder.key != Lengths.key and encoder.metadata == {"dim": 2}


def test_without_instructions_the_prompt_of_the_checkpoint_stands_alone():
    caption = built_item("a dog", (), "Find me an image:", "none", "query")
    assert (caption.text, caption.instruction) == ("a dog", None)
    wording = WORDINGS["GQA"]
    asked = "<|image_1|>\nRepresent the given image with the following question: What colour?\n"
    question = split_item(asked, PICTURE, wording.on(candidate=False), "none", "query")
    assert (question.text, question.instruction) == ("What colour?", None)


def test_a_run_with_the_prompts_of_unime(embedder, tmp_path):
    from hf_mmembed.evaluation import evaluate
    from tests.training.conftest import picture

    for number, colour in enumerate(("red", "blue")):
        (tmp_path / f"{number}.png").write_bytes(picture(colour, 32))
    lines = [
        f'{{"file_name": "{number}.png", "text": "a {colour} thing"}}' for number, colour in enumerate(("red", "blue"))
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    model = str(embedder("qwen2_vl", prompt="unime"))
    results = evaluate(
        model, "retrieval", tmp_path, out=tmp_path / "out", instruction_in="none", fusion="sum", device="cpu"
    )
    assert not results.failed
    assert results.metadata["fusion"] == "sum" and results.metadata["instruction_in"] == "none"
    with pytest.raises(ValueError, match="fusion is 'both'"):
        evaluate(model, "retrieval", tmp_path, out=tmp_path / "out", fusion="both", device="cpu")
