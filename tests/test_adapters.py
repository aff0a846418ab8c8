"""Which base an adapter names, and what is said when it is gone."""

from __future__ import annotations

import json
import shutil

import pytest

from hf_mmembed import MMEmbedder, tiny
from hf_mmembed.adapters import base_of_adapter


@pytest.fixture
def adapter(tmp_path):
    """Makes a copy of the shipped adapter, as the result of a run, that names another base."""
    directory = tmp_path / "run" / "model"

    def over(base, *, without=None):
        shutil.copytree(tiny.saha_path(), directory, ignore=without and shutil.ignore_patterns(without))
        config = json.loads((directory / "adapter_config.json").read_text())
        config |= {"base_model_name_or_path": str(base), "revision": "abc"}
        (directory / "adapter_config.json").write_text(json.dumps(config))
        return directory

    return over


def test_the_base_and_its_revision(adapter):
    assert base_of_adapter(str(adapter("org/base"))) == ("org/base", "abc")
    assert base_of_adapter(str(tiny.saha_path())) == (str(tiny.checkpoint_path()), None)
    assert base_of_adapter(str(tiny.checkpoint_path())) is None


@pytest.mark.parametrize("without", [None, "modules.json"])  # saved by the embedder, and by PEFT
def test_a_base_that_is_gone_is_named_with_the_place_to_say_where_it_is(adapter, tmp_path, without):
    path = adapter(tmp_path / "old" / "embedder", without=without)
    with pytest.raises(OSError) as raised:
        MMEmbedder(path, device="cpu")
    said = str(raised.value)
    assert f"names is gone: there is no directory {tmp_path}/old/embedder" in said
    assert f"base_model_name_or_path in {path}/adapter_config.json" in said
    assert "Hub" not in said and "Repo" not in said and "/run/embedder" not in said
    (path.parent / "embedder").symlink_to(tiny.checkpoint_path())
    with pytest.raises(OSError, match=f"an embedder lies in {path.parent}/embedder"):
        MMEmbedder(path, device="cpu")


def test_what_is_wrong_with_a_base_that_is_there_is_still_said(adapter, generative, tmp_path):
    path = adapter(generative("qwen2_vl"), without="modules.json")
    with pytest.raises(ValueError, match="has no modules.json, so it is not an embedder"):
        MMEmbedder(path, device="cpu")
    with pytest.raises(OSError, match="there is no directory org/base, and the Hub"):
        shutil.rmtree(path)
        MMEmbedder(adapter("org/base", without="modules.json"), device="cpu")
