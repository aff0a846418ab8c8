"""Whole runs with encoders that know, guess or break; what is written; what is kept."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import yaml

from hf_mmembed import MMEmbedder, __version__
from hf_mmembed.evaluation import OVERALL, SentenceEncoder, engine, evaluate, run
from hf_mmembed.evaluation.subsets import OFFICIAL_QUERIES
from hf_mmembed.evaluation.tables import Missing
from tests.evaluation import layouts
from tests.forks import exit_code, in_processes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def data(tmp_path):
    layouts.write_small_v1(tmp_path / "data")
    return tmp_path / "data"


def test_an_oracle_scores_100(data, tmp_path):
    results = evaluate(layouts.oracle(), "mmeb-v1", data, out=tmp_path / "out")
    assert {name: row["hit@1"] for name, row in results.metrics["image"].items()} == {"GQA": 1, "MSCOCO_t2i": 1}


def test_a_guesser_scores_by_chance(tmp_path):
    layouts.write_small_v1(tmp_path / "data", rows=40, candidates=8)
    rows = [layouts.v1_vqa(n % 40, [f"#{n} {k}" for k in range(8)]) for n in range(400)]
    layouts.write_v1(tmp_path / "data", "GQA", rows)
    encoder = layouts.Fake(
        lambda item: np.random.default_rng(list(layouts.digest(item))).standard_normal(256), "guesser"
    )
    [score] = [
        evaluate(encoder, "mmeb-v1", tmp_path / "data", subsets=["GQA"], out=tmp_path / "out").metrics["image"]["GQA"]
    ]
    chance, spread = 1 / 8, math.sqrt(1 / 8 * 7 / 8 / 400)
    assert abs(score["hit@1"] - chance) < 4 * spread


def test_each_content_is_embedded_once(data, tmp_path):
    encoder = layouts.oracle()
    evaluate(encoder, "mmeb-v1", data, out=tmp_path / "out")
    # GQA: 12 pictures and 19 answers; COCO: 12 captions and 19 pictures, which say something else than as queries.
    assert len(encoder.seen) == len(set(map(layouts.digest, encoder.seen))) == 12 + 19 + 12 + 19
    again = layouts.oracle()
    evaluate(again, "mmeb-v1", data, out=tmp_path / "out")
    assert again.seen == []
    other = layouts.oracle()
    evaluate(other, "mmeb-v1", data, out=tmp_path / "out", instruction_in="system")
    assert len(other.seen) == 12 + 12 + 19  # the answers are the same texts, the rest reads something else


def noisy():
    """Right more often than not; depends on the content alone."""
    return layouts.Fake(
        lambda item: (
            2.5 * layouts.one_hot(layouts.meant(item))
            + np.random.default_rng(list(layouts.digest(item))).standard_normal(layouts.DIM)
        ),
        "noisy",
    )


def test_scores_do_not_depend_on_order_shards_or_cache(data, tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    def scores(out):
        results = evaluate(noisy(), "mmeb-v1", data, out=out)
        return {name: row["hit@1"] for name, row in results.metrics["image"].items()}

    expected = scores(tmp_path / "a")
    assert all(0 < score < 1 for score in expected.values())
    embed = run.embed_items
    monkeypatch.setattr(run, "embed_items", lambda *a, **k: embed(*a, **k, shard=3))
    assert scores(tmp_path / "b") == expected
    files = sorted((tmp_path / "b" / "embeddings" / "noisy").iterdir())
    for file in files[::2]:
        file.unlink()
    assert scores(tmp_path / "b") == expected
    for name in ("GQA", "MSCOCO_t2i"):
        file = data / name / "test-00000-of-00001.parquet"
        layouts.write_parquet(file, pq.read_table(file).to_pylist()[::-1])
    assert scores(tmp_path / "c") == expected


def test_broken_data_sets_do_not_stop_the_others(data, tmp_path, caplog):
    (data / "VizWiz").mkdir()
    (data / "VizWiz" / "test-0.parquet").write_bytes(b"PAR1 cut")
    layouts.write_v1(data, "OK-VQA", [layouts.v1_vqa(99, ["#1", "#2"])])
    (data / "DocVQA" / "test-0.parquet").mkdir(parents=True)
    results = evaluate(layouts.oracle(), "mmeb-v1", data, out=tmp_path / "out")
    assert set(results.failed) == {"VizWiz", "OK-VQA", "DocVQA"} and "VizWiz: cannot read" in caplog.text
    assert "no picture 'GQA/99.png'" in results.failed["OK-VQA"]
    assert set(results.metrics["image"]) == {"GQA", "MSCOCO_t2i"} and results.partial
    kept = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(kept["metrics"]["image"]) == {"GQA", "MSCOCO_t2i"} and kept["metadata"]["partial"]


def test_what_is_not_there_is_said(data, tmp_path):
    with pytest.raises(ValueError, match="did you mean 'MSCOCO_t2i'"):
        evaluate(layouts.oracle(), "mmeb-v1", data, subsets=["MSCOCO-t2i"], out=tmp_path / "out")
    with pytest.raises(ValueError, match="no benchmark 'mmeb'"):
        evaluate(layouts.oracle(), "mmeb", data)
    with pytest.raises(ValueError, match="no folder"):
        evaluate(layouts.oracle(), "mmeb-v1", data / "nowhere")
    with pytest.raises(ValueError, match="tie is 'lenient'; use 'strict' or 'legacy'"):
        evaluate(layouts.oracle(), "mmeb-v1", data, tie="lenient")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no data set of mmeb-v1"):
        evaluate(layouts.oracle(), "mmeb-v1", tmp_path / "empty", out=tmp_path / "out")
    asked = evaluate(layouts.oracle(), "mmeb-v1", data, subsets=["VisDial", "GQA"], out=tmp_path / "out")
    assert "nothing in" in asked.failed["VisDial"] and asked.metrics["image"]["GQA"]["hit@1"] == 1


@pytest.mark.parametrize("given", [{"longest_edge": 5000}, {"device": "cuda"}, {"name": "mine"}])
def test_options_that_an_open_model_would_not_follow_are_refused(data, tmp_path, given):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize

    [(option, value)] = given.items()
    with pytest.raises(ValueError, match=f"^{option}={value!r} has no effect on a model that is open already"):
        evaluate(layouts.oracle(), "mmeb-v1", data, out=tmp_path / "out", **given)
    if option != "name":  # what a SentenceTransformer is called in tables is ours to say
        with pytest.raises(ValueError, match=f"^{option}="):
            evaluate(
                SentenceTransformer(modules=[Normalize()], device="cpu"),
                "mmeb-v1",
                data,
                out=tmp_path / "out",
                **given,
            )
    assert not (tmp_path / "out").exists()


def test_an_open_model_may_be_given_the_device_that_it_is_on(tmp_path, embedder):
    data = tmp_path / "data"
    layouts.write_small_v1(data, rows=1, candidates=2)
    model = MMEmbedder(str(embedder("qwen2_vl")), device="cpu")
    for opened in (model, SentenceEncoder(model)):
        results = evaluate(opened, "mmeb-v1", data, subsets=["GQA"], out=tmp_path / "out", device="cpu")
        assert not results.failed
        with pytest.raises(ValueError, match="device='cuda:1' has no effect on a model that is open already on cpu"):
            evaluate(opened, "mmeb-v1", data, device="cuda:1")


def test_files_that_are_written(data, tmp_path, monkeypatch):
    monkeypatch.setitem(OFFICIAL_QUERIES, "mmeb-v1", {"GQA": 12, "MSCOCO_t2i": 12})
    out = tmp_path / "out"
    results = evaluate(noisy(), "mmeb-v1", data, out=out, tie="legacy")
    written = json.loads((out / "results.json").read_text())
    assert written == results.as_dict() and list(written) == ["metadata", "metrics"]
    metadata = written["metadata"]
    assert metadata["model_name"] == "noisy" and metadata["tie"] == "legacy" and metadata["instruction_in"] == "user"
    assert metadata["partial"] and len(metadata["missing"]) == 34
    assert metadata["summary"]["score"][OVERALL] is None
    row = written["metrics"]["image"]["GQA"]
    assert row["num_pred"] == row["num_data"] == row["rows"] == 12 and row["candidates"] == 19
    lines = [json.loads(line) for line in (out / "predictions" / "GQA.jsonl").read_text().splitlines()]
    assert len(lines) == 12 and len(lines[0]["candidates"]) == 8 and lines[0]["relevant"] == ["'#0'"]
    assert np.mean([line["hit@1"] for line in lines]) == row["hit@1"]
    assert lines[0]["scores"] == sorted(lines[0]["scores"], reverse=True)
    [entry, _] = yaml.safe_load((out / ".eval_results" / "mmeb-v1.yaml").read_text())
    assert entry["dataset"] == {"id": "TIGER-Lab/MMEB-eval", "task_id": "GQA"}
    assert entry["value"] == round(100 * row["hit@1"], 2)
    assert entry["notes"] == f"hf_mmembed {__version__}, instruction_in=user, fusion=joint, tie=legacy"
    table = (out / "results.md").read_text()
    assert "**Partial run:**" in table and f"| GQA | {100 * row['hit@1']:.1f} | hit@1 | 12 |" in table
    assert "instruction_in: user; fusion: joint; tie: legacy" in table
    assert not (out / "results.png").exists()  # no mean is complete
    assert not list(out.rglob("*.tmp"))


def test_a_part_of_the_official_rows_is_data_of_ones_own(data, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(OFFICIAL_QUERIES, "mmeb-v1", {"GQA": 12, "MSCOCO_t2i": 12})
    record = tmp_path / "out" / ".eval_results" / "mmeb-v1.yaml"
    for rows, split in ((12, "MMEB-eval"), (11, None), (12, "MMEB-eval")):
        layouts.write_small_v1(data, rows=rows)
        results = evaluate(layouts.oracle(), "mmeb-v1", data, out=tmp_path / "out")
        # Nor does the record of the whole stay beside the scores of the part.
        assert results.metadata["reference_split"] == split and record.exists() == (split is not None)
        assert ("GQA has 11 queries and not 12, MSCOCO_t2i has 11" in caplog.text) == (split is None)
        caplog.clear()


def test_own_benchmark_in_the_same_layout(data, tmp_path):
    rows = [
        {"name": "GQA", "meta_task": "Answers", "distribution": "IND"},
        {"name": "MSCOCO_t2i", "meta_task": "Pictures", "target_instruction": "Represent the given image."},
    ]
    (data / "subsets.json").write_text(json.dumps(rows))
    results = evaluate(layouts.oracle(), "mmeb-v1", data, out=tmp_path / "out")
    assert not results.partial and results.means()[OVERALL].value == 1
    assert not (tmp_path / "out" / ".eval_results").exists()  # its scores are not those of MMEB
    assert (tmp_path / "out" / "results.png").read_bytes()[:4] == b"\x89PNG"
    (data / "subsets.json").write_text(json.dumps([*rows, rows[0]]))
    with pytest.raises(ValueError, match="names a data set twice"):
        evaluate(layouts.oracle(), "mmeb-v1", data)


def test_old_pages_are_taken_where_the_mended_ones_are_not(tmp_path, monkeypatch):
    from tests.evaluation.test_mmeb_visdoc import write

    data = tmp_path / "data"
    write(data / "annotation/VLM2Vec/ViDoSeek-page", {0: "#2"}, [(0, "2", 1)], ["1", "2"])
    layouts.write_pictures(data / "visdoc-tasks" / "ViDoSeek-page", [1, 2])
    encoder = layouts.Fake(
        lambda i: layouts.one_hot(layouts.number_in(i.images[0].read()) if i.images else layouts.meant(i))
    )
    results = evaluate(encoder, "mmeb-v2", data, out=tmp_path / "out")
    assert results.metrics["visdoc"] == {
        "ViDoSeek-page": results.metrics["visdoc"]["ViDoSeek-page"] | {"hit@1": 1, "split": "old page labels"}
    }
    assert results.metadata["visdoc_split"] == "old page labels" and results.metadata["num_frames"] == 8
    assert results.metadata["reference_split"] is None  # one query, not all
    assert "\n| ViDoSeek-page | 100.0 | ndcg_linear@5 | 1 |\n" in str(results)
    asked = evaluate(encoder, "mmeb-v2", data, subsets=["ViDoSeek-page-fixed"], out=tmp_path / "out")
    assert set(asked.failed) == {"ViDoSeek-page-fixed"}
    monkeypatch.setitem(OFFICIAL_QUERIES, "mmeb-v2", {"ViDoSeek-page": 1})
    evaluate(encoder, "mmeb-v2", data, out=tmp_path / "out")
    [entry] = yaml.safe_load((tmp_path / "out" / ".eval_results" / "mmeb-v2.yaml").read_text())
    assert entry["dataset"]["task_id"] == "ViDoSeek-page"
    assert entry["notes"].endswith("num_frames=8, visdoc_split=old page labels")


def test_an_old_split_that_cannot_be_read_fails_alone(tmp_path, monkeypatch):
    def read(root, subset, *options):
        if subset.name == "ViDoSeek-page":
            raise PermissionError(13, "Permission denied")
        raise Missing("nothing there")

    monkeypatch.setattr(run, "read_v2_visdoc", read)
    results = evaluate(layouts.oracle(), "mmeb-v2", tmp_path, out=tmp_path / "out")
    assert results.failed == {"ViDoSeek-page-fixed": "ViDoSeek-page cannot be read: [Errno 13] Permission denied"}


def test_a_plot_beside_published_systems(tmp_path):
    from hf_mmembed.evaluation import MMEB_V1, plot

    metrics = {"image": {subset.name: {"hit@1": 0.5} for subset in MMEB_V1}}
    metadata = {"model_name": "m", "benchmark": "mmeb-v1", "partial": False, "reference_split": "MMEB-eval"}
    drawn = plot({"metadata": metadata, "metrics": metrics}, tmp_path / "a.png")
    assert 0 < len(drawn) <= 8 and {row.benchmark for row in drawn} == {"mmeb-v1"}
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    thinking = {"image": {name: row | {"thinking": {"hit@1": 0.6}} for name, row in metrics["image"].items()}}
    assert (
        plot({"metadata": metadata | {"thinking": {"when": "auto"}}, "metrics": thinking}, tmp_path / "t.png") == drawn
    )
    own = plot({"metadata": metadata | {"reference_split": None}, "metrics": metrics}, tmp_path / "b.png")
    assert own == []  # published figures are of other data
    with pytest.raises(ValueError, match="nothing to plot"):
        plot({"metadata": metadata, "metrics": {"image": {}}}, tmp_path / "c.png")


def small_shards(rank, data, out, die_after=None):
    """Evaluates in shards of five; how many inputs this process embedded."""
    encoder, embed = noisy(), run.embed_items
    vector = encoder.vector

    def watched(item):
        if die_after is not None and len(encoder.seen) > die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        return vector(item)

    encoder.vector = watched
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "embed_items", lambda *a, **k: embed(*a, **k, shard=5))
        evaluate(encoder, "mmeb-v1", data, out=out)
    return len(encoder.seen)


def measured(out):
    return json.loads((out / "results.json").read_text())["metrics"]


def test_a_killed_run_goes_on(data, tmp_path):
    assert exit_code(small_shards, 0, data, tmp_path / "a", 27) == -signal.SIGKILL
    # Five whole shards of five were kept.
    assert small_shards(0, data, tmp_path / "a") == 62 - 25
    assert small_shards(0, data, tmp_path / "b") == 62
    assert measured(tmp_path / "a") == measured(tmp_path / "b")


def test_two_processes_give_the_scores_of_one(data, tmp_path):
    assert small_shards(0, data, tmp_path / "a") == 62
    shares = in_processes(small_shards, data, tmp_path / "b", store=tmp_path / "store")
    assert sum(shares) == 62 and min(shares) > 20
    assert measured(tmp_path / "a") == measured(tmp_path / "b")


def with_trouble_on_one(rank, data, out):
    """Evaluates where one process cannot read three data sets of five; what failed, is missing and is scored."""
    read, digest = run.read_v1, engine.digest
    troubles = {"GQA": OSError(5, "Input/output error"), "OK-VQA": Missing("nothing there")}

    def read_unless_troubled(root, subset, *options):
        if rank == 1 and subset.name in troubles:
            raise troubles[subset.name]
        return read(root, subset, *options)

    def digest_unless_troubled(item):
        if rank == 1 and item.text == "#39":
            raise ValueError("cannot read the picture 39.png")
        return digest(item)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "read_v1", read_unless_troubled)
        patch.setattr(engine, "digest", digest_unless_troubled)
        results = evaluate(layouts.oracle(), "mmeb-v1", data, out=out)
    missing = {"OK-VQA", "VizWiz", "DocVQA"} & set(results.metadata["missing"])
    return results.failed, missing, list(results.metrics["image"])


def test_a_data_set_that_one_process_cannot_read_fails_on_all(tmp_path):
    data = tmp_path / "data"
    layouts.write_small_v1(data, rows=2, candidates=2)
    for name, number in (("OK-VQA", 3), ("DocVQA", 39), ("VizWiz", 5)):
        layouts.write_v1(data, name, [layouts.v1_vqa(number, [f"#{number}", "#1"])])
    for failed, missing, scored in in_processes(with_trouble_on_one, data, tmp_path / "out", store=tmp_path / "store"):
        assert failed == {
            "GQA": "GQA cannot be read: [Errno 5] Input/output error",
            "DocVQA": "cannot read the picture 39.png",
        }
        assert missing == {"OK-VQA"} and sorted(scored) == ["MSCOCO_t2i", "VizWiz"]
