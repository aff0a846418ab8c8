"""What a reasoner wrote, behind the input, in the assistant's turn."""

from __future__ import annotations

import copy

import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoProcessor

from hf_mmembed.model import Row, registration  # noqa: F401
from tests.tiny_families import FAMILIES

TRACE = "<think> two discs </think> red disc"


def chat(text, trace=None):
    turns = [{"role": "user", "content": [{"type": "text", "text": text}]}]
    return turns if trace is None else [*turns, {"role": "assistant", "content": trace}]


@pytest.fixture(scope="module")
def processor(embedder):
    return AutoProcessor.from_pretrained(embedder("qwen2_vl"))


@pytest.mark.parametrize("family", FAMILIES)
def test_trace_follows_everything_else_and_its_end_is_pooled(family, embedder):
    processor = AutoProcessor.from_pretrained(embedder(family))
    without, with_trace = processor.apply_chat_template([chat("a disc"), chat("a disc", TRACE)], task="query")
    assert with_trace == without + TRACE + processor.tokenizer.eos_token
    ids = processor(text=["a disc"], trace=[TRACE], task="query")["input_ids"][0]
    assert ids[-1] == processor.tokenizer.eos_token_id


def test_no_trace_and_an_empty_one_are_the_same(processor):
    assert processor.apply_chat_template(chat("a disc", "")) == processor.apply_chat_template(chat("a disc"))


def test_chat_markup_in_a_trace_is_words_but_its_tags_stay(processor):
    rendered = processor.apply_chat_template(chat("a disc", "<think> x <|im_end|> </think> <|image_pad|>"))
    assert rendered.endswith("<think> x < |im_end|> </think> < |image_pad|>" + processor.tokenizer.eos_token)


def test_tags_stay_where_they_are_control_tokens(processor):
    processor = copy.deepcopy(processor)
    processor.tokenizer.add_tokens(["<think>", "</think>"], special_tokens=True)
    (rendered,) = processor.render([Row((), "</think>", None, TRACE)])
    assert rendered.endswith(TRACE + processor.tokenizer.eos_token) and "< /think>" in rendered


def test_a_long_trace_loses_its_start_and_the_query_nothing(processor):
    query = "a red disc left of a blue box"
    limit = len(processor(text=[query], task="query")["input_ids"][0]) + 20
    ids = processor(text=[query], trace=["word " * 500 + "the conclusion"], task="query", max_length=limit)[
        "input_ids"
    ]
    read = processor.tokenizer.decode(ids[0])
    assert len(ids[0]) == limit and query in read
    assert read.endswith("the conclusion" + processor.tokenizer.eos_token)


@pytest.mark.parametrize("spare", [0, 1])
def test_a_trace_that_does_not_fit_at_all_is_left_out(spare, processor):
    query = "a red disc"
    limit = len(processor(text=[query], task="query")["input_ids"][0]) + spare  # the end of a turn takes one token
    assert (
        processor(text=[query], trace=["x" * 50], task="query", max_length=limit)["input_ids"]
        == (processor(text=[query], task="query")["input_ids"])
    )


def test_words_are_cut_where_leaving_out_the_trace_is_not_enough(processor):
    limit = len(processor(text=[""])["input_ids"][0]) + 4
    (row,) = processor(text=["a word"], trace=["so"], max_length=limit)["input_ids"]
    assert row == processor(text=["a wo"])["input_ids"][0]


def test_a_trace_is_cut_between_characters_that_take_several_tokens(processor):
    whole = processor(text=["a"], trace=["🙂🙂"])["input_ids"][0]
    assert processor._shortened(Row((), "a", None, "🙂🙂"), 0, len(whole), len(whole) - 1).trace == "🙂"


@pytest.mark.parametrize(
    "turn", [chat("b"), [{"role": "assistant", "content": "b"}], [{"role": "system", "content": "b"}]]
)
def test_nothing_follows_a_trace(processor, turn):
    with pytest.raises(ValueError, match="after the assistant's"):
        processor.apply_chat_template([*chat("a", "x"), *turn])


def test_as_many_traces_as_inputs(processor):
    with pytest.raises(ValueError, match="`trace` has 1 elements for 2 inputs"):
        processor(text=["a", "b"], trace=["x"])


def test_plain_sentence_transformers_reads_it(embedder):
    path = embedder("qwen2_vl")
    plain, model = SentenceTransformer(str(path), device="cpu"), AutoModel.from_pretrained(path)
    batch = AutoProcessor.from_pretrained(path)(text=["a disc"], trace=[TRACE], task="query", return_tensors="pt")
    expected = model(**batch).embeddings
    assert torch.allclose(plain.encode_query([chat("a disc", TRACE)], convert_to_tensor=True), expected, atol=1e-6)
    assert not torch.allclose(plain.encode_query([chat("a disc")], convert_to_tensor=True), expected, atol=1e-2)
