"""A run into the folder of another run."""

from __future__ import annotations

import json
import shutil

import pytest

from hf_mmembed.evaluation import evaluate
from tests.evaluation import layouts


@pytest.fixture
def measure(tmp_path):
    layouts.write_small_v1(tmp_path / "data", rows=2, candidates=3)

    def run(**options):
        encoder = layouts.oracle()
        encoder.metadata = {"model_revision": options.pop("revision", "a"), "image_size": (1, 2)}
        return evaluate(encoder, "mmeb-v1", tmp_path / "data", out=tmp_path / "out", **options)

    return run


def test_a_part_does_not_replace_the_whole(measure, tmp_path):
    whole = measure()
    (tmp_path / "data" / "GQA" / "test-00000-of-00001.parquet").unlink()
    layouts.write_v1(tmp_path / "data", "GQA", [layouts.v1_vqa(0, ["#0", "#1"])])
    part = measure(subsets=["GQA"])
    written = json.loads((tmp_path / "out" / "results.json").read_text())["metrics"]["image"]
    assert written.keys() == part.metrics["image"].keys() == whole.metrics["image"].keys() == {"GQA", "MSCOCO_t2i"}
    assert written["MSCOCO_t2i"] == whole.metrics["image"]["MSCOCO_t2i"] and written["GQA"]["num_data"] == 1


def test_a_score_stays_where_there_is_no_new_one(measure, tmp_path):
    whole = measure().metrics
    for name in ("GQA", "MSCOCO_t2i"):
        (tmp_path / "data" / name / "test-00000-of-00001.parquet").write_bytes(b"")
    broken = measure()
    assert set(broken.failed) == {"GQA", "MSCOCO_t2i"} and broken.metrics == whole
    shutil.rmtree(tmp_path / "data" / "MSCOCO_t2i")
    layouts.write_v1(tmp_path / "data", "GQA", [layouts.v1_vqa(0, ["#0", "#1"])])
    part = measure()
    assert part.metrics["image"]["MSCOCO_t2i"] == whole["image"]["MSCOCO_t2i"]
    assert part.metrics["image"]["GQA"]["num_data"] == 1 and "MSCOCO_t2i" in part.metadata["missing"]
    assert json.loads((tmp_path / "out" / "results.json").read_text())["metrics"] == part.metrics


@pytest.mark.parametrize("changed", [{"instruction_in": "system"}, {"revision": "b"}, {"tie": "legacy"}])
def test_scores_of_something_else_are_kept_aside(measure, tmp_path, caplog, changed):
    measure()
    before = (tmp_path / "out" / "results.json").read_bytes()
    assert measure(subsets=["GQA"], **changed).metrics["image"].keys() == {"GQA"}
    [aside] = (tmp_path / "out").glob("results-*.json")
    assert aside.read_bytes() == before
    [told] = [record.message for record in caplog.records if "of something else" in record.message]
    assert str(aside) in told and next(iter(changed)).removeprefix("model_") in told


def test_a_file_that_cannot_be_read_is_kept_aside(measure, tmp_path, caplog):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.json").write_text("{cut")
    measure(subsets=["GQA"])
    [aside] = (tmp_path / "out").glob("results-*.json")
    assert aside.read_text() == "{cut" and "cannot read" in caplog.text
