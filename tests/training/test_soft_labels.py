from __future__ import annotations

import math
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from hf_mmembed.data.pairs import read_pairs
from hf_mmembed.training.arguments import SaHaTrainingArguments
from hf_mmembed.training.chunks import Facts
from hf_mmembed.training.soft_labels import SoftLabelLoss
from hf_mmembed.training.trainer import SaHaTrainer
from tests.forks import in_processes
from tests.training.conftest import double_precision, make_pairs, picture
from tests.training.test_losses import assert_equal_gradients, batch_of, gradients, without_cache


def judged(number=6):
    """Row i has i % 3 negatives."""
    pairs = make_pairs(number, negatives=True)
    counts = [len(texts) for texts in pairs["neg_text"]]
    rows = [
        {**row, "pos_score": 0.9 - 0.1 * i, "neg_score": [0.1 * (i + 1) / (j + 1) for j in range(count)]}
        for i, (row, count) in enumerate(zip(pairs, counts, strict=True))
    ]
    return read_pairs(Dataset.from_list(rows, features=None))


def bare(temperature, scores):
    """The loss without a model, for embeddings that are given."""
    loss = SoftLabelLoss.__new__(SoftLabelLoss)
    torch.nn.Module.__init__(loss)
    loss.temperature, loss._scores = temperature, scores
    return loss


def units(rows, generator):
    return normalize(torch.randn(rows, 4, generator=generator, dtype=torch.float64), dim=-1)


def test_scores_reach_the_device_in_the_type_of_the_embeddings():
    """Not every device has float64."""
    rows = mock.MagicMock(device=torch.device("meta"))
    rows.__getitem__.return_value.tolist.return_value = [0]
    facts = SimpleNamespace(rows=rows, negative_rows=torch.tensor([0]))
    scores, _, _ = bare(0.3, [np.array([0.5, 0.25])])._table(facts, slice(0, 1), 1, torch.float32)
    assert (scores.device.type, scores.dtype) == ("meta", torch.float32)


@settings(max_examples=40)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.integers(0, 999))
def test_equals_the_definition(counts, seed):
    generator = torch.Generator().manual_seed(seed)
    n, m = len(counts), sum(counts)
    queries, documents, negatives = (units(rows, generator) for rows in (n, n, m))
    rows = torch.randperm(50, generator=generator)[:n]  # of a larger dataset
    loss = bare(0.3, [np.empty(0)] * 50)
    for row, count in zip(rows.tolist(), counts, strict=True):
        loss._scores[row] = torch.rand(count + 1 if count else 0, generator=generator, dtype=torch.float64).numpy()
    no_ids = torch.zeros(m, dtype=torch.int64)
    facts = Facts(rows, torch.zeros(n), torch.zeros(n, 1), no_ids, rows.repeat_interleave(torch.tensor(counts)))
    expected, start = [], 0
    for i, count in enumerate(counts):
        own = [documents[i], *negatives[start : start + count]]
        start += count
        p, q = (
            [math.exp(x / 0.3) for x in values]
            for values in ([float(queries[i] @ d) for d in own], loss._scores[rows[i]].tolist() or [1.0])
        )
        p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
        kl = sum(a * math.log(a / b) + b * math.log(b / a) for a, b in zip(p, q, strict=True))
        expected.append(kl / 2)
    np.testing.assert_allclose(
        loss.losses(queries, documents, negatives, facts, slice(0, n)), expected, rtol=1e-9, atol=1e-12
    )
    half = n // 2
    parts = [loss.losses(queries, documents, negatives, facts, part) for part in (slice(0, half), slice(half, n))]
    np.testing.assert_allclose(torch.cat(parts), expected, rtol=1e-9, atol=1e-12)


def test_a_row_that_stands_twice_in_a_batch_has_the_loss_of_one():
    generator = torch.Generator().manual_seed(0)
    query, document, negatives = (units(rows, generator) for rows in (1, 1, 2))
    loss = bare(0.3, [np.array([0.9, 0.4, 0.1])])
    values = []
    for times in (1, 2):
        no_ids, rows = torch.zeros(2 * times, dtype=torch.int64), torch.zeros(times, dtype=torch.int64)
        facts = Facts(rows, torch.zeros(times), torch.zeros(times, 1), no_ids, no_ids)
        sides = (query.repeat(times, 1), document.repeat(times, 1), negatives.repeat(times, 1))
        values += loss.losses(*sides, facts, slice(0, times)).tolist()
    assert values == pytest.approx([values[0]] * 3, rel=1e-12) and values[0] > 0


def test_gradients_equal_those_of_the_whole_batch(fresh):
    pairs = judged()
    model = fresh(dtype=torch.float64).train()
    sides, facts = batch_of(pairs).values()
    with double_precision():
        loss = SoftLabelLoss(model, pairs, temperature=0.1, mini_batch_size=2)
        loss(sides, facts).backward()
        found = gradients(model)
        model.zero_grad()
        without_cache(loss, sides, facts, chunked=False)
    assert_equal_gradients(found, gradients(model))


def _rank_gradients(rank, model, pairs, parts):
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    loss = SoftLabelLoss(model, pairs, temperature=0.1, mini_batch_size=2)
    loss.model = wrapped
    with double_precision():
        value = loss(*parts[rank].values())
        value.backward()
    return float(value.detach()), {name: g.numpy() for name, g in gradients(model).items()}


def test_two_processes_with_unequal_parts_equal_one(fresh, tmp_path):
    pairs = judged(7)
    model = fresh(dtype=torch.float64).train()
    parts = [batch_of(pairs, range(4)), batch_of(pairs, range(4, 7))]
    results = in_processes(_rank_gradients, model, pairs, parts, store=tmp_path / "store")
    with double_precision():
        whole = SoftLabelLoss(model, pairs, temperature=0.1)(*batch_of(pairs).values())
        whole.backward()
    assert sum(value for value, _ in results) / 2 == pytest.approx(float(whole), rel=1e-10)
    for _, found in results:
        assert_equal_gradients({name: torch.from_numpy(g) for name, g in found.items()}, gradients(model))


def test_scores_like_the_cosines_are_a_minimum(fresh):
    """What the judge thinks is what the model thinks: nothing to learn."""
    pairs = judged(3).select([2])
    model = fresh(dtype=torch.float64)
    query, positive, *negatives = model.encode(
        [pairs[0]["query_text"], pairs[0]["pos_text"], *pairs[0]["neg_text"]], convert_to_tensor=True
    )
    sides, facts = batch_of(pairs).values()
    probe = SoftLabelLoss(model, pairs)
    embeddings = [positive, *negatives]
    probe._scores = [np.array([float(query @ other) for other in embeddings])]
    stacked = torch.stack(negatives)
    assert float(probe.losses(query[None], positive[None], stacked, facts, slice(0, 1))) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda row: {**row, "pos_score": None},
        lambda row: {**row, "neg_score": row["neg_score"][:-1]},
        lambda row: {**row, "neg_score": [*row["neg_score"], 0.5]},
        lambda row: {**row, "neg_score": [None] * len(row["neg_score"])},
        lambda row: {**row, "neg_score": None},
        lambda row: {**row, "neg_score": [math.nan] * len(row["neg_score"])},
    ],
)
def test_missing_scores_are_named_before_anything_is_trained(fresh, tmp_path, spoil):
    rows = [spoil(row) if i in (2, 4) else row for i, row in enumerate(judged())]
    pairs = read_pairs(Dataset.from_list(rows))
    args = SaHaTrainingArguments(
        str(tmp_path), loss="soft-labels", global_batch_size=2, use_cpu=True, report_to="none", lora_rank=0
    )
    with pytest.raises(ValueError, match=r"2 of 6 rows lack scores.*Rows 2, 4\."):
        SaHaTrainer(fresh(), args, pairs)


def test_pairs_without_negatives_or_scores_are_refused(fresh):
    with pytest.raises(ValueError, match="no neg_text and no neg_image"):
        SoftLabelLoss(fresh(), make_pairs(2))
    with pytest.raises(ValueError, match="2 of 3 rows lack scores"):
        SoftLabelLoss(fresh(), make_pairs(3, negatives=True))


def test_empty_places_among_negatives_need_no_score(fresh):
    row = {**make_pairs(1, pictures=False)[0], "neg_text": ["", "b"], "neg_image": [None, None], "pos_score": 1.0}
    pairs = read_pairs(Dataset.from_list([{**row, "neg_score": [None, 0.25]}]))
    assert SoftLabelLoss(fresh(), pairs)._scores[0].tolist() == [1.0, 0.25]


def test_negatives_that_are_pictures_count_by_path_as_by_bytes(fresh, tmp_path):
    (tmp_path / "red.png").write_bytes(picture("red"))
    row = {**make_pairs(1, pictures=False)[0], "neg_text": ["", ""], "pos_score": 1.0, "neg_score": [0.5, 0.25]}
    cells = {"bytes": picture("red"), "path": None}, {"bytes": None, "path": str(tmp_path / "red.png")}
    for cell in cells:
        pairs = read_pairs(Dataset.from_list([{**row, "neg_image": [cell, cell]}]))
        assert SoftLabelLoss(fresh(), pairs)._scores[0].tolist() == [1.0, 0.5, 0.25]


def test_trains_by_name(fresh, tmp_path):
    args = SaHaTrainingArguments(
        str(tmp_path), loss="soft-labels", global_batch_size=3, max_steps=1, use_cpu=True, report_to="none",
        save_strategy="no", lora_rank=2, logging_steps=1,
    )  # fmt: skip
    trainer = SaHaTrainer(fresh(), args, judged())
    assert isinstance(trainer.loss, SoftLabelLoss)
    trainer.train()
    assert "judged_hardness" in trainer.state.log_history[0]
