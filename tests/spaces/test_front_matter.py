from __future__ import annotations

import ast
from pathlib import Path

import yaml
from packaging.requirements import Requirement

SPACE = Path(__file__).parents[2] / "spaces_app"
# https://huggingface.co/docs/hub/spaces-config-reference
KNOWN = {
    "title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "python_version", "app_file", "models", "datasets",
    "tags", "short_description", "preload_from_hub", "startup_duration_timeout", "suggested_hardware", "hf_oauth",
    "license", "pinned",
}  # fmt: skip
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}


def front_matter() -> dict:
    return yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---")[1])


def pins() -> dict[str, str]:
    lines = (SPACE / "requirements.txt").read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all([s.operator for s in requirement.specifier] == ["=="] for requirement in requirements)
    return {requirement.name: next(iter(requirement.specifier)).version for requirement in requirements}


def test_front_matter_is_what_a_space_takes():
    found = front_matter()
    assert set(found) <= KNOWN and found["sdk"] == "gradio"
    assert {found["colorFrom"], found["colorTo"]} <= COLOURS
    assert len(found["short_description"]) <= 60 and (SPACE / found["app_file"]).is_file()
    assert found["python_version"] == "3.12"  # ZeroGPU's newest; the default, 3.10, is too old for transformers


def test_pins_fit_the_sdk_and_the_security_floors():
    from hf_mmembed import __version__

    found = pins()
    assert found["gradio"] == front_matter()["sdk_version"]
    assert found["hf-mmembed"] == __version__
    versions = {name: tuple(map(int, version.split("."))) for name, version in found.items()}
    assert versions["gradio"] >= (6, 7) and versions["transformers"] >= (5, 3) and versions["pillow"] >= (12, 3)
    assert versions["torch"] <= (2, 11, 0)  # the newest that ZeroGPU offers


def test_spaces_is_imported_before_torch():
    tree = ast.parse((SPACE / "app.py").read_text(encoding="utf-8"))
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    order = sorted(names, key=lambda node: node.lineno)
    modules = [node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in order]
    assert modules.index("spaces") < min(modules.index(name) for name in ("gradio", "engine"))
