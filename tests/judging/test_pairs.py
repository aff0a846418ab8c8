"""Mining, judging and sampling of whole datasets, with a judge that is a formula."""

from __future__ import annotations

import os
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from hf_mmembed.data.pairs import negatives_of, query_of, read_pairs
from hf_mmembed.judging import judge_pairs, sampled
from hf_mmembed.judging.candidates import _nearest_others, mined, of_pairs
from hf_mmembed.judging.pairs import _digest
from hf_mmembed.mining import content_ids, digests
from hf_mmembed.mining.candidates import nearest_documents
from hf_mmembed.training.soft_labels import SoftLabelLoss
from tests.forks import in_processes
from tests.holding import is_held, watch
from tests.training.conftest import make_pairs


class Formula:
    """Scores by the length of the candidate's text, and counts questions."""

    def __init__(self, identity="formula", dies_after=None):
        self.identity, self.asked, self.dies_after = identity, 0, dies_after

    def __call__(self, queries, candidates):
        if self.dies_after is not None and self.asked >= self.dies_after:
            raise KeyboardInterrupt
        self.asked += len(queries)
        return np.array([1 / (1 + len(item.get("text", ""))) for item in candidates])


class Words:
    """An embedder of texts: counts of letters."""

    def encode_query(self, inputs, **options):
        vectors = np.array([[item.get("text", "").count(c) + 0.01 for c in "abcdefgh"] for item in inputs], np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    encode_document = encode_query

    def get_embedding_dimension(self):
        return 8


@given(st.lists(st.one_of(st.floats(0, 1), st.just(float("nan"))), max_size=30), st.integers(1, 9), st.integers(1, 6))
def test_sampling(scores, keep, stride):
    scores = np.array(scores, float)
    chosen = sampled(scores, 0.8, margin=0.1, keep=keep, stride=stride)
    fit = [i for i, score in enumerate(scores) if score <= 0.7]
    assert len(set(chosen)) == len(chosen) == min(keep, len(fit)) and set(chosen) <= set(fit)
    assert chosen[: len(fit[::stride])].tolist() == fit[::stride][:keep]


def _with_negatives(*texts):
    rows = [
        {**make_pairs(1, pictures=False)[0], "query_text": f"q{i}", "pos_text": "aa", "neg_text": own,
         "neg_image": [None] * len(own)}
        for i, own in enumerate(texts)
    ]  # fmt: skip
    return read_pairs(Dataset.from_list(rows))


def test_own_negatives_are_judged_filtered_and_train(tmp_path, embedder):
    pairs = _with_negatives(["b", "bbbb", "", "bbbbbbbb"], [], ["c"])
    judged = judge_pairs(pairs, Formula(), of_pairs(pairs), tmp_path, margin=0.1, stride=1)
    np.testing.assert_allclose(judged.scores[0], [1 / 3, 1 / 2, 1 / 5, np.nan, 1 / 9])
    assert [row["neg_text"] for row in judged.pairs] == [["bbbb", "bbbbbbbb"], [], []]
    assert judged.pairs[0]["neg_score"] == pytest.approx([1 / 5, 1 / 9])
    assert judged.pairs["pos_score"][:] == pytest.approx([1 / 3] * 3)
    assert (judged.false_negatives, judged.without) == (2, 2)
    again = read_pairs(tmp_path / "pairs")
    assert again.column_names == judged.pairs.column_names and again[0] == judged.pairs[0]
    from hf_mmembed import MMEmbedder

    assert SoftLabelLoss(MMEmbedder(str(embedder("qwen2_vl")), device="cpu"), again)._scores[0].shape == (3,)


def test_mined_candidates_are_the_nearest_without_the_answers(tmp_path):
    texts = ["abc", "abd", "abe", "fgh", "abcc"]
    pairs = read_pairs(Dataset.from_dict({"query": ["ab", "ab", "e", "f", "c"], "positive": texts}))
    pool = mined(pairs, Words(), tmp_path, model={"name": "words"}, depth=2)
    vectors = Words().encode_document([{"text": text} for text in texts])
    for row, query in enumerate(pairs["query_text"]):
        answers = {i for i in range(5) if pairs[i]["query_text"] == query}
        scores = Words().encode_query([{"text": query}])[0] @ vectors.T
        others = np.sort(scores[[i for i in range(5) if i not in answers]])[::-1]
        found = [texts.index(item["text"]) for item in pool.inputs(pool.places[row])]
        assert not answers & set(found)
        np.testing.assert_allclose(scores[found], others[:2], atol=1e-6)
    capped = mined(pairs, Words(), tmp_path, model={"name": "words"}, depth=2, cap=-1.0)
    assert (capped.places == -1).all()
    judged = judge_pairs(pairs, Formula(), capped, tmp_path)
    assert judged.without == 5 and judged.pairs["neg_text"][:] == [[]] * 5


def _vectors(number, seed):
    """A fifth of them close to the first axis, the rest anywhere."""
    generator = np.random.default_rng(seed)
    near = np.eye(4)[0] + 0.1 * generator.normal(size=(number // 5, 4))
    vectors = np.concatenate([near, generator.normal(size=(number - len(near), 4))]).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("at_once", [1 << 26, 40])
@pytest.mark.parametrize("cap", [0.9, 0.3, -0.5, -2.0])
def test_what_is_above_the_cap_is_looked_past(monkeypatch, caplog, cap, at_once):
    monkeypatch.setattr("hf_mmembed.judging.candidates._FOUND_AT_ONCE", at_once)
    queries, documents, depth = _vectors(30, 0), _vectors(60, 1), 5
    rows = np.arange(60)
    ids = SimpleNamespace(
        query_ids=rows % 30, document_ids=rows, query_rows=np.arange(30), document_rows=rows
    )  # two answers each
    found = _nearest_others(ids, *(SimpleNamespace(take=side.__getitem__) for side in (queries, documents)),
                            depth, cap, None)  # fmt: skip
    scores = queries.astype(np.float64) @ documents.T.astype(np.float64)
    for query, (own, of_query) in enumerate(zip(found, scores, strict=True)):
        fit = [i for i in np.argsort(-of_query, kind="stable") if i % 30 != query and of_query[i] <= cap]
        assert own.tolist() == [*fit, *[-1] * depth][:depth]
    none = int((found[:, 0] < 0).sum())
    assert none == {0.9: 0, 0.3: 0, -2.0: 30}.get(cap, none)
    assert (f"{none} of 30 queries have no candidate" in caplog.text) == bool(none)


def test_a_query_with_no_other_document_has_not_lost_it_to_the_cap(caplog):
    only = SimpleNamespace(
        **dict.fromkeys(("query_ids", "document_ids", "query_rows", "document_rows"), np.zeros(1, int))
    )
    vectors = SimpleNamespace(take=_vectors(5, 0).__getitem__)
    assert _nearest_others(only, vectors, vectors, 3, 1.0, None).tolist() == [[-1]] and not caplog.text


def test_only_a_query_with_many_answers_is_searched_deep(monkeypatch):
    queries, documents = _vectors(30, 0), _vectors(60, 1)
    answers = [*((query, query) for query in range(30)), *((7, document) for document in range(10, 50))]
    query_ids, document_ids = np.array(answers).T
    ids = SimpleNamespace(
        query_ids=query_ids, document_ids=document_ids, query_rows=np.arange(30), document_rows=np.arange(60)
    )
    searched = []

    def search(vectors, others, depth):
        searched.append((len(vectors), depth))
        return nearest_documents(vectors, others, depth)

    monkeypatch.setattr("hf_mmembed.judging.candidates.nearest_documents", search)
    found = _nearest_others(ids, *(SimpleNamespace(take=side.__getitem__) for side in (queries, documents)),
                            5, 1.0, None)  # fmt: skip
    for query, (own, scores) in enumerate(zip(found, queries.astype(np.float64) @ documents.T, strict=True)):
        assert own.tolist() == [i for i in np.argsort(-scores, kind="stable") if (query, i) not in answers][:5]
    assert searched == [(29, 6), (1, 48)]


@pytest.mark.parametrize("rows_at_once", [32, 4])
def test_pictures_become_negatives(tmp_path, monkeypatch, rows_at_once):
    monkeypatch.setattr("hf_mmembed.judging.pairs._ROWS_AT_ONCE", rows_at_once)
    pairs = make_pairs(6)
    pool = mined(pairs, Words(), tmp_path, model={"name": "words"}, depth=3)
    judged = judge_pairs(pairs, Formula(), pool, tmp_path, margin=-1.0, stride=1)
    for row, places in zip(judged.pairs, pool.places, strict=True):
        assert negatives_of(row) == pool.inputs(places)
    assert any(image for row in judged.pairs for image in row["neg_image"])
    assert {path.name for path in tmp_path.iterdir()} == {"pairs", "scores", "queries", "documents", ".lock"}


def test_a_killed_run_goes_on_and_another_judge_starts_anew(tmp_path):
    pairs = make_pairs(8, pictures=False)
    pool = mined(pairs, Words(), tmp_path, model={"name": "words"}, depth=3)
    with pytest.raises(KeyboardInterrupt):
        judge_pairs(pairs, Formula(dies_after=16), pool, tmp_path, rows_per_file=2)
    judge = Formula()
    whole = judge_pairs(pairs, judge, pool, tmp_path, rows_per_file=2)
    assert judge.asked == 8 * 4 - 16
    judge_pairs(pairs, judge, pool, tmp_path, rows_per_file=2, margin=0.5)
    assert judge.asked == 8 * 4 - 16
    other = Formula("other")
    np.testing.assert_array_equal(judge_pairs(pairs, other, pool, tmp_path, rows_per_file=2).scores, whole.scores)
    assert other.asked == 8 * 4


@pytest.mark.parametrize("first", [["b", "ccc"], ["b", "", "ccc"]])
def test_scores_are_kept_where_others_have_more_candidates_than_before(tmp_path, first):
    few, more = _with_negatives(first, ["b"]), _with_negatives(["b", "ccc"], ["b"], ["b", "", "ccc", "dddd"])
    judge_pairs(few, Formula(), of_pairs(few), tmp_path, rows_per_file=2)
    judge = Formula()
    judged = judge_pairs(more, judge, of_pairs(more), tmp_path, rows_per_file=2)
    assert judge.asked == 1 + 3
    none = np.nan
    expected = [[1 / 3, 1 / 2, 1 / 4, none, none], [1 / 3, 1 / 2, *[none] * 3], [1 / 3, 1 / 2, none, 1 / 4, 1 / 5]]
    np.testing.assert_allclose(judged.scores, expected)
    fewer = judge_pairs(few, Formula(dies_after=0), of_pairs(few), tmp_path, rows_per_file=2)
    assert fewer.scores.shape == (2, 1 + len(first))


def test_what_is_judged_already_reads_each_candidate_once(tmp_path, monkeypatch):
    pairs = make_pairs(8)
    pool = mined(pairs, Words(), tmp_path, model={"name": "words"}, depth=5)
    first = judge_pairs(pairs, Formula(), pool, tmp_path, rows_per_file=2)
    monkeypatch.setattr(type(pool), "inputs", None)  # no question is put together anew
    again = judge_pairs(pairs, Formula(dies_after=0), pool, tmp_path, rows_per_file=2)
    np.testing.assert_array_equal(again.scores, first.scores)


def test_a_picture_file_counts_by_what_it_holds(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(name.encode())
    picture = {"path": str(tmp_path / "a.png"), "bytes": None}
    pairs = read_pairs(Dataset.from_list([{**make_pairs(1, pictures=False)[0], "query_image": picture}]))
    assert query_of(pairs[0])["image"] == picture["path"]
    pool = mined(pairs, Words(), tmp_path, model={"name": "words"}, depth=1)

    def asked():
        judge = Formula()
        judge_pairs(pairs, judge, pool, tmp_path)
        return judge.asked

    assert (asked(), asked()) == (1, 0)
    (tmp_path / "b.png").replace(tmp_path / "a.png")
    assert asked() == 1


def test_what_cannot_be_judged_names_its_rows_and_keeps_the_others(tmp_path):
    def fails(queries, candidates):
        if any(query["text"] == "blue thing 2" for query in queries):
            raise ValueError("the picture is broken")
        return Formula()(queries, candidates)

    fails.identity = "formula"
    pairs = make_pairs(4, pictures=False)
    pool = mined(pairs, Words(), tmp_path, model={"name": "words"}, depth=1)
    with pytest.raises(ValueError, match="rows 2 to 3 cannot be judged: the picture is broken"):
        judge_pairs(pairs, fails, pool, tmp_path, rows_per_file=2)
    judge = Formula()
    judge_pairs(pairs, judge, pool, tmp_path, rows_per_file=2)
    assert judge.asked == 4


def _rank_judged(rank, pairs, pool, out):
    judge = Formula()
    with mock.patch("hf_mmembed.judging.pairs._digest", wraps=_digest) as reading:
        judged = judge_pairs(pairs, judge, pool, out, rows_per_file=2)
    return judge.asked, reading.called, judged.scores, judged.pairs.to_list()


@pytest.mark.parametrize(("device", "searched"), [("meta", "meta"), ("mps", "cpu"), (None, "cpu")])
def test_the_search_runs_on_the_device_it_is_given(tmp_path, monkeypatch, device, searched):
    seen = []

    def search(queries, documents, depth):
        seen.extend([queries.device.type, documents.device.type])
        return nearest_documents(torch.zeros(queries.shape), torch.zeros(documents.shape), depth)

    monkeypatch.setattr("hf_mmembed.judging.candidates.nearest_documents", search)
    mined(make_pairs(3, pictures=False), Words(), tmp_path, model={"name": "words"}, depth=1, device=device)
    assert seen == [searched] * 2


def _rank_mined(rank, pairs, out):
    module = "hf_mmembed.judging.candidates"
    with (
        mock.patch(f"{module}.nearest_documents", wraps=nearest_documents) as search,
        mock.patch(f"{module}.content_ids", wraps=content_ids) as read,
    ):
        places = mined(pairs, Words(), out, model={"name": "words"}, depth=3).places
        return [read.call_count, search.call_count], places


def test_one_of_two_processes_reads_and_searches_and_both_return_the_same(tmp_path):
    pairs = make_pairs(7)
    alone = mined(pairs, Words(), tmp_path / "one", model={"name": "words"}, depth=3)
    results = in_processes(_rank_mined, pairs, tmp_path / "two", store=tmp_path / "store")
    assert [calls for calls, _ in results] == [[1, 1], [0, 0]]
    for _, places in results:
        np.testing.assert_array_equal(places, alone.places)


def test_a_judge_that_starts_again_reads_no_picture_again(tmp_path, monkeypatch):
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"some")
    os.utime(picture, (1_600_000_000, 1_600_000_000))
    table = {"query_text": ["a disc", "a box"], "pos_text": ["round", "square"],
             "query_image": [{"bytes": None, "path": str(picture)}, None]}  # fmt: skip
    pairs, options = read_pairs(Dataset.from_dict(table)), {"model": {"name": "words"}, "depth": 1}
    places = mined(pairs, Words(), tmp_path / "out", **options).places
    monkeypatch.delattr(digests, "read_digest")
    monkeypatch.delattr("hf_mmembed.mining.ids.read_digest")
    np.testing.assert_array_equal(mined(pairs, Words(), tmp_path / "out", **options).places, places)


def test_two_processes_share_the_questions_and_return_the_same(tmp_path):
    pairs = make_pairs(7)
    pool = mined(pairs, Words(), tmp_path, model={"name": "words"}, depth=3)
    alone = judge_pairs(pairs, Formula(), pool, tmp_path / "one", rows_per_file=2)
    results = in_processes(_rank_judged, pairs, pool, tmp_path / "two", store=tmp_path / "store")
    assert [asked for asked, *_ in results] == [4 * 4, 3 * 4]  # rows 0, 1, 4, 5 and rows 2, 3, 6
    assert [read for _, read, *_ in results] == [True, False], "one process reads for all what names the files"
    for *_, scores, rows in results:
        np.testing.assert_array_equal(scores, alone.scores)
        assert rows == alone.pairs.to_list()
    assert read_pairs(tmp_path / "two" / "pairs").to_list() == alone.pairs.to_list()


def test_nothing_to_judge_is_an_error():
    with pytest.raises(ValueError, match="name an embedder that mines"):
        of_pairs(make_pairs(2))


def test_a_directory_is_held_until_the_result_is_read(tmp_path, monkeypatch):
    reading = watch(monkeypatch, Dataset, "load_from_disk", tmp_path)
    pairs = _with_negatives(["a", "bb"])
    judge_pairs(pairs, Formula(), of_pairs(pairs), tmp_path)
    assert reading == [True] and not is_held(tmp_path)
