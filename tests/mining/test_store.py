"""What the store of embeddings keeps from run to run."""

from __future__ import annotations

import errno
import json
import os

import numpy as np
import pytest
from datasets import Dataset

from hf_mmembed.data.pairs import read_pairs
from hf_mmembed.lock import only_writer
from hf_mmembed.mining import mine_pairs
from hf_mmembed.model.images_mmembed import ImageError
from tests.index.fake_embedder import FakeEmbedder
from tests.mining.test_dataset import MODEL, files, rows


class OnAFailingDisk(FakeEmbedder):
    def _encode(self, inputs, task):
        if any(item["text"] == "query 7" for item in inputs):
            try:
                raise ImageError("7.png cannot be read") from OSError(errno.EIO, "Input/output error")
            except ImageError as error:
                raise ImageError(f"input 7: {error}") from error
        return super()._encode(inputs, task)


def test_what_a_disk_failed_to_give_is_tried_again(tmp_path):
    table = rows(20).to_dict()
    table["query_text"][2] = "refuse me"
    pairs, well = read_pairs(Dataset.from_dict(table)), FakeEmbedder()

    def skipped(embedder, out):
        return mine_pairs(pairs, embedder, out, model=MODEL, k=3, shard_size=8).skipped

    refused = {2: "an input is refused"}
    assert skipped(OnAFailingDisk(), tmp_path / "out") == refused | {7: "input 7: 7.png cannot be read"}
    manifest = json.loads((tmp_path / "out/embeddings/queries/manifest.json").read_text())
    assert all((tmp_path / "out/embeddings/queries" / name).is_file() for name in manifest["shards"])
    assert skipped(well, tmp_path / "out") == refused and well.embedded == 7
    skipped(FakeEmbedder(), tmp_path / "whole")
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_model_that_was_moved_is_the_same_model(tmp_path):
    pairs = rows(8)

    def embedded(**model):
        embedder = FakeEmbedder()
        mine_pairs(pairs, embedder, tmp_path, model=model, k=1)
        return embedder.embedded

    assert embedded(name="here", revision=None, fingerprint="f00") == 16
    assert embedded(name="there", revision="main", fingerprint="f00") == 0
    manifest = json.loads((tmp_path / "embeddings/queries/manifest.json").read_text())
    assert manifest["model"]["name"] == "there"
    assert embedded(name="there", revision="main", fingerprint="f01") == 16


def test_the_number_of_files_is_not_bound_by_the_limit_of_open_files(tmp_path):
    before = len(os.listdir("/dev/fd"))
    mined = mine_pairs(rows(20), FakeEmbedder(), tmp_path, model=MODEL, k=1, shard_size=1)
    assert len(mined.queries.shards) == 20 and len(os.listdir("/dev/fd")) < before + 20
    places = np.array([7, 19, 0, 7])
    stored = [np.load(path) for path in sorted((tmp_path / "embeddings/queries").glob("*.npy"))]
    np.testing.assert_array_equal(mined.queries.take(places), np.concatenate(stored)[places])


def test_temporary_files_of_a_run_that_still_writes_are_left_alone(tmp_path):
    pairs, queries = rows(20), tmp_path / "embeddings/queries"
    queries.mkdir(parents=True)
    (queries / ".shard.npy.0.tmp").touch()
    with (
        only_writer(queries),
        pytest.raises(ValueError, match=f"another process is writing to {tmp_path}/embeddings:"),
    ):
        mine_pairs(pairs, FakeEmbedder(), tmp_path, model=MODEL, k=1)
    assert {path.name for path in queries.iterdir()} == {".lock", ".shard.npy.0.tmp"}
    mine_pairs(pairs, FakeEmbedder(), tmp_path, model=MODEL, k=1)
    assert not list(queries.glob("*.tmp"))
