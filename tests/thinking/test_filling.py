from __future__ import annotations

import pytest
from datasets import Dataset
from PIL import Image

from hf_mmembed.data.pairs import query_of, read_pairs
from hf_mmembed.inputs import as_messages
from hf_mmembed.mining.ids import content_ids
from hf_mmembed.thinking.filling import Thought, fill, think_about_pairs, thoughts_of_pairs
from hf_mmembed.thinking.sft import lessons
from hf_mmembed.thinking.thinker import Thinker
from hf_mmembed.thinking.traced import TracedCollator
from hf_mmembed.thinking.traces import TraceStore
from hf_mmembed.training.collator import ROW, PairCollator
from tests.thinking.conftest import Parrot
from tests.training.conftest import make_pairs


@pytest.fixture
def store() -> TraceStore:
    return TraceStore(":memory:")


def test_only_what_is_missing_is_made(store, parrot, some_pairs):
    first = think_about_pairs(store, parrot, some_pairs, sides=["query"])
    assert (first.new, first.kept, first.tokens) == (6, 0, 42) and parrot.asked == [("content", 4), ("content", 2)]
    again = think_about_pairs(store, parrot, some_pairs)
    assert (again.new, again.kept) == (6, 6)
    assert (think_about_pairs(store, parrot, some_pairs).new, len(store)) == (0, 12)
    other = Parrot("another")
    assert think_about_pairs(store, other, some_pairs).new == 12


def test_processes_share_the_work(store, some_pairs):
    made = [think_about_pairs(store, Parrot(), some_pairs, part=(rank, 4)) for rank in range(4)]
    assert [done.new for done in made] == [4, 4, 2, 2] and len(store) == 12


def test_the_same_input_is_thought_about_once(store, parrot, text_pairs):
    assert (think_about_pairs(store, parrot, text_pairs).new, len(store)) == (4, 4)


def test_each_input_gets_its_own_trace(store, parrot, some_pairs):
    think_about_pairs(store, parrot, some_pairs, families={"odd": "qa"})
    for (_, content), trace in store.by_content().items():
        assert trace.final == content[:6]
    assert {name for name, _ in parrot.asked} == {"qa", "content"}


def test_a_family_that_is_named_wins_over_that_of_the_data_set():
    row = {"query_text": "the dog", "pos_text": "x"}
    pairs = read_pairs(Dataset.from_list([row | {"subset": name} for name in ("MSCOCO", "ImageNet_1K", "photos")]))
    families = [thought.family for thought in thoughts_of_pairs(pairs, sides=["query"])]
    assert families == ["grounding", "classification", "content"]
    families = [thought.family for thought in thoughts_of_pairs(pairs, sides=["query"], families={"MSCOCO": "qa"})]
    assert families == ["qa", "classification", "content"]
    assert {thought.family for thought in thoughts_of_pairs(pairs, sides=["document"])} == {"content"}


def test_negatives_are_documents_too(store, parrot):
    pairs = make_pairs(6, negatives=True)
    done = think_about_pairs(store, parrot, pairs, sides=["document"])
    assert done.new + done.kept == 6 + 6  # one document each, and 0, 1, 2, 0, 1, 2 negatives
    texts = {key: trace.text for key, trace in store.by_content().items()}
    collator = TracedCollator(PairCollator(content_ids(pairs)), texts, dropout=0.0)
    _, documents = collator([{**pairs[row], ROW: row} for row in range(6)])["sides"]
    assert all(turns[-1]["role"] == "assistant" for turns in documents.messages)
    assert len(lessons(pairs, store, sides=["document"])) == 6


def test_what_was_made_before_a_failure_is_kept(store, some_pairs):
    failing = Parrot(fail_after=1)
    with pytest.raises(ConnectionError):
        think_about_pairs(store, failing, some_pairs)
    assert len(store) == 4
    assert think_about_pairs(store, Parrot(), some_pairs).kept == 4


def test_answers_are_shown_only_when_asked_for_and_marked(store, parrot, text_pairs, some_pairs):
    think_about_pairs(store, parrot, text_pairs, sides=["query"], show_answers=True)
    assert all(trace.gold_visible for trace in store.by_content().values())
    assert think_about_pairs(store, parrot, text_pairs, sides=["query"]).new == 2
    with pytest.raises(ValueError, match="row 0, query: its answer is a picture"):
        picture_first = some_pairs.map(lambda row: {"pos_text": ""})
        think_about_pairs(TraceStore(":memory:"), parrot, picture_first, show_answers=True)


def test_answers_are_shown_for_queries_alone(store, parrot, text_pairs):
    think_about_pairs(store, parrot, text_pairs, families="content", show_answers=True)
    assert {(side, trace.gold_visible) for (side, _), trace in store.by_content().items()} == {
        ("query", True),
        ("document", False),
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sides": ["passage"]}, "no side 'passage'"),
        ({"families": "video"}, "no task family 'video'"),
        ({"families": {"odd": "video"}}, "no task family 'video'"),
        ({"families": {"third": "qa"}}, "no subset 'third'"),
    ],
)
def test_wrong_choices(store, parrot, some_pairs, options, message):
    with pytest.raises(ValueError, match=message):
        think_about_pairs(store, parrot, some_pairs, **options)


def test_a_bad_input_is_named(store, parrot, tmp_path):
    thoughts = [Thought("row 7", {"image": str(tmp_path / "gone.png")}, "query", "qa")]
    with pytest.raises(ValueError, match="row 7: .*gone.png"):
        fill(store, parrot, thoughts)


def test_thinker_thinks_where_it_pays(parrot, some_pairs):
    thinker, picture = Thinker(parrot), Image.new("RGB", (8, 8), "red")
    question = as_messages({"image": picture, "text": "How many?"})
    plain = as_messages(query_of(some_pairs[0]))
    asked = thinker([question, plain, question], think="auto", task="query")
    assert asked[0] == asked[2] and asked[0].think == "qa" and asked[1] is None
    assert parrot.asked == [("qa", 1)]
    assert thinker([question], think="auto", task="document") == [None]
    assert [trace.think for trace in thinker([question, plain], think="always", task="document")] == ["content"] * 2
    assert thinker([plain], think="auto", task="query", task_family="grounding")[0].think == "grounding"
    with pytest.raises(ValueError, match="no task family 'video'"):
        thinker([plain], think="auto", task="query", task_family="video")
