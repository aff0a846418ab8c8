"""Scores with and without what a reasoner writes, its cost beside them, and what keeps its traces from counting."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset

from hf_mmembed.data.pairs import read_pairs
from hf_mmembed.evaluation import MMEB_V1, evaluate
from hf_mmembed.evaluation import thinking as module
from hf_mmembed.evaluation.items import Item, as_input, digest
from hf_mmembed.evaluation.media import ImageFile
from hf_mmembed.evaluation.thinking import source_of_traces, think_about
from hf_mmembed.inputs import as_messages, pictures
from hf_mmembed.processes import World
from hf_mmembed.thinking import Thinker, Trace, TraceStore
from hf_mmembed.thinking.filling import thoughts_of_pairs
from hf_mmembed.thinking.traces import Record, content_digest
from tests.evaluation import layouts
from tests.thinking.conftest import Parrot
from tests.training.conftest import picture


class Seer(Parrot):
    """Tells the number that a picture shows."""

    def think(self, inputs, task_family, *, answers=None):
        self.asked.append((task_family, len(inputs)))
        shown = [[layouts.number_in(picture) for picture in pictures(as_messages(item))] for item in inputs]
        return [Trace(f"<think> {task_family} </think> #{(numbers or [0])[0]}", "stop", 7) for numbers in shown]


def reader():
    """Blind to the pictures of a query, but for what is written about them."""

    def vector(item):
        if item.role == "query" and item.images:
            return layouts.one_hot(int(item.trace.rpartition("#")[2]) if item.trace else layouts.DIM - 1)
        return layouts.one_hot(layouts.meant(item))

    return layouts.Fake(vector, "reader")


@pytest.fixture
def data(tmp_path):
    layouts.write_small_v1(tmp_path / "data")
    return tmp_path / "data"


def test_scores_with_and_without_and_what_thinking_costs(data, tmp_path):
    reasoner, out = Seer(), tmp_path / "out"
    with TraceStore(tmp_path / "traces.sqlite") as store:
        results = evaluate(reader(), "mmeb-v1", data, out=out, think=Thinker(reasoner, store))
    answers, captions = (results.metrics["image"][name] for name in ("GQA", "MSCOCO_t2i"))
    assert (answers["hit@1"], answers["thinking"]["hit@1"], answers["thinking"]["tokens_per_query"]) == (0, 1, 7)
    assert answers["thinking"]["ms_per_query"] > 0
    assert captions["thinking"] | {"ms_per_query": None} == {
        name: value for name, value in captions.items() if name in captions["thinking"]
    } | {"tokens_per_query": 0, "ms_per_query": None}  # a caption is looked for as it is
    assert {family for family, _ in reasoner.asked} == {"qa"}
    assert results.metadata["thinking"]["reasoner"] == "parrot" and results.metadata["thinking"]["when"] == "auto"
    table = (out / "results.md").read_text()
    assert (
        "| data set, % | score | score with thinking | tokens per query | ms per query | counts | queries |" in table
    )
    assert "| GQA | 0.0 | 100.0 | 7 | " in table and "thinking: parrot, auto" in table
    assert {file.stem for file in (out / "predictions").iterdir()} >= {"GQA", "GQA-thinking"}
    # Again: nothing is written, embedded or timed anew.
    again, encoder = Seer(), reader()
    with TraceStore(tmp_path / "traces.sqlite") as store:
        repeated = evaluate(encoder, "mmeb-v1", data, out=out, think=Thinker(again, store))
    assert again.asked == [] and encoder.seen == [] and repeated.metrics == results.metrics


def test_always_means_queries_and_documents(data, tmp_path):
    reasoner = Seer()
    encoder = layouts.Fake(lambda item: layouts.one_hot(layouts.meant(item)))
    evaluate(encoder, "mmeb-v1", data, out=tmp_path / "out", think=Thinker(reasoner), think_when="always")
    assert sum(count for family, count in reasoner.asked if family == "qa") == 12
    assert sum(count for family, count in reasoner.asked if family == "content") == 12 + 19 + 19
    assert len({digest(item) for item in encoder.seen}) == 2 * (12 + 19 + 12 + 19)


def store_of(items, path, *, gold_visible=False):
    store, origin = TraceStore(path), Parrot().origin
    for item in items:
        content = content_digest(as_messages(as_input(item)))
        trace = Trace("<think> x </think> #3", n_tokens=5, gold_visible=gold_visible)
        store.put([Record(origin.key(content, item.role, "qa"), content, item.role, "qa", origin, trace)])
    return store


GQA = next(subset for subset in MMEB_V1 if subset.name == "GQA")
ITEMS = [Item("a", role="query"), Item("b", role="query"), Item("a"), Item("c")]


def test_training_data_and_evaluation_are_asked_the_same(tmp_path):
    (tmp_path / "a.png").write_bytes(picture("red"))
    trained = [subset for subset in MMEB_V1 if subset.distribution == "IND"]
    row = {"query_text": "the brown dog", "query_image": str(tmp_path / "a.png"), "pos_text": "x"}
    names = [subset.name.replace("ImageNet-1K", "ImageNet_1K") for subset in trained]  # as MMEB-train has it
    pairs = read_pairs(Dataset.from_list([row | {"subset": name} for name in names]))
    in_training = [thought.family for thought in thoughts_of_pairs(pairs, sides=["query"])]
    reasoner = Parrot()
    for subset in trained:
        item = Item("the brown dog", images=(ImageFile(tmp_path / "a.png"),), role="query")
        think_about([item], Thinker(reasoner), "always", subset)
    in_evaluation = [family for family, _ in reasoner.asked]
    assert list(zip(names, in_training, strict=True)) == list(zip(names, in_evaluation, strict=True))
    assert set(in_training) == {"classification", "qa", "grounding", "composed", "content"}


def test_traces_that_are_there_are_read(tmp_path):
    written = source_of_traces(store_of([ITEMS[0], ITEMS[3]], tmp_path / "t.sqlite"))
    thought = think_about(ITEMS, written, "auto", GQA)
    assert [item.trace for item in thought.items] == ["<think> x </think> #3", None, None, "<think> x </think> #3"]
    assert (thought.tokens_per_query, thought.ms_per_query) == (2.5, None)


def test_a_store_is_read_once(data, tmp_path, monkeypatch):
    store, reads = store_of(ITEMS, tmp_path / "t.sqlite"), []
    by_content = TraceStore.by_content
    monkeypatch.setattr(TraceStore, "by_content", lambda self: reads.append(1) or by_content(self))
    evaluate(layouts.oracle(), "mmeb-v1", data, subsets=["GQA", "MSCOCO_t2i"], out=tmp_path / "out", think=store)
    assert reads == [1]


def test_traces_that_must_not_count(data, tmp_path):
    with pytest.raises(ValueError, match="trace of 'a' was written in sight of the right answer"):
        gold = store_of(ITEMS[:1], tmp_path / "t.sqlite", gold_visible=True)
        think_about(ITEMS, source_of_traces(gold), "auto", GQA)
    other = store_of(ITEMS, tmp_path / "other.sqlite")
    results = evaluate(layouts.oracle(), "mmeb-v1", data, subsets=["GQA"], out=tmp_path / "out", think=other)
    assert "has no trace of a query of GQA" in results.failed["GQA"]
    kept = json.loads((tmp_path / "out" / "results.json").read_text())["metrics"]["image"]["GQA"]
    assert kept["hit@1"] == 1 and "thinking" not in kept  # what was finished stays


def test_processes_share_the_thinking(monkeypatch):
    monkeypatch.setattr(module, "world", lambda: World(0, 2))
    monkeypatch.setattr(World, "agree", lambda self, failure: failure)
    reasoner = Parrot()
    thought = think_about(ITEMS, Thinker(reasoner), "auto", GQA)
    assert reasoner.asked == [("qa", 1), ("qa", 1)]  # its own half; then, without a shared store, the other
    assert len({item.trace for item in thought.items[:2]}) == 2 and thought.tokens_per_query == 7


def test_an_input_that_cannot_be_read_is_named(data):
    item = Item("a", role="query")
    broken = Seer()
    broken.think = lambda inputs, family, answers=None: (_ for _ in ()).throw(ValueError("no"))
    with pytest.raises(ValueError, match=r"'a': inputs\[0\]: no"):
        think_about([item], Thinker(broken), "always", GQA)


def test_another_model_cannot_read_traces(data, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=2)], device="cpu")
    with pytest.raises(ValueError, match="cannot read what a reasoner writes"):
        evaluate(model, "mmeb-v1", data, out=tmp_path / "out", think=Thinker(Seer()))
