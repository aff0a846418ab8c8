"""An index that is begun in one number format and continued in another."""

from __future__ import annotations

import json

import pytest

from hf_mmembed.data import open_source
from hf_mmembed.index import embed_source
from tests.index.fake_embedder import FakeEmbedder, identity


@pytest.fixture
def embedded(many_pictures, tmp_path):
    """Runs into one directory; how many rows each embedded, of 18."""
    out = tmp_path / "out"

    def run(dtype):
        embedder = FakeEmbedder()
        embed_source(open_source(many_pictures), embedder, identity(dtype=dtype), out, shard_size=7)
        assert json.loads((out / "manifest.json").read_text())["model"]["dtype"] in (dtype, None)
        return embedder.embedded

    return run


def test_two_number_formats_are_not_mixed(embedded):
    assert [embedded("bfloat16"), embedded("bfloat16")] == [18, 0]
    with pytest.raises(ValueError, match=r"number format \(bfloat16 there, float32 on this device\)"):
        embedded("float32")
    assert embedded("bfloat16") == 0  # what is there stays


def test_one_that_does_not_say_which_is_continued(embedded, tmp_path):
    assert embedded(None) == 18
    path = tmp_path / "out" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["model"]["dtype"]
    path.write_text(json.dumps(manifest))
    assert embedded("float32") == embedded("bfloat16") == 0
