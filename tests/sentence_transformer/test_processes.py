"""Encoding in several processes gives the rows of one process."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from sentence_transformers import SentenceTransformer

from hf_mmembed import MMEmbedder


def inputs() -> list:
    pictures = [Image.new("RGB", (40, 32), (20 * number, 50, 90)) for number in range(5)]
    return [
        "a",
        *pictures,
        {"text": "b", "image": pictures[0], "instruction": "Find."},
        "a",
        *(f"t {n}" for n in range(9)),
    ]


@pytest.fixture(scope="module")
def model(embedder) -> MMEmbedder:
    return MMEmbedder(str(embedder("qwen2_vl")), device="cpu")


@pytest.fixture(scope="module")
def pool(model):
    pool = model.start_multi_process_pool(["cpu", "cpu"])
    yield pool
    model.stop_multi_process_pool(pool)


@pytest.mark.parametrize("options", [{}, {"chunk_size": 3}, {"chunk_size": 3, "batch_size": 2, "token_budget": 200}])
def test_a_pool_gives_the_same_rows(model, pool, options):
    np.testing.assert_allclose(
        model.encode_query(inputs(), pool=pool, **options), model.encode_query(inputs()), rtol=0, atol=2e-5
    )


def test_options_in_a_pool(model, pool):
    expected = model.encode(inputs(), truncate_dim=8)
    np.testing.assert_allclose(model.encode(inputs(), pool=pool, truncate_dim=8), expected, atol=2e-5)
    tokens = model.encode(["a", "b c"], pool=pool, output_value="token_embeddings")
    for row, single in zip(tokens, model.encode(["a", "b c"], output_value="token_embeddings"), strict=True):
        np.testing.assert_allclose(row, single, atol=2e-5)
    assert model.encode([], pool=pool).shape == (0, model.get_embedding_dimension())


def test_a_list_of_devices_and_asking_for_unit_length_change_nothing(model):
    expected = model.encode(inputs())
    np.testing.assert_allclose(model.encode(inputs(), device=["cpu"]), expected, rtol=0, atol=2e-5)
    np.testing.assert_allclose(model.encode(inputs(), normalize_embeddings=True), expected, rtol=0, atol=1e-6)


def test_an_error_in_a_worker_names_the_caller_s_input(model, pool):
    bad = [*inputs(), {"image": b"no picture"}, "z"]
    with pytest.raises(ValueError, match=rf"inputs\[{len(bad) - 2}\]"):
        model.encode(bad, pool=pool, chunk_size=2)
    assert model.encode(["a"], pool=pool).shape[0] == 1


def test_plain_sentence_transformers_in_another_process(model, embedder):
    plain = SentenceTransformer(str(embedder("qwen2_vl")), device="cpu", trust_remote_code=True)
    chosen = ["a", Image.new("RGB", (40, 32), "red"), {"text": "b", "image": Image.new("RGB", (40, 32))}]
    rows = plain.encode_query(chosen, device=["cpu"], chunk_size=1)
    np.testing.assert_allclose(rows, model.encode_query(chosen), rtol=0, atol=2e-5)
