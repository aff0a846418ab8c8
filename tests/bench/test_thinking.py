"""Riddles, their oracle, and the experiment on them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from hf_mmembed import tiny
from hf_mmembed.bench import thinking
from hf_mmembed.bench.riddles import TASKS, as_pairs, build_riddles, draw_riddles
from hf_mmembed.bench.thinking import ARMS, ThinkingPlan, run_thinking
from hf_mmembed.bench.thinking_heads import HEADS, Heads
from hf_mmembed.bench.thinking_report import harm, markdown, mean_score, plot
from hf_mmembed.cli.main import main
from hf_mmembed.data.captions import NUMBERS, plural_of
from hf_mmembed.data.pairs import query_of
from hf_mmembed.thinking.traces import Trace


@pytest.fixture(scope="module")
def riddles():  # type: ignore[no-untyped-def]
    return draw_riddles(0, blocks=4, size=6)


def test_blocks_are_of_one_task_and_no_answer_comes_twice(riddles) -> None:  # type: ignore[no-untyped-def]
    assert [riddle.task for riddle in riddles] == [task for task in TASKS for _ in range(6)]
    assert all(len({riddle.answer for riddle in riddles[start : start + 6]}) == 6 for start in range(0, 24, 6))
    assert [riddle.trace for riddle in draw_riddles(0, blocks=4, size=6)] == [riddle.trace for riddle in riddles]
    assert [riddle.trace for riddle in draw_riddles(1, blocks=4, size=6)] != [riddle.trace for riddle in riddles]


def test_the_oracle_concludes_what_the_target_shows(riddles) -> None:  # type: ignore[no-untyped-def]
    for riddle in riddles:
        trace = Trace(riddle.trace)
        assert trace.status == "complete"
        if riddle.task in ("relation", "count"):
            number, shape, color = riddle.answer
            named = f"{color} {shape}" if number == 1 else f"{NUMBERS[number]} {color} {plural_of(shape)}"
            assert trace.final.removeprefix("an ").removeprefix("a ") == named
        if riddle.task == "relation":  # the one that the query names is not the answer
            assert f"{color} {shape}" not in riddle.text
        if riddle.task == "composed":
            assert trace.final not in trace.think and riddle.distractor is not None


def test_pairs_hold_the_same(riddles) -> None:  # type: ignore[no-untyped-def]
    pairs = as_pairs(riddles)
    assert pairs["subset"] == [riddle.task for riddle in riddles]
    assert [query_of(row)["text"] for row in pairs.with_format(None)] == [riddle.text for riddle in riddles]
    assert [image is None for image in pairs["query_image"]] == [riddle.picture is None for riddle in riddles]


def test_the_test_has_one_right_picture_for_each_query() -> None:
    test = build_riddles(0, queries=5)
    assert {task: len(part.pictures) for task, part in test.items()} == {
        "relation": 64, "count": 192, "composed": 10, "caption": 10
    }  # fmt: skip
    for task in ("composed", "caption"):
        part = test[task]
        assert all(part.pictures[place] is r.target for place, r in zip(part.right, part.riddles, strict=True))
    again = build_riddles(0, queries=5)
    assert all(part.right == again[task].right for task, part in test.items())


def test_all_heads_learn_at_once_and_the_one_pass_is_the_same(riddles) -> None:  # type: ignore[no-untyped-def]
    memory: dict[bytes, torch.Tensor] = {}
    heads = Heads(tiny.generative_path(), memory, seed=0)
    before = {name: [w.clone() for w in model.head.parameters()] for name, model in heads.models.items()}
    frozen = [weight.clone() for weight in heads.reasoner.parameters()]
    heads.train(riddles, block=6, steps=1, learning_rate=1e-3, temperature=0.1)
    for name, model in heads.models.items():
        assert any(not torch.equal(a, b) for a, b in zip(before[name], model.head.parameters(), strict=True)), name
    assert all(torch.equal(a, b) for a, b in zip(frozen, heads.reasoner.parameters(), strict=True))
    assert 12 < len(memory) <= 24  # twelve targets, and the pictures of the queries that have one
    some = [riddle for riddle in riddles if riddle.task == "relation"][:2]
    for name in ("mlp", "qformer", "self_init(3)"):
        with torch.no_grad():
            model = heads.models[name]
            output = model.think_and_embed(**heads._query_batch(some, None), max_new_tokens=4)
        texts = heads.processor.tokenizer.batch_decode(output.trace_ids, skip_special_tokens=True)
        read = heads.embed(some, texts)[name]
        assert np.allclose(heads.think_and_embed(name, some, max_new_tokens=4), output.embeddings, atol=1e-4)
        assert (read * output.embeddings.numpy()).sum(1).min() > 0.99
    assert heads.embed_pictures([some[0].target])["mlp"].shape == (1, 256)
    assert set(heads.models) == set(HEADS)


def test_an_arm_is_trained_and_measured(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    small = {task: part for task, part in build_riddles(0, queries=2).items() if task in ("composed", "caption")}
    monkeypatch.setattr(thinking, "build_riddles", lambda *_, **__: small)
    monkeypatch.setattr(thinking, "draw_riddles", lambda seed, blocks: draw_riddles(seed, blocks=blocks, size=2))
    plan = ThinkingPlan(
        str(tiny.checkpoint_path()), str(tiny.generative_path()), steps=1, blocks=4, queries=2, timed=1
    )
    [result] = run_thinking(tmp_path, plan, seeds=[0], arms=["direct"])
    [row] = result["rows"]
    assert set(row["scores"]) == {"composed", "caption"} and row["tokens"] == 0 and row["milliseconds"] > 0
    bench = thinking._Bench(tmp_path, plan, 0, small, {})
    assert bench._shuffled(["a", "b", "c", "d"]) == ["b", "a", "d", "c"]
    store, origin = bench._traces_of(bench.oracle)
    assert {trace.raw for trace in store.by_content(origin).values()} == {riddle.trace for riddle in bench.riddles}


def row_of(name: str, score: float) -> dict[str, object]:
    scores = {"relation": score, "count": score, "composed": score + 3, "caption": 90 - score}
    return {"row": name, "scores": scores, "right": 50.0, "tokens": 10.0, "milliseconds": score + 1}


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """A bench that trains nothing and says what it was asked."""
    asked: list[tuple[str, int]] = []

    class Bench:
        def __init__(self, out, plan, seed, test, memory) -> None:  # type: ignore[no-untyped-def]
            self.seed = seed

        def run(self, arm: str) -> list[dict[str, object]]:
            if arm == "shipped" and self.seed == 1 and len(asked) == 6:
                raise KeyboardInterrupt
            asked.append((arm, self.seed))
            return [row_of(arm, 10.0 * ARMS.index(arm) + self.seed)]

    monkeypatch.setattr(thinking, "_Bench", Bench)
    monkeypatch.setattr(thinking, "build_riddles", lambda *_, **__: {})
    return asked


def test_a_killed_experiment_goes_on_and_the_command_prints_the_table(runs, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    words = ["bench", "thinking", "--model", "m", "--reasoner", "r", "--out", str(tmp_path), "--seeds", "2"]
    words += ["--trace-dropout", "0.3"]
    with pytest.raises(SystemExit):
        main(words)
    assert runs[-1] == ("oracle", 1)
    runs.append(("interrupted", 0))
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert json.loads((tmp_path / "plan.json").read_text())["trace_dropout"] == 0.3
    assert not stop.value.code and runs[7:] == [("shipped", 1), ("unified", 1)]
    table = (tmp_path / "thinking.md").read_text(encoding="utf-8")
    assert table in capsys.readouterr().out and "| oracle | 10.5 ± 0.7 | 10.5 ± 0.7 | 13.5 ± 0.7 | 79.5" in table
    assert Image.open(tmp_path / "thinking.png").format == "PNG"
    with pytest.raises(ValueError, match="another plan"):
        run_thinking(tmp_path, ThinkingPlan("m", "r", steps=1), seeds=[0])


def test_an_unknown_arm_is_wrong_usage(capsys) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SystemExit) as stop:
        main(["bench", "thinking", "--arms", "oracle,gold"])
    assert stop.value.code == 2 and "shipped" in capsys.readouterr().err


def test_where_it_hurts_is_said(tmp_path) -> None:  # type: ignore[no-untyped-def]
    results = [
        {"arm": name, "seed": 0, "rows": [row_of(name, score)]} for name, score in (("direct", 20.0), ("x", 30.0))
    ]
    assert mean_score(results[0]["rows"][0]) == 21.0
    assert harm(results)[0] == "- below direct on relation: nothing"
    assert harm(results)[-1] == "- below direct on caption: x -10.0" and harm(results)[-1] in markdown(results)
    assert harm(results[1:]) == []
    plot(results, tmp_path / "plot.png")
    assert Image.open(tmp_path / "plot.png").width > 500
