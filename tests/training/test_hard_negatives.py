from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from hf_mmembed.training.arguments import SaHaTrainingArguments
from hf_mmembed.training.chunks import Facts
from hf_mmembed.training.hard_negatives import InBatchHardNegativeLoss
from tests.forks import in_processes
from tests.training.conftest import double_precision, make_pairs
from tests.training.test_losses import assert_equal_gradients, batch_of, gradients, without_cache


def bare(k, margin, temperature=0.1):
    """The loss without a model, for embeddings that are given."""
    loss = InBatchHardNegativeLoss.__new__(InBatchHardNegativeLoss)
    torch.nn.Module.__init__(loss)
    loss.k, loss.margin, loss.temperature = k, margin, temperature
    return loss


def draw(seed, n, m):
    generator = torch.Generator().manual_seed(seed)

    def units(rows):
        return normalize(torch.randn(rows, 3, generator=generator, dtype=torch.float64), dim=-1)

    query_ids = torch.randint(0, 5, (n,), generator=generator)
    document_ids = torch.randint(0, 6, (n,), generator=generator)
    positives = [sorted(set(document_ids[query_ids == q].tolist())) for q in query_ids.tolist()]
    width = max(map(len, positives))
    facts = Facts(
        rows=torch.arange(n),
        document_ids=document_ids,
        positives=torch.tensor([own + [-1] * (width - len(own)) for own in positives]),
        negative_ids=torch.randint(0, 9, (m,), generator=generator),
        negative_rows=torch.zeros(m, dtype=torch.int64),
    )
    return units(n), units(n), units(m), facts


def brute_force(queries, documents, negatives, facts, k, margin, temperature):
    """The definition, one number at a time; also which negatives each query has, and how many false ones it had."""
    candidates = torch.cat([documents, negatives])
    ids = facts.document_ids.tolist() + facts.negative_ids.tolist()
    values, chosen, false = [], [], []
    for i, query in enumerate(queries):
        known = set(facts.positives[i].tolist()) | {ids[i]}
        positive = float(query @ documents[i])
        scores = {}
        false.append(0)
        for j, candidate in enumerate(candidates):
            if ids[j] in known or ids[j] in ids[:j]:
                continue
            if float(query @ candidate) > positive + margin:
                false[-1] += 1
            else:
                scores[j] = float(query @ candidate)
        hardest = sorted(scores, key=scores.get, reverse=True)[:k]
        partition = sum(math.exp(scores[j] / temperature) for j in hardest)
        values.append(-math.log(math.exp(positive / temperature) / (math.exp(positive / temperature) + partition)))
        chosen.append(hardest)
    return values, chosen, false


@settings(max_examples=60)
@given(
    st.integers(1, 9), st.integers(0, 5), st.sampled_from([1, 3, 8]), st.sampled_from([0.1, -0.3, math.inf]), st.integers(0, 999)
)  # fmt: skip
def test_equals_the_definition(n, m, k, margin, seed):
    queries, documents, negatives, facts = draw(seed, n, m)
    queries.requires_grad_(), documents.requires_grad_(), negatives.requires_grad_()
    loss = bare(k, margin)
    values = loss.losses(queries, documents, negatives, facts, slice(0, n))
    with torch.no_grad():
        expected, chosen, false = brute_force(queries, documents, negatives, facts, k, margin, 0.1)
    np.testing.assert_allclose(values.detach(), expected, rtol=1e-10, atol=1e-12)
    # A filtered document is never taken back, not even where fewer than k are left: it gets no gradient.
    values.sum().backward()
    touched = torch.cat([documents.grad, negatives.grad]).abs().sum(dim=1) > 0
    allowed = {j for own in chosen for j in own} | {i for i, own in enumerate(chosen) if own}
    assert set(torch.nonzero(touched).flatten().tolist()) <= allowed
    assert all(torch.isfinite(tensor.grad).all() for tensor in (queries, documents, negatives))
    assert float(loss.metrics["negatives"]) == pytest.approx(np.mean([len(own) for own in chosen]))
    assert float(loss.metrics["false_negatives"]) == pytest.approx(np.mean(false))
    # A process computes its own pairs against everybody's.
    half = n // 2
    with torch.no_grad():
        parts = [loss.losses(queries, documents, negatives, facts, part) for part in (slice(0, half), slice(half, n))]
    np.testing.assert_allclose(torch.cat(parts), expected, rtol=1e-10, atol=1e-12)


def test_what_the_published_code_takes_back_stays_out():
    """Every candidate is a false negative: the published top-k then returns the positive itself as a negative."""
    queries = normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1]], dtype=torch.float64), dim=1)
    documents = normalize(torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64), dim=1)
    facts = Facts(
        torch.arange(2), torch.arange(2), torch.arange(2)[:, None], torch.empty(0, dtype=torch.int64),
        torch.empty(0, dtype=torch.int64),
    )  # fmt: skip
    loss = bare(8, 0.1)
    values = loss.losses(queries, documents, torch.empty(0, 2, dtype=torch.float64), facts, slice(0, 2))
    assert float(values[0]) == 0.0 and float(values[1]) > 0
    assert float(loss.metrics["false_negatives"]) == 0.5


def test_gradients_equal_those_of_the_whole_batch(fresh):
    model = fresh(dtype=torch.float64).train()
    sides, facts = batch_of(make_pairs(8, negatives=True)).values()
    with double_precision():
        loss = InBatchHardNegativeLoss(model, k=3, temperature=0.1, mini_batch_size=3)
        loss(sides, facts).backward()
        found = gradients(model)
        model.zero_grad()
        without_cache(loss, sides, facts, chunked=False)
    assert_equal_gradients(found, gradients(model))


def _rank_gradients(rank, model, parts):
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    loss = InBatchHardNegativeLoss(model, k=3, temperature=0.1, mini_batch_size=2)
    loss.model = wrapped
    with double_precision():
        value = loss(*parts[rank].values())
        value.backward()
    return float(value.detach()), {name: g.numpy() for name, g in gradients(model).items()}


def test_two_processes_with_unequal_parts_equal_one(fresh, tmp_path):
    pairs = make_pairs(7, negatives=True)
    model = fresh(dtype=torch.float64).train()
    parts = [batch_of(pairs, range(4)), batch_of(pairs, range(4, 7))]
    results = in_processes(_rank_gradients, model, parts, store=tmp_path / "store")
    with double_precision():
        whole = InBatchHardNegativeLoss(model, k=3, temperature=0.1)(*batch_of(pairs).values())
        whole.backward()
    assert sum(value for value, _ in results) / 2 == pytest.approx(float(whole), rel=1e-10)
    for _, found in results:
        assert_equal_gradients({name: torch.from_numpy(g) for name, g in found.items()}, gradients(model))


def test_more_hard_negatives_than_a_batch_has_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="hard_negatives is 8, but 8 pairs .* from 1 to 7"):
        SaHaTrainingArguments(str(tmp_path), loss="in-batch-hard-negatives", global_batch_size=8, use_cpu=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "triplet"}, "loss is 'triplet'; use one of 'infonce'"),
        ({"loss": "soft-labels", "symmetric": True}, "symmetric is an option of the loss 'infonce'"),
        ({"loss": "soft-labels", "false_negative_margin": 0.1}, "filter when you judge"),
    ],
)
def test_options_of_another_loss_are_errors(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        SaHaTrainingArguments(str(tmp_path), use_cpu=True, **options)


def test_k_and_temperature_must_be_positive(fresh):
    model = fresh()
    with pytest.raises(ValueError, match="k is 0"):
        InBatchHardNegativeLoss(model, k=0)
    with pytest.raises(ValueError, match="temperature is 0"):
        InBatchHardNegativeLoss(model, temperature=0)
