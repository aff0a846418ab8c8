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
    assert used - known <= {"--flavor", "--secrets", "--number", "--repo-type", "--local-dir", "--help", "--clusters"}


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
    monkeypatch.setattr("hf_mmembed.training.recipes.train", lambda recipe: recipe)
    words = ["--data", "my-name/my-captions", "--output", str(tmp_path)]
    assert finetune_saha.main(words).data == {"source": "my-name/my-captions", "split": "train"}
    assert finetune_saha.main([*words, "--split", "all"]).data["split"] == "all"


def test_evaluate(embedder, drawings, tmp_path):
    words = ["--model", str(embedder("qwen2_vl")), "--benchmark", "retrieval", "--data", str(drawings)]
    out = evaluate.main([*words, "--out", str(tmp_path / "results")])
    assert (out / "results.json").is_file()


def test_a_wrong_flag_is_a_usage_error(drawings, capsys):
    with pytest.raises(SystemExit) as stop:
        mine.main(["--data", str(drawings), "--column", "no-equals"])
    assert stop.value.code == 2 and "OURS=THEIRS" in capsys.readouterr().err
