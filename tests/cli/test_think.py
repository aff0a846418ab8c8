from __future__ import annotations

import json
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO

import pytest

from hf_mmembed import opening
from hf_mmembed.cli.main import main
from hf_mmembed.thinking.recipes import _is_gone, _untrained, load_thinking_recipe, thinking_recipe_names
from hf_mmembed.thinking.traces import TraceStore
from tests.forks import in_processes


def run(*words) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return stop.value.code


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [{"query": f"thing {i}", "positive": f"number {i}"} for i in range(4)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_think_goes_on_where_it_was(data, generative, tmp_path, capsys):
    words = ["think", generative("qwen2_vl"), data, tmp_path / "t.sqlite", "--max-new-tokens", 3, "--device", "cpu"]
    assert run(*words, "--limit", 1, "--side", "query") == 0
    assert "1 new traces, 0 kept" in capsys.readouterr().out
    assert run(*words) == 0
    out, err = capsys.readouterr()
    assert "7 new traces, 1 kept" in out and "tokens/s" in out
    assert "none has the form <think>" in err and "into another file" in err  # of three tokens
    with TraceStore(tmp_path / "t.sqlite") as store:
        assert len(store) == 8 and {side for side, _ in store.by_content()} == {"query", "document"}


def test_processes_share_the_work_and_one_says_what_all_did(data, generative, tmp_path):
    words = ["think", generative("qwen2_vl"), data, tmp_path / "t.sqlite", "--max-new-tokens", 3, "--side", "query"]

    def said(rank):
        with redirect_stdout(StringIO()) as out:
            assert run(*words) == 0
        return out.getvalue().splitlines()

    first, other = in_processes(said, store=tmp_path / "store")
    assert first[0].startswith("4 new traces, 0 kept, ") and other == []


def test_ctrl_c_says_how_to_go_on(data, generative, tmp_path, monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_mmembed.thinking.filling.think_about_pairs", interrupted)
    words = ["think", generative("qwen2_vl"), data, tmp_path / "t.sqlite", "--device", "cpu"]
    assert run(*words) == 130
    assert f"stopped; 0 traces are kept in {tmp_path}" in capsys.readouterr().err


def test_pictures_are_scaled_down_here_or_by_the_server(data, generative, tmp_path, capsys):
    words = ["think", generative("qwen2_vl"), data, tmp_path / "t.sqlite", "--longest-edge", 1024]
    assert run(*words, "--limit", 1, "--side", "query", "--max-new-tokens", 3, "--device", "cpu") == 0
    with TraceStore(tmp_path / "t.sqlite") as store:
        [origin] = store.origins()
    assert json.loads(origin.settings)["longest_edge"] == 1024
    assert run(*words, "--endpoint", "http://127.0.0.1:9/v1") == 2
    assert "the server decides" in capsys.readouterr().err


def test_missing_endpoint(data, tmp_path, capsys):
    code = run("think", "teacher", data, tmp_path / "t.sqlite", "--endpoint", "http://127.0.0.1:9/v1")
    assert code == 1 and "cannot be reached" in capsys.readouterr().err


@pytest.mark.parametrize("family", [["video"], ["qa", "content"]])
def test_wrong_families(family, data, generative, tmp_path):
    options = [word for name in family for word in ("--family", name)]
    assert run("think", generative("qwen2_vl"), data, tmp_path / "t.sqlite", *options) in (1, 2)


def test_recipes_that_ship():
    assert thinking_recipe_names() == ["tte-embedder", "tte-sft", "tte-unified"]
    assert {load_thinking_recipe(name).variant for name in thinking_recipe_names()} == {"sft", "embedder", "unified"}
    assert {load_thinking_recipe(name).data["split"] for name in thinking_recipe_names()} == {"original"}
    training = load_thinking_recipe("tte-embedder").training
    assert (training["lora_rank"], training["lora_alpha"], training["temperature"]) == (16, 64, 0.02)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [({"heads": 1}, "unknown key heads; did you mean head"), ({"training.learningrate": 1}, "learning_rate"),
     ({"data.splits": "original"}, "unknown key data.splits; did you mean data.split"),
     ({"data": "pairs.jsonl"}, "data must be a mapping, not str"), ({"data": {"split": "original"}}, "lacks data.source"),
     ({"variant": "other"}, "variant is 'other'")],
)  # fmt: skip
def test_wrong_recipes(overrides, message):
    with pytest.raises(ValueError, match=message):
        load_thinking_recipe("tte-sft", overrides)


@pytest.mark.parametrize("recipe", ["tte-sft", "tte-embedder", "tte-unified"])
def test_one_command_trains_each_variant(recipe, data, generative, tmp_path, monkeypatch, caplog):
    import torch

    from hf_mmembed.data.pairs import read_pairs
    from hf_mmembed.thinking.filling import think_about_pairs
    from tests.thinking.conftest import Parrot

    with TraceStore(tmp_path / "t.sqlite") as store:
        think_about_pairs(store, Parrot(), read_pairs(data))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    settings = {"max_steps": 1}
    if recipe == "tte-sft":
        settings |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}
    else:
        settings |= {"global_batch_size": 4, "use_dora": False}
    words = ["--model", generative("qwen2_vl"), "--data", data, "--traces", tmp_path / "t.sqlite"]
    words += ["--output", tmp_path / "run"]
    words += [word for key, value in settings.items() for word in ("--set", f"training.{key}={value}")]
    words += ["--set", "head_options.layers=1"] if recipe == "tte-unified" else []
    assert run("think-train", recipe, *words) == 0
    assert (tmp_path / "run" / "model").is_dir() and caplog.text.count("without bf16") == 1
    if recipe == "tte-unified":
        begun_with = json.loads((tmp_path / "run" / "run.json").read_text())["depends_on"]
        assert "model.safetensors" in begun_with["reasoner"] and begun_with["traces"]["reasoner"] == "parrot"


def test_a_head_is_the_one_that_the_recipe_names(data, generative, tmp_path):
    values = {"model": str(generative("qwen2_vl")), "head": "mlp", "head_options": {}, "families": "qa"}
    recipe = load_thinking_recipe("tte-unified", values)
    made = tmp_path / "untrained"
    _untrained(replace(recipe, head="last_token"), made, resume=False)
    _untrained(recipe, made, resume=False)  # begun anew: not the head of the run before
    config = json.loads((made / "config.json").read_text())
    assert config["head"] == "mlp"
    assert "Answer the question." in (made / "processor_config.json").read_text()
    before = (made / "model.safetensors").stat().st_mtime_ns
    _untrained(recipe, made, resume=True)
    assert (made / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="has the head 'mlp' .* the recipe 'qformer'"):
        _untrained(replace(recipe, head="qformer"), made, resume=True)
    (tmp_path / "checkpoint-1").mkdir()
    with pytest.raises(ValueError, match="has the head 'mlp' .* the recipe 'qformer'"):
        _untrained(replace(recipe, head="qformer"), made, resume=False)  # the run can still be resumed


def test_a_directory_that_is_gone_is_told_from_a_name_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "cached_file", lambda name, *_, **__: name if name == "org/reasoner" else None)
    (tmp_path / "runs" / "there").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    names = {
        str(tmp_path): False,
        str(tmp_path / "gone"): True,
        "./gone": True,
        "a/b/gone": True,
        "runs/gone": True,
        "runs/gone by now--2": True,  # no name for the Hub at all
        "runs/there": False,
        "org/reasoner": False,
    }
    assert {name: _is_gone(name) for name in names} == names


def test_several_processes_make_one_head(generative, tmp_path):
    recipe = load_thinking_recipe("tte-unified", {"model": str(generative("qwen2_vl")), "head_options": {"layers": 1}})
    made = in_processes(
        lambda rank: str(_untrained(recipe, tmp_path / "made", resume=False)), store=tmp_path / "store"
    )
    assert made == [str(tmp_path / "made")] * 2
    with pytest.raises(AssertionError, match="copy 9 layers"):  # both are told, or the second would wait for ever
        wrong = replace(recipe, head_options={"layers": 9})
        in_processes(lambda rank: _untrained(wrong, tmp_path / "wrong", resume=False), store=tmp_path / "other")


def test_no_traces_yet(data, tmp_path, capsys):
    assert run("think-train", "tte-sft", "--traces", tmp_path / "none.sqlite", "--data", data) == 1
    assert "there are no traces at" in capsys.readouterr().err


@pytest.mark.parametrize("unified", [False, True])
def test_search_shows_and_reads_the_trace(unified, embedder, generative, tmp_path, capsys):
    from PIL import Image

    from hf_mmembed.thinking.unified import make_unified

    model, reasoner = embedder("qwen2_vl"), generative("qwen2_vl")
    if unified:
        model = reasoner = make_unified(reasoner, tmp_path / "unified", head="mlp")
    (tmp_path / "in").mkdir()
    for colour in ("red", "blue"):
        Image.new("RGB", (32, 32), colour).save(tmp_path / "in" / f"{colour}.png")
    assert run("index", model, tmp_path / "in", tmp_path / "index", "--device", "cpu") == 0
    words = ["search", tmp_path / "index", "--text", "red", "--json", "--device", "cpu"]
    capsys.readouterr()
    assert run(*words) == 0
    plain = json.loads(capsys.readouterr().out)
    assert run(*words, "--think", reasoner, "--max-new-tokens", 3) == 0
    shown = capsys.readouterr()
    thought = json.loads(shown.out)
    assert thought["query"]["trace"] and "trace: " in shown.err and "trace" not in plain["query"]
    assert [hit["score"] for hit in thought["hits"]] != [hit["score"] for hit in plain["hits"]]
