"""The nearest documents are those that sorting all float64 scores gives."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_mmembed.mining import candidates
from hf_mmembed.mining.candidates import as_matrix, nearest_documents, pair_products


def brute_force(queries, documents, depth):
    scores = (queries.astype(np.float64)[:, None] * documents.astype(np.float64)).sum(-1)
    numbers = np.broadcast_to(np.arange(len(documents)), scores.shape)
    order = np.lexsort((numbers, -scores), axis=1)[:, :depth]
    return order, np.take_along_axis(scores, order, 1)


def vectors(rng, rows, dim, kind):
    if kind == "ties":
        return rng.integers(-1, 2, (rows, dim)).astype(np.float32)
    if kind == "narrow":  # a cone, as of a model that was not trained to embed
        return (1 + 1e-3 * rng.normal(size=(rows, dim))).astype(np.float32)
    if kind == "copies":
        return rng.normal(size=(3, dim)).astype(np.float32)[rng.integers(0, 3, rows)]
    return rng.normal(size=(rows, dim)).astype(np.float32)


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    queries=st.integers(1, 20),
    documents=st.integers(1, 300),
    dim=st.integers(1, 12),
    depth=st.integers(1, 60),
    kind=st.sampled_from(["ties", "narrow", "copies", "normal"]),
    double=st.booleans(),
)
def test_equals_brute_force(seed, queries, documents, dim, depth, kind, double):
    rng = np.random.default_rng(seed)
    q, d = vectors(rng, queries, dim, kind), vectors(rng, documents, dim, kind)
    if double:
        q, d = q.astype(np.float64), d.astype(np.float64)
    found = nearest_documents(torch.from_numpy(q), torch.from_numpy(d), depth)
    order, scores = brute_force(q, d, depth)
    assert found.documents.tolist() == order.tolist()
    np.testing.assert_allclose(found.scores, scores, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["ties", "narrow", "normal"])
def test_many_blocks_and_groups_change_nothing(kind, monkeypatch):
    monkeypatch.setattr(candidates, "_GROUP", 4)
    monkeypatch.setattr(candidates, "_SPARE", 3)
    rng = np.random.default_rng(1)
    q, d = vectors(rng, 13, 6, kind), vectors(rng, 17_001, 6, kind)
    found = nearest_documents(torch.from_numpy(q), torch.from_numpy(d), 20, block_bytes=1_000_000)
    assert found.documents.tolist() == brute_force(q, d, 20)[0].tolist()
    assert (found.unsettled > 0) == (kind == "ties")


KINDS = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)


@pytest.fixture
def as_it_was():
    yield
    torch.set_float32_matmul_precision("highest")
    for place in (torch.backends, *KINDS):
        place.fp32_precision = "none"


@pytest.mark.usefixtures("as_it_was")
@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        (torch.backends, "fp32_precision", "tf32"),
        (torch.backends, "fp32_precision", "bf16"),
        (KINDS[0], "fp32_precision", "tf32"),
        (KINDS[1], "fp32_precision", "bf16"),
        (KINDS[0], "allow_tf32", True),
        (torch._C, "_set_float32_matmul_precision", "medium"),
        (torch._C, "_set_float32_matmul_precision", "highest"),
    ],
)
@pytest.mark.parametrize("fails", [False, True])
def test_products_are_of_float32_whatever_torch_is_told(monkeypatch, place, name, value, fails):
    if callable(setter := getattr(place, name)):
        setter(value)
    else:
        setattr(place, name, value)
    before, seen = [kind.fp32_precision for kind in KINDS], []

    def product(*factors, original=torch.mm, **options):
        seen.extend(kind.fp32_precision for kind in KINDS)
        if fails:
            raise RuntimeError("out of memory")
        return original(*factors, **options)

    monkeypatch.setattr(torch, "mm", product)
    with pytest.raises(RuntimeError, match="out of memory") if fails else nullcontext():
        nearest_documents(torch.eye(3), torch.eye(3), 1)
    assert len(seen) == 2 and set(seen) <= {"none", "ieee"}
    assert [kind.fp32_precision for kind in KINDS] == before
    if name == "fp32_precision" and place is torch.backends:
        place.fp32_precision = "none"
        assert [kind.fp32_precision for kind in KINDS] == ["none", "none"], "they no longer follow torch as a whole"


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    dim=st.integers(1, 40),
    pairs=st.integers(0, 30),
    kind=st.sampled_from([(np.float32, torch.float32), (np.float32, torch.float64), (np.float64, torch.float64)]),
)
def test_equal_pairs_have_bit_equal_products(seed, dim, pairs, kind):
    rng = np.random.default_rng(seed)
    left, right = (torch.from_numpy(rng.normal(size=(9, dim)).astype(kind[0])) for _ in range(2))
    right[5:] = right[0]  # copies of a vector
    rows = torch.from_numpy(rng.integers(0, 9, (2, pairs)))
    found = pair_products(left, right, *rows, kind[1])
    assert found.dtype == kind[1]
    for product, one, other in zip(found.tolist(), *rows.tolist(), strict=True):
        assert product == pytest.approx(float(left[one].double() @ right[other].double()), abs=1e-4)
        single = pair_products(left, right, torch.tensor([one]), torch.tensor([0 if other >= 5 else other]), kind[1])
        assert product == single.item()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_named(value):
    matrix = np.zeros((70_000, 3), np.float32)
    matrix[66_000, 1] = value
    with pytest.raises(ValueError, match="query_embeddings: row 66000 holds NaN or infinity"):
        as_matrix(matrix, "query_embeddings")
    assert as_matrix(np.full((2, 3), 3e38, np.float32), "x").dtype == torch.float32


def test_half_precision_is_widened_and_integers_are_refused():
    assert as_matrix(torch.ones(2, 3, dtype=torch.bfloat16), "x").dtype == torch.float32
    with pytest.raises(ValueError, match=r"x must be floats of shape \(rows, dim\), not torch.int64 \(2, 3\)"):
        as_matrix(np.ones((2, 3), np.int64), "x")
