"""Scores with and without what a reasoner writes, its cost beside them, and what keeps its traces from counting."""

from __future__ import annotations

import json
from itertools import zip_longest

import pytest
import yaml
from datasets import Dataset

from hf_mmembed.data.pairs import read_pairs
from hf_mmembed.evaluation import MMEB_V1, evaluate
from hf_mmembed.evaluation import thinking as module
from hf_mmembed.evaluation.items import Item, as_input, digest
from hf_mmembed.evaluation.media import ImageFile
from hf_mmembed.evaluation.mmeb_image import read_v1
from hf_mmembed.evaluation.report import markdown, write_results
from hf_mmembed.evaluation.subsets import OFFICIAL_QUERIES, Subset
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
    } | {"tokens_per_query": 0, "ms_per_query": None} | dict.fromkeys(("traced", "cut", "malformed", "empty"), 0)
    # a caption is looked for as it is
    assert {family for family, _ in reasoner.asked} == {"qa"}
    assert results.metadata["thinking"]["reasoner"] == "parrot" and results.metadata["thinking"]["when"] == "auto"
    table = (out / "results.md").read_text()
    assert (
        "| data set, % | score | score with thinking | tokens per query | ms per query | traced | not whole | counts |"
        in table
    )
    assert "| GQA | 0.0 | 100.0 | 7 | " in table and "thinking: parrot, auto, templates 1" in table
    assert " | 12 | 0 | hit@1 | 12 |" in next(line for line in table.splitlines() if line.startswith("| GQA"))
    counts = {"traced": 12, "cut": 0, "malformed": 0, "empty": 0}
    assert answers["thinking"] | counts == answers["thinking"] and captions["thinking"]["traced"] == 0
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


def store_of(items, path, *, gold_visible=False, raws=()):
    store, origin = TraceStore(path), Parrot().origin
    for item, raw in zip_longest(items, raws, fillvalue="<think> x </think> #3"):
        content = content_digest(as_messages(as_input(item)))
        ended = "length" if raw.endswith("...") else "stop"
        trace = Trace(raw, ended, n_tokens=5, gold_visible=gold_visible)
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


def test_traces_that_are_there_are_read(tmp_path, caplog):
    written = source_of_traces(store_of([*ITEMS[:2], ITEMS[3]], tmp_path / "t.sqlite"))
    thought = think_about(ITEMS, written, "auto", GQA)
    assert [item.trace for item in thought.items] == [*["<think> x </think> #3"] * 2, None, "<think> x </think> #3"]
    assert (thought.tokens_per_query, thought.ms_per_query) == (5, None)
    assert "1 of 2 documents of GQA have no trace" in caplog.text


def test_traces_that_are_not_whole_are_counted(tmp_path, caplog):
    queries = [Item(str(number), role="query") for number in range(5)]
    raws = ["<think> x </think> #3", "<think> and so on ...", "no form", " ", "<think> and ..."]
    thought = think_about(queries, source_of_traces(store_of(queries, tmp_path / "t", raws=raws)), "auto", GQA)
    assert thought.counts == {"traced": 5, "cut": 2, "malformed": 1, "empty": 1}
    assert "GQA: 4 of 5 traces of queries are not of the form" in caplog.text
    assert "(2 cut, 1 malformed, 1 empty)" in caplog.text


def test_a_part_of_the_traces_is_an_error(data, tmp_path):
    queries = read_v1(data, GQA, "user").queries
    store = store_of(queries[:1], tmp_path / "t.sqlite", raws=["<think> and so on ..."])
    results = evaluate(reader(), "mmeb-v1", data, subsets=["GQA"], out=tmp_path / "out", think=store)
    told = results.failed["GQA"]
    assert "11 of 12 queries of GQA have no trace in" in told and "the same command goes on where it was" in told
    assert "thinking" not in results.metrics["image"]["GQA"]


def test_a_store_may_lack_the_families_that_auto_leaves_out(tmp_path, caplog):
    (tmp_path / "a.png").write_bytes(picture("red"))
    shown = (ImageFile(tmp_path / "a.png"),)
    question, change = Item("how many?", images=shown, role="query"), Item("in blue", images=shown, role="query")
    captions = [Item(words, role="query") for words in ("a dog", "a cat")]
    mixed = Subset("mine", "image", "Retrieval", "hit@1")
    made = Thinker(Parrot(), TraceStore(tmp_path / "auto.sqlite"))
    now = think_about([question, change, *captions], made, "auto", mixed)
    later = think_about([question, change, *captions], source_of_traces(made.store), "auto", mixed)
    assert later.items == now.items and later.counts == now.counts and later.counts["traced"] == 2
    assert not caplog.messages
    with pytest.raises(ValueError, match="2 of 4 queries of mine have no trace"):
        think_about([question, change, *captions], source_of_traces(made.store), "always", mixed)
    begun = source_of_traces(store_of([question, captions[0]], tmp_path / "begun.sqlite"))
    with pytest.raises(ValueError, match="1 of 3 queries of mine have no trace"):
        think_about([question, *captions], begun, "auto", mixed)
    think_about([question, change, captions[0]], begun, "auto", mixed)  # by templates that do not want it
    assert "1 of 3 queries of mine have no trace" in caplog.text and "family composed" in caplog.text


def test_published_scores_tell_thinking_apart(data, tmp_path, monkeypatch):
    monkeypatch.setitem(OFFICIAL_QUERIES, "mmeb-v1", {"GQA": 12})
    evaluate(reader(), "mmeb-v1", data, out=tmp_path, subsets=["GQA"], think=Thinker(Seer()))
    plain, thought = yaml.safe_load((tmp_path / ".eval_results" / "mmeb-v1.yaml").read_text())
    tasks = [entry["dataset"]["task_id"] for entry in (plain, thought)]
    assert tasks == ["GQA", "GQA_with_thinking"] and (plain["value"], thought["value"]) == (0, 100)
    assert "parrot" not in plain["notes"]
    assert thought["notes"].endswith("reasoner=parrot, templates=1, think_when=auto, traced=12, not whole=0")
    earlier = json.loads((tmp_path / "results.json").read_text())
    for name in ("traced", "cut", "malformed", "empty"):
        del earlier["metrics"]["image"]["GQA"]["thinking"][name]
    assert "| – | – | hit@1 | 12 |" in markdown(earlier)
    write_results(earlier, tmp_path)
    assert "traced" not in (tmp_path / ".eval_results" / "mmeb-v1.yaml").read_text()


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
