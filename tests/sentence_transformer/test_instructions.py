"""What to do with the inputs: one instruction for all, one per input, and prompts stored in the checkpoint."""

from __future__ import annotations

import pytest

from hf_mmembed import MMEmbedder
from tests.sentence_transformer.reference import assert_same, directly


def test_one_for_all_and_one_per_input(model):
    inputs = ["a", {"text": "b", "instruction": "Classify."}, {"text": "c", "instruction": ""}]
    expected = [
        directly(model, text="a", instruction="Find."),
        directly(model, text="b", instruction="Classify."),
        directly(model, text="c"),
    ]
    assert_same(model.encode(inputs, instruction="Find."), expected)
    assert_same(model.encode(inputs, prompt="Find."), expected)


def test_stored_prompts_are_instructions(embedder):
    model = MMEmbedder(str(embedder("qwen2_vl")), prompts={"query": "Find.", "sort": "Sort."}, device="cpu")
    assert_same(model.encode_query("a"), directly(model, text="a", instruction="Find.", task="query"))
    assert_same(model.encode_query("a", instruction="Sort."), model.encode_query("a", prompt_name="sort"))
    assert_same(model.encode_document("a"), directly(model, text="a"))
    assert_same(model.encode("a"), directly(model, text="a"))
    model.default_prompt_name = "sort"
    assert_same(model.encode("a"), directly(model, text="a", instruction="Sort."))
    assert_same(model.encode_document("a"), directly(model, text="a"))


def test_prompt_and_instruction_exclude_each_other(model):
    with pytest.raises(ValueError, match="two names of the same thing"):
        model.encode("a", prompt="Find.", instruction="Find.")


def test_unknown_names_are_errors(model):
    with pytest.raises(ValueError, match="'nothing' not found"):
        model.encode("a", prompt_name="nothing")
    with pytest.raises(ValueError, match="task is 'search'"):
        model.encode(["a"], task="search")
