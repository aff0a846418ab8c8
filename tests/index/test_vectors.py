"""FAISS indexes against exact search in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_mmembed.index import vectors


def unit(rows: int, dim: int, seed: int = 0) -> np.ndarray:
    matrix = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def blocks_of(matrix: np.ndarray, size: int = 37):
    return lambda: (matrix[start : start + size] for start in range(0, len(matrix), size))


def exact(queries: np.ndarray, matrix: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(-(queries.astype(np.float64) @ matrix.T.astype(np.float64)), axis=1, kind="stable")[:, :k]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 200), st.integers(2, 24), st.integers(0, 10_000))
def test_flat_is_exact(rows, dim, seed):
    matrix, queries, k = unit(rows, dim, seed), unit(5, dim, seed + 1), min(7, rows)
    index, info = vectors.build(blocks_of(matrix), rows=rows, dim=dim)
    scores, found = index.search(queries, k)
    expected = exact(queries, matrix, k)
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ matrix.T, expected, 1), atol=1e-6)
    assert (found == expected).mean() > 0.99  # float32 may swap a near tie
    assert info == {"kind": "flat", "metric": "cosine", "vectors": rows, "recall_at_10": 1.0}


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_approximate_indexes_report_the_recall_they_have(kind, tmp_path):
    matrix = unit(3000, 16)
    index, info = vectors.build(blocks_of(matrix), rows=3000, dim=16, kind=kind)
    step = 3000 // 100
    queries = matrix[::step][:100]
    found, expected = index.search(queries, 10)[1], exact(queries, matrix, 10)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), expected.tolist(), strict=True)])
    assert info["recall_at_10"] == pytest.approx(recall, abs=2e-3)
    assert recall > {"hnsw": 0.95, "ivf": 0.3}[kind]
    assert (found[:, 0] == np.arange(0, 3000, step)).all()
    vectors.save(index, tmp_path / "index.faiss")
    np.testing.assert_array_equal(vectors.load(tmp_path / "index.faiss").search(queries, 10)[1], found)
    assert [path.name for path in tmp_path.iterdir()] == ["index.faiss"]


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
@pytest.mark.parametrize("rows", [1, 2, 45])
def test_every_kind_takes_a_handful_of_rows(kind, rows):
    matrix = unit(rows, 8)
    index, _ = vectors.build(blocks_of(matrix), rows=rows, dim=8, kind=kind)
    assert index.search(matrix[:1], 1)[1][0, 0] == 0


def test_what_is_said_about_an_index():
    flat = {"kind": "flat", "vectors": 300, "recall_at_10": 1.0}
    assert vectors.describe(flat) == "flat FAISS index over 300 vectors, exact"
    said = vectors.describe({"kind": "hnsw", "vectors": 300_000, "recall_at_10": 0.987})
    assert "approximate" in said and "98.7 %" in said and "200,000" in said and said.endswith("100 of them")
    assert vectors.describe({"kind": "ivf", "vectors": 12, "recall_at_10": 1.0}).endswith("measured on 12 of them")


def test_sizes_choose_the_kind():
    limits = (vectors.FLAT_LIMIT, vectors.HNSW_LIMIT)
    chosen = [vectors.choose_kind(limit + step) for limit in limits for step in (0, 1)]
    assert chosen == ["flat", "hnsw", "hnsw", "ivf"]


def test_a_broken_file_says_what_to_do(tmp_path):
    (tmp_path / "index.faiss").write_bytes(b"no index")
    with pytest.raises(ValueError, match="hf-mmembed index.*embeddings are kept"):
        vectors.load(tmp_path / "index.faiss")
    with pytest.raises(ValueError, match="cannot read"):
        vectors.load(tmp_path / "gone.faiss")
