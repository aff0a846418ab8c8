"""The cheap training computes what the ordinary one computes."""

from __future__ import annotations

import pytest
import torch

from hf_mmembed.mining import content_ids
from hf_mmembed.tiny.lean_training import OnePassInfoNCELoss, make_lean_loss, remember_pictures
from hf_mmembed.tiny.pairs import draw_pairs
from hf_mmembed.training.arguments import SaHaTrainingArguments
from hf_mmembed.training.collator import ROW, PairCollator
from hf_mmembed.training.losses import MaskedInfoNCELoss
from hf_mmembed.training.models import open_for_training


@pytest.fixture(scope="module")
def batch():  # type: ignore[no-untyped-def]
    pairs = draw_pairs(0, families=1).pairs
    collate = PairCollator(content_ids(pairs))
    return collate([{**pairs[row], ROW: row} for row in range(10)])


def test_loss_and_gradients_are_those_of_the_ordinary_loss(embedder, batch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    args = SaHaTrainingArguments(str(tmp_path), lora_rank=2, lora_dropout=0.0, use_dora=False, report_to="none")
    found = {}
    for kind in (MaskedInfoNCELoss, OnePassInfoNCELoss):
        torch.manual_seed(0)
        model = open_for_training(embedder("qwen2_vl"), args).train()
        memory: dict[bytes, torch.Tensor] = {}
        if kind is OnePassInfoNCELoss:
            remember_pictures(model, memory)
        for parameter in model.parameters():  # a fresh adapter has no gradient in half of its weights
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
        loss = kind(model, temperature=0.1, mini_batch_size=4)
        value = loss(batch["sides"], batch["facts"])
        value.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.requires_grad]
        found[kind] = float(value.detach()), gradients
    expected, got = found[MaskedInfoNCELoss], found[OnePassInfoNCELoss]
    assert got[0] == pytest.approx(expected[0], rel=1e-5)
    for ours, theirs in zip(got[1], expected[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5 * float(theirs.abs().max()))
    pictures = {bytes(part["image"]) for side in batch["sides"] for turns in side.messages for turn in turns
                for part in turn["content"] if part["type"] == "image"}  # fmt: skip
    assert len(memory) == len(pictures)


def test_the_options_of_the_loss_are_kept(embedder, tmp_path) -> None:  # type: ignore[no-untyped-def]
    args = SaHaTrainingArguments(
        str(tmp_path), symmetric=True, mini_batch_num_tokens=99, lora_rank=0, report_to="none", use_cpu=True
    )
    loss = make_lean_loss(open_for_training(embedder("qwen2_vl"), args), args, draw_pairs(0, families=1).pairs)
    assert isinstance(loss, OnePassInfoNCELoss) and loss.symmetric and loss.chunk_tokens == 99
