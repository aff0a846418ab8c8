"""`MMEmbedder.encode` with traces."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from hf_mmembed import MMEmbedder
from hf_mmembed.thinking.thinker import Thinker
from hf_mmembed.thinking.traces import Trace
from tests.thinking.conftest import Parrot


@pytest.fixture(scope="module")
def model(embedder) -> MMEmbedder:
    return MMEmbedder(embedder("qwen2_vl"), device="cpu")


@pytest.fixture
def thinking(model, parrot):
    model.thinker = Thinker(parrot)
    yield model
    del model.thinker


TEXTS = ["a disc", "a box", "a disc", "a ring"]


def test_traces_of_the_users_own(model):
    plain = model.encode_query(TEXTS)
    traces = ["<think> x </think> y", None, "z", Trace(" ")]
    read, returned = model.encode_query(TEXTS, traces=traces, return_traces=True)
    assert returned == traces
    assert [np.allclose(a, b, atol=1e-5) for a, b in zip(plain, read, strict=True)] == [False, True, False, True]
    chat = [{"role": "user", "content": "a disc"}, {"role": "assistant", "content": "z"}]
    assert np.allclose(model.encode_query([chat])[0], read[2], atol=1e-5)
    assert np.allclose(model.encode_query("a disc", traces="z"), read[2], atol=1e-5)


def test_thinking_always_is_giving_the_traces(thinking):
    vectors, traces = thinking.encode_query(TEXTS, think="always", return_traces=True)
    assert all(trace.think == "content" for trace in traces)
    assert np.allclose(vectors, thinking.encode_query(TEXTS, traces=traces), atol=1e-5)
    assert thinking.thinker.reasoner.asked == [("content", 3)]
    vector, trace = thinking.encode_query(TEXTS[0], think="always", return_traces=True)
    assert np.allclose(vector, vectors[0], atol=1e-5) and trace == traces[0]
    assert len(thinking.thinker.reasoner.asked) == 1


def test_auto_follows_the_family(thinking):
    assert np.array_equal(thinking.encode_query(TEXTS, think="auto"), thinking.encode_query(TEXTS))
    _, traces = thinking.encode_query(TEXTS, think="auto", task_family="qa", return_traces=True)
    assert [trace.think for trace in traces] == ["qa"] * 4
    assert thinking.encode_document(TEXTS, think="auto", return_traces=True)[1] == [None] * 4


def test_a_family_that_is_stored_instruction_counts(thinking):
    _, [one, other] = thinking.encode_query(
        ["a", {"text": "a", "instruction": "Find."}], think="always", return_traces=True
    )
    assert one.final != other.final


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"think": "sometimes"}, "think is 'sometimes'"),
        ({"think": "always"}, "needs a reasoner: set `model.thinker"),
        ({"traces": ["x"]}, "one trace, or None, per input: 4"),
        ({"traces": "abcd"}, "one trace, or None, per input"),
        ({"traces": [None, 3, None, None]}, r"trace of inputs\[1\] is int"),
        ({"traces": [None] * 4, "think": "auto"}, "are there already"),
    ],
)
def test_wrong_choices(model, options, message):
    with pytest.raises(ValueError, match=message):
        model.encode_query(TEXTS, **options)


def test_no_inputs(model):
    vectors, traces = model.encode_query([], return_traces=True)
    assert vectors.shape == (0, 32) and traces == []


def test_a_thinker_stays_behind_when_the_model_travels():
    thinker = Thinker(Parrot())
    assert copy.deepcopy(thinker) is thinker
    assert pickle.loads(pickle.dumps(thinker)).__dict__ == {}  # noqa: S301
