"""A loaded embedder, and a picture on the disk."""

from __future__ import annotations

import pytest

from hf_mmembed import MMEmbedder
from tests.sentence_transformer.reference import noise


@pytest.fixture(scope="package")
def model(embedder) -> MMEmbedder:
    return MMEmbedder(str(embedder("qwen2_vl")), device="cpu")


@pytest.fixture(scope="package")
def picture_file(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("pictures") / "photo.png"
    noise(5).save(path)
    return str(path)
