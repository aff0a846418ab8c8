"""Every script runs on tiny data, and says in its header what it needs."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from hf_mmembed.cli.main import main
from hf_mmembed.data.drawings import draw_folder
from hf_mmembed.mining import Clusters
from hf_mmembed.scripts import convert_and_push, evaluate, finetune_saha, mine
from hf_mmembed.sentence_transformer import MMEmbedder

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path for path in (ROOT / "hf_mmembed" / "scripts").glob("*.py") if path.stem != "__init__")


@pytest.fixture(scope="module")
def drawings(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawings")
    draw_folder(folder, 24, split="mine", pixels=32)
    return folder


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_header_and_the_command_are_right(script):
    source = script.read_text(encoding="utf-8")
    header = re.search(r"(?m)^# /// script$\n((?:^#.*$\n)+?)^# ///$", source)
    assert header, "no PEP 723 header"
    needs = tomllib.loads("\n".join(line.removeprefix("#").strip() for line in header[1].splitlines()))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert needs["requires-python"] == project["requires-python"]
    [requirement] = map(Requirement, needs["dependencies"])
    assert requirement.name == project["name"] and requirement.extras <= set(project["optional-dependencies"])
    docstring = ast.get_docstring(ast.parse(source)) or ""
    assert f"uv run {script.name}" in docstring
    # Nothing heavy at the top, so that `--help` is quick; what a flag in the docstring is called, the parser knows.
    heavy = [node for node in ast.parse(source).body if isinstance(node, ast.ImportFrom) and "hf_mmembed" in (node.module or "")]  # fmt: skip
    assert not heavy
    known = set(re.findall(r'add_argument\(\s*"(--[\w-]+)"', source))
    used = set(re.findall(r"(?<=\s)--[\w-]+", docstring))
    assert used - known <= {
        "--flavor",
        "--timeout",
        "--secrets",
        "--number",
        "--repo-type",
        "--local-dir",
        "--help",
        "--clusters",
    }


def test_convert_and_push(generative, tmp_path, monkeypatch):
    pushed = []
    monkeypatch.setattr("hf_mmembed.hub.push", lambda *args, **kwargs: pushed.append((args, kwargs)) or _Commit)
    words = ["--base", str(generative("qwen2_vl")), "--out", str(tmp_path / "out"), "--push", "org/name", "--private"]
    written = convert_and_push.main(words)
    assert MMEmbedder(written, device="cpu").encode("a").ndim == 1
    assert pushed == [((written, "org/name"), {"private": True})]


class _Commit:
    commit_url = "somewhere"


def test_mine_goes_on_with_the_embeddings_of_the_command(embedder, drawings, tmp_path):
    model, out = str(embedder("qwen2_vl")), tmp_path / "c"
    with pytest.raises(SystemExit, match="0"):
        main(["mine", model, str(drawings), str(out), "-k", "3"])
    before = sorted(out.rglob("shard-*.npy"))
    clusters = Clusters.load(mine.main(["--model", model, "--data", str(drawings), "--out", str(out), "--k", "3"]))
    assert clusters.rows.shape[1] == 4 and len(clusters) >= 4
    assert before and sorted(out.rglob("shard-*.npy")) == before


def test_finetune(embedder, drawings, tmp_path):
    result = finetune_saha.main(
        [
            *("--recipe", "saha-tiny", "--model", str(embedder("qwen2_vl")), "--data", str(drawings)),
            *("--output", str(tmp_path / "run"), "--set", "training.max_steps=1"),
            *("--set", "training.global_batch_size=8", "--set", "mining.k=3"),
            *("--set", "training.dataloader_num_workers=0"),
        ]
    )
    assert MMEmbedder(result, device="cpu").encode("a red star").ndim == 1


def test_finetune_reads_the_split_of_your_data_not_of_the_recipe_s(monkeypatch, tmp_path):
    monkeypatch.setattr("hf_mmembed.training.recipes.train", lambda recipe, pairs: recipe)
    monkeypatch.setattr("hf_mmembed.data.pairs.read_pairs", lambda **_: range(5))
    words = ["--data", "my-name/my-captions", "--output", str(tmp_path)]
    assert finetune_saha.main(words).data == {"source": "my-name/my-captions", "split": "train"}
    assert finetune_saha.main([*words, "--split", "all"]).data["split"] == "all"


@pytest.mark.parametrize(
    ("pairs", "flags", "expected"),
    [
        (5_000, {}, {"max_steps": -1, "num_train_epochs": 3, "global_batch_size": 128, "warmup_steps": 0.1}),
        (3, {}, {"global_batch_size": 32}),
        (700_000, {}, {"global_batch_size": 2048}),
        (5_000, {"max_steps": 9}, {"max_steps": 9, "global_batch_size": 128, "warmup_steps": 100}),
        (5_000, {"num_train_epochs": 1, "max_steps": -1}, {"num_train_epochs": 1, "max_steps": -1}),
        (5_000, {"global_batch_size": 512, "warmup_steps": 5}, {"global_batch_size": 512, "warmup_steps": 5}),
    ],
)
def test_finetune_asks_for_as_much_as_the_pairs_allow(monkeypatch, pairs, flags, expected):
    monkeypatch.setattr("hf_mmembed.training.recipes.train", lambda recipe, pairs: recipe)
    monkeypatch.setattr("hf_mmembed.data.pairs.read_pairs", lambda **_: range(pairs))
    sets = [word for name, value in flags.items() for word in ("--set", f"training.{name}={value}")]
    training = finetune_saha.main(["--data", "captions", *sets]).training
    assert {name: training[name] for name in expected} == expected


def test_finetune_leaves_a_recipe_of_your_own_as_it_is(monkeypatch, tmp_path):
    monkeypatch.setattr("hf_mmembed.training.recipes.train", lambda recipe, pairs: recipe)
    monkeypatch.setattr("hf_mmembed.data.pairs.read_pairs", lambda **_: range(5))
    own = tmp_path / "own.yaml"
    own.write_text("model: m\ndata: {source: d}\noutput: o\ntraining: {max_steps: 7, global_batch_size: 64}\n")
    recipe = finetune_saha.main(["--recipe", str(own), "--data", "captions"])
    assert recipe.training == {"max_steps": 7, "global_batch_size": 64}


def test_evaluate(embedder, drawings, tmp_path):
    words = ["--model", str(embedder("qwen2_vl")), "--benchmark", "retrieval", "--data", str(drawings)]
    out = evaluate.main([*words, "--out", str(tmp_path / "results")])
    assert (out / "results.json").is_file()


def test_a_wrong_flag_is_a_usage_error(drawings, capsys):
    with pytest.raises(SystemExit) as stop:
        mine.main(["--data", str(drawings), "--column", "no-equals"])
    assert stop.value.code == 2 and "OURS=THEIRS" in capsys.readouterr().err
