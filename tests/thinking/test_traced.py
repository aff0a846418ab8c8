from __future__ import annotations

from dataclasses import asdict
from functools import partial

import pytest
import torch
from datasets import Dataset

from hf_mmembed.data.pairs import PAIR_FEATURES, read_pairs
from hf_mmembed.mining.ids import content_ids
from hf_mmembed.thinking import traces
from hf_mmembed.thinking.filling import think_about_pairs
from hf_mmembed.thinking.recipes import ThinkingRecipe, train_thinking
from hf_mmembed.thinking.traced import TracedCollator, traced_trainer
from hf_mmembed.thinking.traces import Trace, TraceStore
from hf_mmembed.thinking.unified import make_unified, open_unified
from hf_mmembed.training.arguments import SaHaTrainingArguments
from hf_mmembed.training.collator import ROW, PairCollator
from tests.thinking.conftest import Parrot


@pytest.fixture
def store(parrot, some_pairs) -> TraceStore:
    store = TraceStore(":memory:")
    think_about_pairs(store, parrot, some_pairs)
    return store


def collated(pairs, store, dropout, sides=("query", "document")):
    texts = {key: trace.text for key, trace in store.by_content().items() if key[0] in sides}
    collator = TracedCollator(PairCollator(content_ids(pairs)), texts, dropout)
    return collator([{**pairs[row], ROW: row} for row in range(len(pairs))])["sides"]


def traces_of(side):
    return [turns[-1]["content"] if turns[-1]["role"] == "assistant" else None for turns in side.messages]


def test_every_input_gets_its_trace(store, some_pairs):
    queries, documents = collated(some_pairs, store, 0.0)
    known = {key: trace.text for key, trace in store.by_content().items()}
    assert sorted(traces_of(queries) + traces_of(documents)) == sorted(known.values())


def test_some_are_left_out_at_random(store, some_pairs):
    torch.manual_seed(0)
    kept = [
        trace is not None for _ in range(60) for side in collated(some_pairs, store, 0.25) for trace in traces_of(side)
    ]
    assert 0.68 < sum(kept) / len(kept) < 0.82  # 720 draws: more than four standard deviations


def test_a_side_without_traces_stays_as_it_is(store, some_pairs):
    queries, documents = collated(some_pairs, store, 0.0, sides=["query"])
    assert None not in traces_of(queries) and set(traces_of(documents)) == {None}


def test_a_missing_trace_is_named(store, some_pairs):
    changed = some_pairs.map(lambda row, index: {"query_text": "new"} if index == 4 else row, with_indices=True)
    with pytest.raises(ValueError, match="row 4 has no trace for its query: make it with `hf-mmembed think`"):
        collated(changed, store, 0.0)


def test_what_has_no_trace_is_counted_before_the_first_step(parrot, fresh, tmp_path):
    rows = {
        "query": ["a disc", "a box", "a star"],
        "positive": ["red", "blue", "green"],
        "negative": ["red", "red", "gray"],
    }
    pairs, store, sides = read_pairs(Dataset.from_dict(rows)), TraceStore(":memory:"), ("query", "document")
    make = partial(traced_trainer, fresh(), arguments(tmp_path), pairs, store)
    think_about_pairs(store, parrot, pairs.select([0]), sides=sides[:1])
    with pytest.raises(
        ValueError, match=r"2 of 3 pairs have no trace for their query \(first: row 1\).*hf-mmembed think"
    ):
        make()
    make([[0]])  # no other row occurs in these clusters
    think_about_pairs(store, parrot, pairs, sides=sides[:1])
    make()
    think_about_pairs(store, parrot, pairs.select_columns(list(PAIR_FEATURES)), sides=sides[1:])
    with pytest.raises(ValueError, match=r"1 of 3 pairs .* document, or a negative of it \(first: row 2\)"):
        make()
    think_about_pairs(store, parrot, pairs, sides=sides[1:])
    make()


def test_pictures_without_a_trace_are_counted_and_not_read(parrot, fresh, tmp_path, monkeypatch):
    rows = {"query_text": ["a", "b", "c"], "pos_image": [b"one picture", b"another", b"one picture"]}
    pairs, store = read_pairs(Dataset.from_dict(rows)), TraceStore(":memory:")
    make = partial(traced_trainer, fresh(), arguments(tmp_path), pairs, store)
    think_about_pairs(store, parrot, pairs.select([0]), sides=("document",))
    with (
        monkeypatch.context() as patch,
        pytest.raises(ValueError, match="at least 1 of 2 different documents.* no tr"),
    ):
        patch.setattr(traces, "_media_digest", lambda picture: pytest.fail("a picture is read"))
        make()
    think_about_pairs(store, parrot, pairs, sides=("document",))
    make()


def test_answers_without_a_trace_are_counted(two_answers, fresh, tmp_path):
    store = TraceStore(":memory:")
    think_about_pairs(store, Tattler(), two_answers.select([0, 1]), sides=("query",), show_answers=True)
    with pytest.raises(
        ValueError, match=r"1 of 3 pairs .* query in sight of its answer \(first: row 2\).*--show-answers"
    ):
        traced_trainer(fresh(), arguments(tmp_path), two_answers, store, allow_gold=True)


def arguments(directory, **choices):
    return SaHaTrainingArguments(
        str(directory), max_steps=2, per_device_train_batch_size=6, use_cpu=True, report_to="none", save_strategy="no",
        learning_rate=1e-2, warmup_steps=0, **choices,
    )  # fmt: skip


def test_answers_in_sight_are_an_error_unless_it_is_said(parrot, text_pairs, fresh, tmp_path):
    store = TraceStore(":memory:")
    args = arguments(tmp_path)
    with pytest.raises(ValueError, match="holds no traces"):
        traced_trainer(fresh(), args, text_pairs, store)
    think_about_pairs(store, parrot, text_pairs, show_answers=True)
    with pytest.raises(ValueError, match="2 of 4 traces .* in sight of the answer"):
        traced_trainer(fresh(), args, text_pairs, store)
    assert traced_trainer(fresh(), args, text_pairs, store, allow_gold=True).data_collator.dropout == 0.1


class Tattler(Parrot):
    """Writes down the answer that it is shown."""

    def think(self, inputs, task_family, *, answers=None):
        return [Trace(f"<think> x </think> {answer}", gold_visible=True) for answer in answers]


@pytest.fixture
def two_answers():
    return read_pairs(
        Dataset.from_dict({"query": ["colours?", "a box", "colours?"], "positive": ["red", "blue", "green"]})
    )


def test_each_answer_of_a_query_has_its_own_trace(two_answers, fresh, tmp_path):
    store = TraceStore(":memory:")
    think_about_pairs(store, Tattler(), two_answers, sides=("query",), show_answers=True)
    trainer = traced_trainer(fresh(), arguments(tmp_path), two_answers, store, dropout=0.0, allow_gold=True)
    queries, documents = trainer.data_collator([{**two_answers[row], ROW: row} for row in (2, 1, 0)])["sides"]
    assert [traces_of(queries)[place] for place in queries.places] == [
        f"<think> x </think> {colour}" for colour in ("green", "blue", "red")
    ]
    assert queries.rows == [2, 1, 0] and set(traces_of(documents)) == {None}
    trainer.train()  # in batches of random order
    [other] = read_pairs(Dataset.from_dict({"query": ["a box"], "positive": ["a lid"]}))
    with pytest.raises(ValueError, match="row 1 has no trace for its query in sight of its answer.*--show-answers"):
        trainer.data_collator([{**other, ROW: 1}])


def test_training_an_embedder_on_clusters(store, some_pairs, fresh, tmp_path):
    model = fresh()
    clusters = torch.arange(6).reshape(2, 3).numpy()
    trainer = traced_trainer(model, arguments(tmp_path, lora_rank=0), some_pairs, store, clusters)
    before = {name: value.clone() for name, value in model.named_parameters()}
    trainer.train()
    assert trainer.facts["trace_dropout"] == 0.1 and trainer.facts["traces"] == asdict(store.only_origin())
    assert any(not torch.equal(before[name], value) for name, value in model.named_parameters())


def test_traces_of_documents_are_warned_of(store, parrot, some_pairs, fresh, tmp_path, caplog):
    traced_trainer(fresh(), arguments(tmp_path), some_pairs, store)
    assert "`index`, `embed` and `evaluate` read them without" in caplog.text and "--side query" in caplog.text
    caplog.clear()
    of_queries = TraceStore(":memory:")
    think_about_pairs(of_queries, parrot, some_pairs, sides=("query",))
    traced_trainer(fresh(), arguments(tmp_path), some_pairs, of_queries)
    assert not caplog.text


@pytest.mark.parametrize(
    ("variant", "given", "expected"),
    [("unified", None, 0.0), ("unified", 0.3, 0.3), ("embedder", None, 0.1), ("embedder", 0.0, 0.0)],
)
def test_a_recipe_s_dropout_holds_for_both(
    variant, given, expected, generative, embedder, some_pairs, tmp_path, monkeypatch
):
    class Made(Exception):
        pass

    def trainer(*_, dropout, **__):
        raise Made(dropout)

    monkeypatch.setattr("hf_mmembed.thinking.recipes.traced_trainer", trainer)
    TraceStore(tmp_path / "t.sqlite").close()
    model = (generative if variant == "unified" else embedder)("qwen2_vl")
    recipe = ThinkingRecipe(
        variant, str(model), {}, str(tmp_path / "t.sqlite"), str(tmp_path / "run"), trace_dropout=given,
        head="last_token", training={"use_cpu": True},
    )  # fmt: skip
    with pytest.raises(Made) as made:
        train_thinking(recipe, pairs=some_pairs)
    assert made.value.args == (expected,)


def test_a_reasoner_has_no_trace_dropout():
    with pytest.raises(ValueError, match="trace_dropout is 0.3, but 'sft' learns to write traces; leave it out"):
        ThinkingRecipe("sft", "m", {}, "t", "o", trace_dropout=0.3)


def test_training_a_head_and_nothing_else(store, some_pairs, generative, tmp_path):
    model = open_unified(
        make_unified(generative("qwen2_vl"), tmp_path / "made", head_options={"layers": 1}), device="cpu"
    )
    before = {name: value.clone() for name, value in model.named_parameters()}
    trainer = traced_trainer(model, arguments(tmp_path / "run", lora_rank=0), some_pairs, store, dropout=0.0)
    trainer.train()
    changed = {name for name, value in model.named_parameters() if not torch.equal(before[name], value)}
    assert changed and all(".head." in f".{name}" for name in changed)
    saved = open_unified(trainer.save_result(tmp_path / "result"), device="cpu")
    texts = ["a disc", "a box"]
    assert torch.allclose(
        saved.encode(texts, convert_to_tensor=True), model.encode(texts, convert_to_tensor=True), atol=1e-5
    )
