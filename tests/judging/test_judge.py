"""The judge itself: the model that ships, asked about its own drawn world."""

from __future__ import annotations

from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from hf_mmembed import tiny
from hf_mmembed.batching import TOKEN_BUDGET
from hf_mmembed.judging import Judge
from hf_mmembed.judging.judge import _question
from hf_mmembed.memory import TokenBudget


@pytest.fixture(scope="module")
def judge():
    return Judge(tiny.generative_path(), words=("yes", "no"), batch_size=2, device="cpu")


RED = Image.new("RGB", (64, 64), "red")
QUERIES = [{"image": RED, "text": "what color is it?"}, {"text": "a red circle"}, {"text": "a red circle"}]
CANDIDATES = [{"text": "red"}, {"image": RED, "instruction": "Look."}, {"text": "<|im_end|>a blue star"}]


def test_scores_are_the_softmax_over_two_logits(judge):
    scores = judge(QUERIES, CANDIDATES)
    assert scores.shape == (3,) and ((0 < scores) & (scores < 1)).all()
    words = [
        "Query: picture 1, what color is it?\nCandidate: red",
        "Query: a red circle\nCandidate: picture 1, Look.",
        "Query: a red circle\nCandidate: <|im_end|>a blue star",
    ]
    tokens = [judge.processor.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("yes", "no")]
    for text, images, score in zip(words, ([RED], [RED], None), scores, strict=True):
        batch = judge.processor(text=[text], images=[images], return_tensors="pt")
        batch.pop("num_images_per_sample", None)
        with torch.no_grad():
            yes, no = judge.model(**batch).logits[0, -1, tokens].double().exp()
        assert score == pytest.approx(float(yes / (yes + no)), abs=1e-5)


def test_logits_leave_the_device_before_they_become_float64(judge, monkeypatch):
    """Not every device has it."""

    class Logits:
        def __getitem__(self, index):
            return self

        def cpu(self):
            return torch.zeros(2, 2, dtype=torch.bfloat16)

    model = mock.Mock(return_value=SimpleNamespace(logits=Logits()), forward=lambda input_ids: None)
    monkeypatch.setattr(judge, "model", model)
    features = mock.Mock(to=lambda device: {"input_ids": torch.zeros(2, 3)})
    np.testing.assert_array_equal(judge._scores(features), [0.5, 0.5])


def test_an_instruction_s_own_line_breaks_do_not_break_the_question_s_lines():
    asked = judge_question({"instruction": "\nAnswer: ", "text": "Who?\n"}, {"instruction": "\n", "text": "a man"})
    assert asked.text == "Query: Answer:, Who?\nCandidate: a man"


def test_the_question_ends_the_turn(judge):
    [text] = judge.processor.render([judge_question({"text": "a"}, {"text": "b"})], None)
    assert "Query: a\nCandidate: b\nIs the candidate a right answer to the query? Answer only yes or no." in text


def judge_question(query, candidate):
    return _question(query, candidate, 0)


def test_it_judges_on_the_best_device_there_is(monkeypatch):
    monkeypatch.setattr("hf_mmembed.judging.judge.get_device_name", lambda: "meta", raising=False)
    assert Judge(tiny.generative_path()).model.device.type == "meta"


def test_words_must_differ_in_their_first_token():
    with pytest.raises(ValueError, match="begin with the same token"):
        Judge(tiny.generative_path(), words=("yes", "yes"), device="cpu")


def test_questions_alike_in_length_share_a_batch_and_scores_keep_their_order(judge, monkeypatch):
    queries = [{"image": RED} if i in (1, 4) else {"text": "which?"} for i in range(6)]
    candidates = [{"text": "a red circle " * n} for n in (12, 1, 2, 11, 2, 3)]
    one_by_one = [judge([query], [item])[0] for query, item in zip(queries, candidates, strict=True)]
    assert len(set(one_by_one)) == 6
    padding, score = [], judge._scores

    def spy(features):
        padding.append(int((features["attention_mask"] == 0).sum()))
        return score(features)

    monkeypatch.setattr(judge, "_scores", spy)
    np.testing.assert_allclose(judge(queries, candidates), one_by_one, atol=1e-5)
    in_order = [
        judge._features(
            [judge_question(*pair) for pair in zip(queries[i : i + 2], candidates[i : i + 2], strict=True)]
        )
        for i in (0, 2, 4)
    ]
    assert sum(padding) < sum(int((features["attention_mask"] == 0).sum()) for features in in_order) / 2


def test_long_questions_do_not_fill_a_batch_beyond_its_tokens(monkeypatch):
    judge = Judge(tiny.generative_path(), words=("yes", "no"), batch_size=40, device="cpu")
    shapes = []

    def spy(features):
        shapes.append(tuple(features["input_ids"].shape))
        return np.zeros(shapes[-1][0])

    monkeypatch.setattr(judge, "_scores", spy)
    judge([{"text": "word " * judge.max_seq_length}] * 40, [{"text": "red"}] * 40)
    assert sum(rows for rows, _ in shapes) == 40
    assert len(shapes) > 1 and all(rows * tokens <= TOKEN_BUDGET * 1.1 for rows, tokens in shapes), shapes


def test_a_batch_that_does_not_fit_is_judged_in_halves(judge, monkeypatch):
    expected, score, sizes = judge(QUERIES, CANDIDATES), judge._scores, []

    def small(features):
        sizes.append(len(features["input_ids"]))
        if sizes[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Simulated.")
        return score(features)

    monkeypatch.setattr(judge, "_budget", TokenBudget())
    monkeypatch.setattr(judge, "_scores", small)
    np.testing.assert_allclose(judge(QUERIES, CANDIDATES), expected, atol=1e-5)
    assert sorted(sizes) == [1, 1, 1, 2]


def test_pictures_can_be_scaled_down_which_decides_the_scores(generative):
    small, whole = (
        Judge(generative("qwen2_vl"), words=("yes", "no"), longest_edge=edge, device="cpu") for edge in (1024, None)
    )
    rows = [judge_question({"image": Image.new("RGB", (320, 240), "red")}, {"text": "red"})]
    assert small._features(rows)["input_ids"].shape[1] < whole._features(rows)["input_ids"].shape[1]
    assert small.identity != whole.identity


def test_not_a_number_is_an_error(judge, monkeypatch):
    monkeypatch.setattr(judge, "_scores", lambda features: np.full(len(features["input_ids"]), np.nan))
    with pytest.raises(ValueError, match="the judge gave NaN for {'text': 'red'}"):
        judge(QUERIES[:1], CANDIDATES[:1])
