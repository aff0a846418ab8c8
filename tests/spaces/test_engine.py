"""The engine behind the pages reads a model as the rest of the package does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_mmembed import PRESETS, MMEmbedder
from spaces_app.engine import Engine


@pytest.mark.parametrize("prompt", ["saha", "unime", "vlm2vec"])
def test_the_checkpoint_s_own_prompt_is_used(embedder, prompt):
    directory = str(embedder("qwen2_vl", prompt=prompt))
    engine, query = Engine(directory, samples=1), {"text": "a red star"}
    expected = MMEmbedder(directory, device="cpu").encode_query([query])
    np.testing.assert_allclose(engine.embed([query], "query"), expected, atol=1e-6)


def test_the_model_that_is_named_is_opened_and_computes_in_float32_on_a_cpu(embedder, tmp_path, monkeypatch):
    monkeypatch.setattr("spaces_app.engine.get_device_name", lambda: "cpu")
    monkeypatch.setenv("MMEMBED_MODEL", str(embedder("qwen2_vl", dtype="bfloat16")))
    assert Engine("mmembed-tiny", samples=1).is_tiny
    engine = Engine(samples=1)
    assert engine.name == "qwen2_vl" and engine.embedder.dtype == torch.float32


def test_without_a_prompt_it_is_saha_s(embedder):
    engine = Engine(str(embedder("qwen2_vl", prompt="plain")), samples=1)
    assert PRESETS["saha"].system in engine.rendered({"text": "a red star"}, "hierarchical")
