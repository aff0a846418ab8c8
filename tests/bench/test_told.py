"""The loss that is told the truth: no false negative weighs, every near miss does."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import cross_entropy, normalize

from hf_mmembed import MMEmbedder
from hf_mmembed.bench.told import ToldInfoNCELoss
from hf_mmembed.mining import content_ids
from hf_mmembed.tiny.pairs import draw_pairs
from hf_mmembed.training.collator import ROW, PairCollator
from hf_mmembed.training.losses import MaskedInfoNCELoss


def test_true_answers_are_left_out_and_nothing_else(embedder) -> None:  # type: ignore[no-untyped-def]
    drawn = draw_pairs(0, families=1, pictures=4, pixels=16)
    rows = np.arange(24)
    facts = PairCollator(content_ids(drawn.pairs))([{**drawn.pairs[int(row)], ROW: int(row)} for row in rows])["facts"]
    torch.manual_seed(0)
    queries, documents = normalize(torch.randn(2, len(rows), 8, dtype=torch.float64), dim=-1)
    model = MMEmbedder(str(embedder("qwen2_vl")), device="cpu")
    told, ordinary = ToldInfoNCELoss(model, drawn, temperature=0.1), MaskedInfoNCELoss(model, temperature=0.1)
    arguments = queries, documents, documents[:0], facts, slice(0, len(rows))

    true = torch.from_numpy(drawn.truth(rows, rows))
    logits = (queries @ documents.T / 0.1).masked_fill(true & ~torch.eye(len(rows), dtype=torch.bool), -torch.inf)
    expected = cross_entropy(logits, torch.arange(len(rows)), reduction="none")
    torch.testing.assert_close(told.losses(*arguments), expected)
    assert not torch.allclose(ordinary.losses(*arguments), expected)
