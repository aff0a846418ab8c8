"""The model package is lazy, and transformers knows the embedder as soon as one of its classes is used."""

from __future__ import annotations

import subprocess
import sys

import pytest
from transformers import CONFIG_MAPPING, MODEL_MAPPING, PROCESSOR_MAPPING

import hf_mmembed.model


def test_reading_pictures_and_indexes_imports_neither_torch_nor_transformers():
    code = (
        "import sys, hf_mmembed.data, hf_mmembed.index; from hf_mmembed.model import open_image; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "transformers", "datasets"}.isdisjoint(done.stdout.split())


@pytest.mark.parametrize("name", hf_mmembed.model.__all__)
def test_every_public_name_resolves(name):
    assert getattr(hf_mmembed.model, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        hf_mmembed.model.no_such_name  # noqa: B018


def test_the_auto_classes_know_the_embedder():
    config = hf_mmembed.model.MMEmbedConfig
    assert CONFIG_MAPPING["mmembed"] is config
    assert MODEL_MAPPING[config] is hf_mmembed.model.MMEmbedModel
    assert PROCESSOR_MAPPING[config] is hf_mmembed.model.MMEmbedProcessor
