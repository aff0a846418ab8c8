"""The engine behind the pages reads a model as the rest of the package does."""

from __future__ import annotations

import numpy as np
import pytest

from hf_mmembed import PRESETS, MMEmbedder
from spaces_app.engine import Engine


@pytest.mark.parametrize("prompt", ["saha", "unime", "vlm2vec"])
def test_the_checkpoint_s_own_prompt_is_used(embedder, prompt):
    directory = str(embedder("qwen2_vl", prompt=prompt))
    engine, query = Engine(directory, samples=1), {"text": "a red star"}
    expected = MMEmbedder(directory, device="cpu").encode_query([query])
    np.testing.assert_allclose(engine.embed([query], "query"), expected, atol=1e-6)


def test_without_a_prompt_it_is_saha_s(embedder):
    engine = Engine(str(embedder("qwen2_vl", prompt="plain")), samples=1)
    assert PRESETS["saha"].system in engine.rendered({"text": "a red star"}, "hierarchical")
