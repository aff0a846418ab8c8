"""Visual documents: graded relevance, pages in several places, old and mended splits."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from datasets import Dataset

from hf_mmembed.evaluation import evaluate
from hf_mmembed.evaluation.mmeb_visdoc import read_v2_visdoc
from hf_mmembed.evaluation.subsets import MMEB_V2, choose
from tests.evaluation import layouts
from tests.evaluation.test_mmeb_image import score


def read(root, name, protocol="user"):
    [subset] = choose(MMEB_V2, [name])
    return read_v2_visdoc(root, subset, protocol)


def write(folder, queries, qrels, corpus, split="test"):
    tables = {
        "queries": [{"query-id": query, "query": text} for query, text in queries.items()],
        "qrels": [{"query-id": q, "corpus-id": c, "score": s} for q, c, s in qrels],
        "corpus": [{"corpus-id": name} for name in corpus],
    }
    for name, rows in tables.items():
        layouts.write_parquet(folder / name / f"{split}-00000-of-00001.parquet", rows)


def test_ndcg_by_hand(tmp_path):
    pages = [1, 2, 3, 4, 5, 6]
    # Query 0: page 3 counts 2, page 6 counts 1, page 1 was judged and found irrelevant. Query 1: page 5.
    qrels = [(0, 3, 2), (0, 6, 1), (0, 1, 0), (1, 5, 1)]
    write(tmp_path / "visdoc-tasks/data/tatdqa_test_beir", {0: "#3", 1: "#2"}, qrels, pages)
    layouts.write_pictures(tmp_path / "visdoc-tasks/images/ViDoRe_tatdqa", pages)
    task = read(tmp_path, "ViDoRe_tatdqa")
    assert task.queries[0].text == "Find a document image that matches the given query: #3"
    assert task.candidates[0].text == " Understand the content of the provided document image."

    # Scores fall with the distance of the numbers: query 0 ranks 3, then 2 and 4, then 1 and 5, then 6.
    def near(item):
        number = layouts.number_in(item.images[0].read()) if item.images else layouts.meant(item)
        return np.array([math.cos(number / 9), math.sin(number / 9)])

    found = score(task, layouts.Fake(near), tmp_path)
    # Query 0: page 3 first; 6 is sixth, beyond the cut. Query 1 ranks 2, then 1 and 3, then 4, then 5: fifth.
    ideal = 2 + 1 / math.log2(3)
    assert found["ndcg_linear@5"] == pytest.approx((2 / ideal + 1 / math.log2(6)) / 2)
    assert found["hit@1"] == 0.5 and found["hit@5"] == 1
    asked = read(tmp_path, "ViDoRe_tatdqa", "system")
    assert asked.queries[0].instruction.startswith("Find a document") and asked.candidates[0].text is None


def test_mended_labels_and_old_ones_are_two_data_sets(tmp_path):
    write(tmp_path / "annotation/VLM2Vec/ViDoSeek-page", {0: "#2"}, [(0, "1", 1)], ["1", "2"])
    write(tmp_path / "annotation/VLM2Vec/ViDoSeek-page-fixed", {0: "#2"}, [(0, "2", 1)], ["1", "2"])
    for name in ("ViDoSeek-page", "ViDoSeek-page-fixed"):
        layouts.write_pictures(tmp_path / "visdoc-tasks" / name, [1, 2])
    seen = layouts.Fake(
        lambda i: layouts.one_hot(layouts.number_in(i.images[0].read()) if i.images else layouts.meant(i))
    )
    old, mended = read(tmp_path, "ViDoSeek-page"), read(tmp_path, "ViDoSeek-page-fixed")
    assert (old.notes["split"], mended.notes["split"]) == ("old page labels", "page-fixed")
    assert score(old, seen, tmp_path)["hit@1"] == 0 and score(mended, seen, tmp_path)["hit@1"] == 1


def test_visrag_pages_inside_a_saved_corpus_under_shortened_names(tmp_path):
    folder = tmp_path / "VisRAG-Ret-Test-ChartQA"
    name = "a very long name of a page that goes on beyond fifty letters.png"
    write(folder, {"q": "#9"}, [("q", name, 1)], [name], split="train")
    (folder / "corpus" / "train-00000-of-00001.parquet").unlink()
    rows = {"corpus-id": [name], "image": [{"bytes": layouts.picture(9), "path": None}]}
    Dataset.from_dict(rows).save_to_disk(str(folder / "corpus"))
    (tmp_path / "visdoc-tasks" / "data").mkdir(parents=True)
    folder.rename(tmp_path / "visdoc-tasks" / "data" / folder.name)
    task = read(tmp_path, "VisRAG_ChartQA")
    image = task.candidates[0].images[0]
    assert image.path.name == "a very long name of a page that goes on beyond fif_e6b02acc.png"
    assert layouts.number_in(io.BytesIO(image.read()).getvalue()) == 9
    assert read(tmp_path, "VisRAG_ChartQA").candidates == task.candidates  # now from the files


def test_bad_judgements_are_named(tmp_path):
    folder = tmp_path / "visdoc-tasks/data/ViDoSeek-doc"
    layouts.write_pictures(tmp_path / "visdoc-tasks/ViDoSeek-doc", [1])
    write(folder, {0: "a", 1: "b"}, [(0, "1", 1)], ["1"])
    with pytest.raises(ValueError, match="no page is relevant to the query 1"):
        read(tmp_path, "ViDoSeek-doc")
    write(folder, {0: "a"}, [(0, "2", 1)], ["1"])
    with pytest.raises(ValueError, match="qrels, row 0: '2' is not in the corpus"):
        read(tmp_path, "ViDoSeek-doc")
    write(folder, {0: "a"}, [(0, "3", 1)], ["3"])
    with pytest.raises(ValueError, match="no picture '3.png'"):
        read(tmp_path, "ViDoSeek-doc")


def test_a_folder_that_takes_no_pages_fails_its_data_set_alone(tmp_path):
    data = tmp_path / "data"
    for name in ("tatdqa_test_beir", "arxivqa_test_subsampled_beir"):
        folder = data / "annotation/vidore" / name
        write(folder, {0: "#2"}, [(0, "2", 1)], [])
        rows = [{"corpus-id": n, "image": {"bytes": layouts.picture(n), "path": None}} for n in (1, 2)]
        layouts.write_parquet(folder / "corpus" / "test-00000-of-00001.parquet", rows)
    layouts.write_pictures(data / "images" / "ViDoRe_arxivqa", [1, 2])
    (data / "visdoc-tasks").write_bytes(b"")  # where pages would be unpacked, also for a user who may write anywhere
    results = evaluate(layouts.oracle(), "mmeb-v2", data, out=tmp_path / "out")
    assert list(results.metrics["visdoc"]) == ["ViDoRe_arxivqa"] and list(results.failed) == ["ViDoRe_tatdqa"]
    place = data / "visdoc-tasks/images/ViDoRe_tatdqa"
    assert f"cannot unpack the pages into {place}" in results.failed["ViDoRe_tatdqa"]
    assert "writable" in results.failed["ViDoRe_tatdqa"]


def test_a_broken_corpus_leaves_no_half_unpacked_pages(tmp_path):
    folder = tmp_path / "annotation/vidore/tatdqa_test_beir"
    write(folder, {0: "#2"}, [(0, "2", 1)], [])
    rows = [
        {"corpus-id": n, "image": {"bytes": data, "path": None}} for n, data in ((1, layouts.picture(1)), (2, None))
    ]
    layouts.write_parquet(folder / "corpus" / "test-00000-of-00001.parquet", rows)
    with pytest.raises(ValueError, match="2 has no picture"):
        read(tmp_path, "ViDoRe_tatdqa")
    assert not any((tmp_path / "visdoc-tasks" / "images").iterdir())
