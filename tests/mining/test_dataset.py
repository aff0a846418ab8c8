"""Mining a dataset with an embedder: once per content, killed and resumed, in one process or two."""

from __future__ import annotations

import json
import os
import re
import signal
from collections import Counter
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets
from PIL import Image

from hf_mmembed.data.pairs import read_pairs
from hf_mmembed.mining import Clusters, FilterRules, dataset, digests, mine_pairs
from hf_mmembed.mining.dataset import are_labels
from hf_mmembed.mining.report import hardness, write_report
from tests.forks import exit_code, in_processes
from tests.holding import is_held, watch
from tests.index.fake_embedder import FakeEmbedder

ROOT = Path(__file__).resolve().parents[2]
MODEL = {"name": "fake"}


def rows(number, subset="s", labels=None):
    table = {
        "query_text": [f"query {i}" for i in range(number)],
        "pos_text": [f"{subset} document {i if labels is None else i % labels}" for i in range(number)],
        "query_instruction": ["Find it." if i % 3 else "Look for it." for i in range(number)],
        "subset": [subset] * number,
    }
    return read_pairs(Dataset.from_dict(table))


@pytest.fixture
def fake():
    embedder = FakeEmbedder()
    return embedder


def test_each_content_is_embedded_once_with_the_canonical_instruction(fake, tmp_path):
    pairs = concatenate_datasets([rows(40), rows(40)])
    mined = mine_pairs(pairs, fake, tmp_path, model=MODEL, k=3, shard_size=16)
    assert fake.embedded == 80
    queries = [item for call in fake.calls for item in call if item["text"].startswith("query")]
    assert {item["instruction"] for item in queries} == {"Find it."}
    assert len(mined.clusters) == 20 and mined.clusters.counts["left_over"] == 0
    for cluster in mined.clusters.rows:
        assert len({row % 40 for row in cluster.tolist()}) == 4
    manifest = json.loads((tmp_path / "embeddings/queries/manifest.json").read_text())
    assert manifest["complete"] and manifest["contents"] == 40 and manifest["instructions"] == {"s": "Find it."}
    again = FakeEmbedder()
    assert mine_pairs(pairs, again, tmp_path, model=MODEL, k=3, shard_size=16).clusters.rows.tolist() == (
        mined.clusters.rows.tolist()
    )
    assert again.embedded == 0


def test_another_model_or_instruction_takes_nothing_from_the_store(fake, tmp_path):
    pairs = rows(20)
    mine_pairs(pairs, fake, tmp_path, model=MODEL, k=3)
    other = FakeEmbedder()
    mine_pairs(pairs, other, tmp_path, model={"name": "other"}, k=3)
    assert other.embedded == 40
    other = FakeEmbedder()
    mine_pairs(pairs, other, tmp_path, model=MODEL, k=3, canonical_instruction="Seek.")
    assert other.embedded == 20


def test_documents_with_another_instruction_are_embedded_anew(fake, tmp_path):
    pairs = rows(20)

    def asked(words):
        instructed = pairs.remove_columns("pos_instruction").add_column("pos_instruction", [words] * 20)
        embedder = FakeEmbedder()
        mine_pairs(instructed, embedder, tmp_path, model=MODEL, k=3)
        return embedder.embedded

    assert [asked("Represent the image."), asked("Summarize it."), asked("Represent the image.")] == [40, 20, 0]


def test_a_label_subset_that_is_not_there_is_named(fake, tmp_path):
    with pytest.raises(ValueError, match="no subset 'colour' to take for labels or not; there are s"):
        mine_pairs(rows(20), fake, tmp_path, model=MODEL, k=3, label_subsets={"colour": True})


@pytest.mark.parametrize("first", [1, 4])
def test_subsets_that_give_no_clusters_are_no_failure(fake, tmp_path, caplog, first):
    pairs = Dataset.from_dict({"query": ["one"] * 4 + ["two"], "positive": list("abcde"), "subset": list("aaaab")})
    pairs = read_pairs(pairs.select([*range(first, 5), *range(first)]))
    mined = mine_pairs(pairs, fake, tmp_path, model=MODEL, k=1)
    assert len(mined.clusters) == 0 and mined.clusters.counts["left_over"] == 5
    assert "no cluster of 2 came of 5 pairs, so batches will be random" in caplog.text
    numbers = write_report(pairs, mined, tmp_path)
    assert numbers["clusters"] == 0 and not numbers["hardness"]["mined"]


def test_rows_of_one_query_that_fit_nowhere_are_told_apart(fake, tmp_path, caplog):
    table = {"query": ["one"] * 4, "positive": list("abcd"), "subset": ["s"] * 4}
    mine_pairs(read_pairs(Dataset.from_dict(table)), fake, tmp_path, model=MODEL, k=1)
    assert "4 of 4 rows fit into no cluster of 2: too many of them share a query or a document" in caplog.text
    assert "have 1 distinct queries and 4 distinct documents" in caplog.text


def test_subsets_are_kept_apart_and_labels_seen(fake, tmp_path):
    pairs = concatenate_datasets([rows(40), rows(64, "labels", labels=4)])
    rules = FilterRules(rank=0.2)
    clusters = mine_pairs(pairs, fake, tmp_path, model=MODEL, k=3, rules=rules).clusters
    assert all(len({row < 40 for row in cluster.tolist()}) == 1 for cluster in clusters.rows)
    subsets = clusters.settings["subsets"]
    assert not subsets["s"]["label_subset"] and subsets["labels"]["label_subset"]
    assert subsets["labels"]["counts"]["suspect_rank"] == 0 < subsets["s"]["counts"]["suspect_rank"]
    mixed = mine_pairs(pairs, fake, tmp_path, model=MODEL, k=3, strategy="random").clusters
    assert any(len({row < 40 for row in cluster.tolist()}) == 2 for cluster in mixed.rows)
    apart = mine_pairs(pairs, fake, tmp_path, model=MODEL, k=3, strategy="same-subset").clusters
    assert all(len({row < 40 for row in cluster.tolist()}) == 1 for cluster in apart.rows)


def test_labels_are_few_in_number_and_for_the_rows():
    assert are_labels(np.zeros(10, int)) and not are_labels(np.arange(10) // 5)
    for documents in (1000, 1001):
        assert are_labels(np.repeat(np.arange(documents), 10)) == (documents == 1000)


@pytest.mark.parametrize(("pictures", "told"), [(False, None), (False, {"s": False}), (True, None)])
def test_what_is_taken_for_labels_is_logged_with_the_way_to_change_it(tmp_path, caplog, pictures, told):
    caplog.set_level("INFO")
    table = {"query_text": [f"query {i}" for i in range(40)], "subset": ["s"] * 40}
    if pictures:
        paths = [str(tmp_path / f"{i}.png") for i in range(4)]
        for i, path in enumerate(paths):
            Image.new("RGB", (8, 8), (60 * i, 0, 0)).save(path)
        table["pos_image"] = [{"bytes": None, "path": path} for path in paths] * 10
    else:
        table["pos_text"] = list("abcd") * 10
    pairs = read_pairs(Dataset.from_dict(table))
    mined = mine_pairs(pairs, ToRGB(), tmp_path / "out", model=MODEL, k=1, label_subsets=told)
    labels = not pictures and told is None
    assert mined.clusters.settings["subsets"]["s"]["label_subset"] == labels
    said = "subset s: its documents are taken for labels, 4 distinct ones for 40 rows"
    assert (said in caplog.text) == ("`--labels s=no`" in caplog.text) == labels


@pytest.mark.parametrize("rule", [None, -1.0])
def test_a_subset_of_random_members_is_named(fake, tmp_path, caplog, rule):
    """A rule that suspects every candidate leaves none."""
    mine_pairs(rows(40), fake, tmp_path, model=MODEL, k=3, rules=FilterRules(query_similarity=rule))
    said = (
        r"subset s: \d+ of the 30 members beside an anchor were taken at random.* 40 queries found 360, .* suspects 0"
    )
    assert bool(re.search(said, caplog.text)) == (rule is not None)


def test_what_cannot_be_embedded_is_left_out_and_named(fake, tmp_path, caplog):
    table = rows(20).to_dict()
    table["query_text"][7] = "refuse me"
    pairs = read_pairs(Dataset.from_dict(table))
    mined = mine_pairs(pairs, fake, tmp_path, model=MODEL, k=3, strategy="top-k")
    assert mined.skipped == {7: "an input is refused"}
    assert 7 not in mined.clusters.rows and mined.clusters.rows.size == 16
    assert json.loads((tmp_path / "skipped.jsonl").read_text()) == {"row": 7, "reason": "an input is refused"}
    with caplog.at_level("WARNING"):
        mine_pairs(
            read_pairs(Dataset.from_dict({"query": list("abcd"), "pos": ["x", "x", "x", "y"]})),
            fake,
            tmp_path / "b",
            model=MODEL,
            k=1,
        )
    assert "2 of 4 rows fit into no cluster of 2" in caplog.text


def test_a_shard_of_nothing_but_refused_inputs_does_not_stop_the_run(fake, tmp_path):
    table = rows(20).to_dict()
    table["query_text"][19] = "refuse me"
    mined = mine_pairs(read_pairs(Dataset.from_dict(table)), fake, tmp_path, model=MODEL, k=3, shard_size=19)
    assert list(mined.skipped) == [19] and mined.clusters.rows.size == 16


def test_nothing_to_mine_says_so(fake, tmp_path):
    every = Dataset.from_dict({"query": ["refuse me"] * 2, "positive": ["a", "b"]})
    with pytest.raises(ValueError, match="none of 1 queries can be embedded; the first: an input is refused"):
        mine_pairs(read_pairs(every), fake, tmp_path / "a", model=MODEL)
    assert not list((tmp_path / "a").rglob("*.npy"))  # another run tries again
    crossed = Dataset.from_dict({"query": ["refuse me", "a"], "positive": ["b", "refuse me"]})
    with pytest.raises(ValueError, match="none of 2 rows has both sides embedded"):
        mine_pairs(read_pairs(crossed), fake, tmp_path / "b", model=MODEL)


def test_clusters_of_different_lengths_are_reported(fake, tmp_path):
    pairs = rows(20)
    mined = mine_pairs(pairs, fake, tmp_path, model=MODEL, k=5, strategy="saha-paper")
    numbers = write_report(pairs, mined, tmp_path)
    sizes = (mined.clusters.rows >= 0).sum(1)
    assert len(set(sizes.tolist())) > 1 and numbers["cluster_sizes"] == dict(Counter(sizes.tolist()))
    assert len(hardness(mined, mined.clusters.rows)) == (sizes * (sizes - 1)).sum()


def test_an_embedding_that_is_not_finite_stops_the_run(tmp_path):
    class Broken(FakeEmbedder):
        @staticmethod
        def _vector(item, task):
            return FakeEmbedder._vector(item, task) * (np.nan if item["text"] == "query 3" else 1)

    with pytest.raises(RuntimeError, match="not finite for .*query 3"):
        mine_pairs(rows(20), Broken(), tmp_path, model=MODEL, k=3)
    assert not list((tmp_path / "embeddings").rglob("*.npy"))


class Dying(FakeEmbedder):
    def _encode(self, inputs, task):
        if self.embedded >= 24:
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._encode(inputs, task)


def mined_into(out, embedder):
    return mine_pairs(rows(60), embedder, out, model=MODEL, k=3, shard_size=8)


def files(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_killed_and_resumed_gives_the_same_bytes(fake, tmp_path):
    assert exit_code(mined_into, tmp_path / "killed", Dying()) == -signal.SIGKILL
    assert len(list((tmp_path / "killed").rglob("*.npy"))) == 3
    mined = mined_into(tmp_path / "killed", fake)
    assert fake.embedded == 120 - 24
    mined_into(tmp_path / "whole", FakeEmbedder())
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert mined.clusters.rows.tolist() == Clusters.load(tmp_path / "whole").rows.tolist()


def test_mining_that_starts_again_reads_no_picture_again(tmp_path, monkeypatch):
    picture = tmp_path / "picture.png"
    Image.new("RGB", (8, 8)).save(picture)
    os.utime(picture, (1_600_000_000, 1_600_000_000))
    table = {
        "query_image": [{"bytes": None, "path": str(picture)}, None],
        "query_text": ["", "b"],
        "pos_text": ["p", "q"],
    }
    mine_again = partial(mine_pairs, read_pairs(Dataset.from_dict(table)), ToRGB(), tmp_path / "out", model=MODEL, k=1)
    first = mine_again().ids
    monkeypatch.delattr(digests, "read_digest")
    monkeypatch.delattr("hf_mmembed.mining.ids.read_digest")
    assert mine_again().ids.fingerprint == first.fingerprint
    monkeypatch.delattr(dataset, "content_ids")
    assert mine_again(ids=first).ids is first


def test_two_processes_give_what_one_gives(tmp_path):
    def embedded(rank):
        embedder = FakeEmbedder()
        with mock.patch.object(dataset, "content_ids", wraps=dataset.content_ids) as read:
            mined_into(tmp_path / "two", embedder)
        return read.call_count, embedder.embedded

    assert in_processes(embedded, store=tmp_path / "store") == [(1, 64), (0, 56)]
    mined_into(tmp_path / "one", FakeEmbedder())
    assert files(tmp_path / "two") == files(tmp_path / "one")


def test_the_report_tells_what_happened(fake, tmp_path):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    table = rows(40).to_dict()
    table["query_image"] = [{"bytes": None, "path": str(tmp_path / "red.png")}, *[None] * 39]
    table["query_text"][1] = "<script>alert(1)</script>"
    pairs = read_pairs(Dataset.from_dict(table))
    mined = mine_pairs(pairs, ToRGB(), tmp_path / "out", model=MODEL, k=3, strategy="top-k")
    numbers = write_report(pairs, mined, tmp_path / "out")
    assert numbers == json.loads((tmp_path / "out/report.json").read_text(), object_hook=with_integer_keys)
    assert numbers["cluster_sizes"] == {4: 10} and numbers["rows"] == 40
    assert numbers["hardness"]["mined"]["mean"] >= numbers["hardness"]["random"]["mean"]
    assert numbers["counts"]["from_pool"] + numbers["counts"]["next_best"] + numbers["counts"]["at_random"] == 30
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("<h2>Cluster") == 10 and "data:image/webp" in page
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert Image.open(tmp_path / "out/report.png").size[0] > 1000
    two = mined.clusters.rows[:2]
    own = [
        (mined.queries.take(mined.ids.query_ids[[a]]) @ mined.documents.take(mined.ids.document_ids[[b]]).T).item()
        for cluster in two
        for a in cluster
        for b in cluster
        if a != b
    ]
    assert hardness(mined, two) == pytest.approx(own, abs=1e-6)


class ToRGB(FakeEmbedder):
    """Takes encoded pictures too, as `MMEmbedder` does."""

    def _encode(self, inputs, task):
        opened = [{**i, "image": Image.open(i["image"]).convert("RGB")} if "image" in i else i for i in inputs]
        return super()._encode(opened, task)


def with_integer_keys(items):
    return {int(key) if key.isdigit() else key: value for key, value in items.items()}


def test_a_directory_is_held_from_the_first_embedding_to_the_last_cluster(fake, tmp_path, monkeypatch):
    embedding = watch(monkeypatch, fake, "encode_query", tmp_path)
    writing = watch(monkeypatch, dataset, "write_atomically", tmp_path)
    reading = watch(monkeypatch, Clusters, "load", tmp_path)
    mine_pairs(rows(8), fake, tmp_path, model=MODEL, k=3)
    assert embedding == writing == reading == [True] and not is_held(tmp_path)
