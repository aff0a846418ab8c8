from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from hf_mmembed.distillation.loss import DIAGONALS, DIRECTIONS, SimilarityDistillationLoss
from hf_mmembed.distillation.teacher import TeacherVectors
from hf_mmembed.mining.store import Embeddings
from hf_mmembed.training.chunks import Facts
from tests.forks import in_processes
from tests.training.conftest import double_precision
from tests.training.test_losses import assert_equal_gradients, batch_of, gradients, without_cache


def of_teacher(ids, dim=5, seed=0):
    """Random vectors for sentences with these ids, ``(pairs, 2)``."""
    vectors = np.random.default_rng(seed).normal(size=(int(ids.max()) + 1, dim)).astype(np.float32)
    return TeacherVectors(Embeddings([vectors], {}), np.asarray(ids, np.int64))


def brute_force(queries, documents, teacher, rows, *, temperature, direction, diagonal):
    """The definition, one number at a time."""
    ids = [*teacher.ids[rows, 0], *teacher.ids[rows, 1]]
    ours = [*queries.tolist(), *documents.tolist()]
    theirs = [vector / np.linalg.norm(vector) for vector in teacher.take(np.array(ids)).astype(float)]

    def row(vectors, i):
        kept = [j for j in range(len(ids)) if diagonal == "include" or ids[j] != ids[i]]
        kept = kept or list(range(len(ids)))
        scores = [
            math.exp(sum(a * b for a, b in zip(vectors[i], vectors[j], strict=True)) / temperature) for j in kept
        ]
        return [score / sum(scores) for score in scores]

    def divergence(i):
        p, q = row(theirs, i), row(ours, i)
        p, q = (p, q) if direction == "teacher-student" else (q, p)
        return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))

    return [(divergence(i) + divergence(len(rows) + i)) / 2 for i in range(len(rows))]


@pytest.mark.parametrize(("direction", "diagonal"), [*product(DIRECTIONS, DIAGONALS)])
@settings(max_examples=15)
@given(st.integers(1, 5), st.integers(0, 999))
def test_equals_the_definition(direction, diagonal, n, seed):
    generator = torch.Generator().manual_seed(seed)
    # Equal sentences are equal to the student too.
    teacher = of_teacher(torch.randint(0, 7, (20, 2), generator=generator).numpy(), seed=seed)
    of_student = normalize(torch.randn(teacher.ids.max() + 1, 3, generator=generator, dtype=torch.float64), dim=1)
    rows = torch.randperm(20, generator=generator)[:n]
    queries, documents = (of_student[teacher.ids[rows.numpy(), side]] for side in (0, 1))
    none = torch.empty(0, dtype=torch.int64)
    facts = Facts(rows, none, none[:, None], none, none)
    loss = SimilarityDistillationLoss.__new__(SimilarityDistillationLoss)
    torch.nn.Module.__init__(loss)
    loss.teacher, loss.temperature, loss.direction, loss.diagonal = teacher, 0.3, direction, diagonal
    expected = brute_force(
        queries, documents, teacher, rows.numpy(), temperature=0.3, direction=direction, diagonal=diagonal
    )
    values = loss.losses(queries, documents, torch.empty(0, 3), facts, slice(0, n))
    np.testing.assert_allclose(values, expected, rtol=1e-7, atol=1e-9)
    half = n // 2
    parts = [
        loss.losses(queries, documents, torch.empty(0, 3), facts, part) for part in (slice(0, half), slice(half, n))
    ]
    np.testing.assert_allclose(torch.cat(parts), expected, rtol=1e-7, atol=1e-9)


def test_a_student_like_its_teacher_has_nothing_to_learn(fresh, pairs):
    model = fresh()
    batch = batch_of(pairs)
    both = [
        model.encode(pairs[name][:], task=task) for name, task in (("query_text", "query"), ("pos_text", "document"))
    ]
    vectors = np.stack(both, axis=1).reshape(10, -1)
    teacher = TeacherVectors(Embeddings([vectors], {}), np.arange(10).reshape(5, 2))
    assert float(SimilarityDistillationLoss(model, teacher)(*batch.values())) == pytest.approx(0, abs=1e-5)


def test_gradients_equal_those_of_the_whole_batch(fresh, pairs):
    model = fresh(dtype=torch.float64).train()
    sides, facts = batch_of(pairs).values()
    with double_precision():
        loss = SimilarityDistillationLoss(model, of_teacher(np.arange(10).reshape(5, 2)), mini_batch_size=2)
        loss(sides, facts).backward()
        found = gradients(model)
        model.zero_grad()
        without_cache(loss, sides, facts, chunked=False)
    assert_equal_gradients(found, gradients(model))


def _rank_gradients(rank, model, teacher, parts):
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    loss = SimilarityDistillationLoss(model, teacher, mini_batch_size=2)
    loss.model = wrapped
    with double_precision():
        value = loss(*parts[rank].values())
        value.backward()
    return float(value.detach()), {name: g.numpy() for name, g in gradients(model).items()}


def test_two_processes_with_unequal_parts_equal_one(fresh, pairs, tmp_path):
    model = fresh(dtype=torch.float64).train()
    teacher = of_teacher(np.arange(10).reshape(5, 2))
    parts = [batch_of(pairs, range(2)), batch_of(pairs, range(2, 5))]
    results = in_processes(_rank_gradients, model, teacher, parts, store=tmp_path / "store")
    with double_precision():
        whole = SimilarityDistillationLoss(model, teacher)(*batch_of(pairs).values())
        whole.backward()
    assert sum(value for value, _ in results) / 2 == pytest.approx(float(whole), rel=1e-9)
    for _, found in results:
        assert_equal_gradients({name: torch.from_numpy(g) for name, g in found.items()}, gradients(model), 1e-9)


@pytest.mark.parametrize("option", [{"temperature": 0.0}, {"direction": "both"}, {"diagonal": "no"}])
def test_unknown_options_are_errors(fresh, option):
    [(name, value)] = option.items()
    with pytest.raises(ValueError, match=f"{name} is {value!r}"):
        SimilarityDistillationLoss(fresh(), of_teacher(np.zeros((1, 2), int)), **option)
