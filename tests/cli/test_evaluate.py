"""The commands around evaluation: what they print, and their exit codes."""

from __future__ import annotations

import json
from importlib import resources

import pytest

from hf_mmembed.cli import evaluate as command
from hf_mmembed.cli.main import main
from tests.evaluation import layouts
from tests.evaluation.test_scoreboard import leaderboard
from tests.evaluation.test_thinking import GQA, reader, store_of
from tests.thinking.test_endpoint import server  # noqa: F401 - a fixture


def call(*words):
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    return stopped.value.code


def test_ctrl_c_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_mmembed.evaluation.evaluate", interrupted)
    assert call("evaluate", "some-model", "--benchmark", "mmeb-v1", "--data", tmp_path) == 130
    assert "stopped; finished work is kept: the same" in capsys.readouterr().err


def test_a_model_is_measured_without_naming_the_subcommand(tmp_path, monkeypatch, capsys):
    import hf_mmembed.evaluation.run as run

    layouts.write_small_v1(tmp_path / "data")
    monkeypatch.setattr(run, "load_encoder", lambda model, **options: layouts.oracle())
    words = [
        "evaluate",
        "some-model",
        "--benchmark",
        "mmeb-v1",
        "--data",
        tmp_path / "data",
        "--out",
        tmp_path / "out",
    ]
    assert call(*words) == 0
    printed = capsys.readouterr().out
    assert "| GQA | 100.0 | hit@1 | 12 |" in printed and "**Partial run:**" in printed
    assert json.loads((tmp_path / "out" / "results.json").read_text())["metrics"]["image"]["GQA"]["hit@1"] == 1
    assert call(*words, "--subset", "GQA_") == 1
    assert "did you mean 'GQA'" in capsys.readouterr().err
    assert call(*words, "--subset", "VizWiz", "--subset", "GQA") == 1
    captured = capsys.readouterr()
    assert "failed: VizWiz: nothing in" in captured.err and "| GQA |" in captured.out


def test_results_of_two_trainings_lie_apart(tmp_path, monkeypatch, capsys):
    def opened(model, *, name, **options):
        return layouts.Fake(layouts.oracle().vector, name)

    monkeypatch.setattr("hf_mmembed.evaluation.run.load_encoder", opened)
    monkeypatch.chdir(tmp_path)
    layouts.write_small_v1(tmp_path / "data", rows=1, candidates=2)
    for model in ("saha/model", "unime/stage-1/model"):
        (tmp_path / model).mkdir(parents=True)
    called = {"saha/model": "saha", "unime/stage-1/model": "unime/stage-1", "someone/model": "someone/model"}
    for model, name in called.items():
        assert call("evaluate", model, "--benchmark", "mmeb-v1", "--data", "data", "--subset", "GQA") == 0
        folder = tmp_path / "results" / name.replace("/", "--") / "mmeb-v1"
        assert f"results: {folder.relative_to(tmp_path)}" in capsys.readouterr().out
        assert json.loads((folder / "results.json").read_text())["metadata"]["model_name"] == name


def test_thinking_is_scored_too(tmp_path, monkeypatch, capsys):
    import hf_mmembed.evaluation.run as run
    from hf_mmembed.evaluation.mmeb_image import read_v1

    layouts.write_small_v1(tmp_path / "data")
    monkeypatch.setattr(run, "load_encoder", lambda model, **options: reader())
    store_of(read_v1(tmp_path / "data", GQA, "user").queries, tmp_path / "traces.sqlite").close()
    words = ["evaluate", "some-model", "--benchmark", "mmeb-v1", "--data", tmp_path / "data", "--subset", "GQA"]
    assert call(*words, "--out", tmp_path / "out", "--think", tmp_path / "traces.sqlite") == 0
    # Every trace says 3, which is right for one query of twelve.
    assert "| GQA | 0.0 | 8.3 | 5 | – | 12 | 0 | hit@1 | 12 |" in capsys.readouterr().out
    assert call("evaluate", "aggregate", tmp_path / "out" / "results.json") == 0
    assert "[score with thinking]" in capsys.readouterr().out


def test_a_reasoner_is_asked_as_by_think(tmp_path, monkeypatch, server):  # noqa: F811
    import hf_mmembed.evaluation.run as run

    seen_by = layouts.Fake(lambda item: layouts.one_hot(len(item.trace or "")))
    monkeypatch.setattr(run, "load_encoder", lambda model, **options: seen_by)
    layouts.write_small_v1(tmp_path / "data", rows=2, candidates=2)
    templates = resources.files("hf_mmembed.thinking").joinpath("templates-v1.yaml").read_text()
    own = templates.replace('version: "1"', "version: mine").replace("Answer the question", "Guess the answer")
    (tmp_path / "mine.yaml").write_text(own)
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    words = ["evaluate", "some-model", "--benchmark", "mmeb-v1", "--data", tmp_path / "data", "--subset", "GQA"]
    words += ["--out", tmp_path / "out", "--think", "teacher", "--endpoint", url, "--api-key", "sesame"]
    words += ["--think-revision", "v2", "--templates", tmp_path / "mine.yaml", "--max-new-tokens", 9]
    assert call(*words, "--temperature", 0.5, "--seed", 4) == 0
    _, key, body = server.seen[-1]
    assert (key, body["model"], body["max_tokens"]) == ("Bearer sesame", "teacher", 9)
    assert (body["temperature"], body["seed"]) == (0.5, 4)
    assert "Guess the answer" in body["messages"][-1]["content"][-1]["text"]
    thinking = json.loads((tmp_path / "out" / "results.json").read_text())["metadata"]["thinking"]
    assert thinking["reasoner"] == "teacher" and thinking["revision"] == "v2"
    assert thinking["template_version"].startswith("mine-") and '"temperature": 0.5' in thinking["settings"]


def test_options_of_a_reasoner_need_one(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_MMEMBED_API_KEY", "sesame")
    store_of([], tmp_path / "t.sqlite").close()
    words = ["evaluate", "some-model", "--benchmark", "mmeb-v1", "--data", tmp_path]

    def refused(*more):
        assert call(*words, *more) == 2
        return " ".join(capsys.readouterr().err.replace("│", "").split())  # without the frame

    assert "--temperature: it has no effect, since there is no --think with a reasoner" in refused("--temperature", 1)
    told = refused("--think", tmp_path / "t.sqlite", "--think-revision", "v2", "--templates", "2")
    assert "--think-revision, --templates: it has no effect" in told and "written already" in told
    served = ["--think", "teacher", "--endpoint", "http://127.0.0.1:9/v1"]
    assert "--think-longest-edge: the server decides" in refused(*served, "--think-longest-edge", 9)


def test_averages_of_a_leaderboard_file(tmp_path, capsys):
    results = leaderboard()
    (tmp_path / "a.json").write_text(json.dumps(results))
    assert call("evaluate", "aggregate", tmp_path / "a.json") == 0
    lines = dict(line.rsplit(None, 1) for line in capsys.readouterr().out.splitlines())
    image = [row["hit@1"] for row in results["metrics"]["image"].values()]
    assert lines["image"] == f"{100 * sum(image) / 36:.2f}"
    assert {"video", "visdoc", "overall (flat mean over data sets)", "macro mean over meta-tasks"} < set(lines)
    del results["metrics"]["visdoc"]
    (tmp_path / "b.json").write_text(json.dumps(results))
    assert call("evaluate", "aggregate", tmp_path / "b.json") == 0
    printed = capsys.readouterr().out
    assert "visdoc" in printed and "partial (0 of 24)" in printed and "partial (54 of 78)" in printed


def test_two_results_beside_each_other(tmp_path, capsys):
    for name, seed in (("a", 0), ("b", 1)):
        (tmp_path / f"{name}.json").write_text(json.dumps(leaderboard(seed)))
    assert call("evaluate", "compare", tmp_path / "a.json", tmp_path / "b.json") == 0
    assert "| GQA |" in capsys.readouterr().out
    (tmp_path / "b.json").write_text("{}")
    assert call("evaluate", "compare", tmp_path / "a.json", tmp_path / "b.json") == 1
    assert "no results file" in capsys.readouterr().err


def test_help_shows_the_ways_in(capsys):
    assert call("evaluate", "--help") == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("compare", "aggregate", "run"))
    assert command.__all__ == ["evaluate"]
