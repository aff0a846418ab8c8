"""Clusters know what they are clusters of."""

from __future__ import annotations

import pytest

from hf_mmembed.mining import Clusters, content_ids, mine_pairs
from tests.index.fake_embedder import FakeEmbedder
from tests.mining.test_dataset import rows


def test_clusters_say_of_which_pairs_and_by_which_model_they_are(tmp_path, caplog):
    pairs = rows(20)
    model = {"name": "fake", "fingerprint": "f00", "files": {"model.safetensors": "bar"}}
    for options in ({"k": 3}, {"k": 3, "canonical_instruction": "Seek."}, {"k": 3, "strategy": "random"}):
        mine_pairs(pairs, FakeEmbedder(), tmp_path, model=model, **options)
        clusters = Clusters.load(tmp_path)
        clusters.require_made_of(content_ids(pairs))  # however the queries were instructed
        assert clusters.settings["miner"] == {"name": "fake", "fingerprint": "f00"}
        for other in (pairs.select(range(19, -1, -1)), rows(24)):
            with pytest.raises(ValueError, match=r"of other pairs, or of these .* [0-9a-f]{32}, not"):
                clusters.require_made_of(content_ids(other))
    assert not caplog.records
    Clusters(clusters.rows, "random").require_made_of(content_ids(pairs))
    assert "do not say of which pairs they were made" in caplog.text
