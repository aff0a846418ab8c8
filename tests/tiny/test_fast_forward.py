"""The fast forward equals the stock one: patches, vision tower, language model, and rows of packed conversations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from hf_mmembed.tiny.architecture import IMAGE_PAD, build_image_processor
from hf_mmembed.tiny.batches import text_batch
from hf_mmembed.tiny.fast_forward import hidden_states, to_patches, vision_tokens


@pytest.fixture(scope="module")
def batch(tokenizer):  # type: ignore[no-untyped-def]
    return text_batch(tokenizer, 0, 0, "mix", rows=6, images=6)


def test_patches_equal_the_image_processor(batch) -> None:  # type: ignore[no-untyped-def]
    pictures = [Image.fromarray(pixels) for pixels in batch.pictures.pixels]
    expected = build_image_processor()(images=pictures, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(to_patches(torch.from_numpy(batch.pictures.pixels)), expected, rtol=0, atol=1e-6)


@torch.inference_mode()
def test_every_packed_conversation_equals_the_stock_forward(model, tokenizer, batch) -> None:  # type: ignore[no-untyped-def]
    pixels = torch.from_numpy(batch.pictures.pixels)
    states = hidden_states(model, batch, vision_tokens(model.model.visual, to_patches(pixels)))
    image_id = tokenizer.convert_tokens_to_ids(IMAGE_PAD)
    processor = build_image_processor()
    pictured = 0
    for number in np.unique(batch.conversation[batch.conversation > 0]):
        rows, columns = np.nonzero(batch.conversation == number)
        ids = torch.from_numpy(batch.ids[rows, columns])[None]
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if (ids == image_id).any():
            first = rows[0] * batch.ids.shape[1] + columns[0] + int((ids[0] == image_id).nonzero()[0])
            index = int(np.flatnonzero(batch.image_slots[:, 0] == first)[0])
            picture = Image.fromarray(batch.pictures.pixels[index])
            inputs |= {
                "mm_token_type_ids": (ids == image_id).int(),
                **processor(images=[picture], return_tensors="pt"),
            }
            pictured += 1
        expected = model.model(**inputs).last_hidden_state[0]
        torch.testing.assert_close(states[rows, columns], expected, rtol=0, atol=2e-5)
    assert 0 < pictured < number
