"""Rules that hold for the whole repository: light imports, public names, layers, safe loading, clean files."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

import hf_mmembed

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "hf_mmembed"
MODULES = sorted(PACKAGE.rglob("*.py"))
REMOTE_CODE = sorted((PACKAGE / "model").glob("*_mmembed.py"))
LAZY = [path for path in MODULES if path.name == "__init__.py" and "def __getattr__" in path.read_text("utf-8")]
HEAVY = {"PIL", "datasets", "faiss", "numpy", "pandas", "pyarrow", "sentence_transformers", "torch", "transformers"}

# Each part may import the parts of a lower rank, and itself. `tiny` trains and evaluates, so it sits high.
RANK = {
    "files": 0,
    "lock": 0,
    "transient": 0,
    "processes": 0,
    "shipped": 0,
    "visible": 0,
    "only_run": 1,
    "staging": 1,
    "model": 2,
    "data": 3,
    "batching": 3,
    "card_data": 3,
    "duplicates": 3,
    "inputs": 3,
    "opening": 3,
    "adapters": 4,
    "memory": 4,
    "preparation": 4,
    "sentence_transformer": 5,
    "identity": 6,
    "hub": 7,
    "mining": 7,
    "training": 8,
    "distillation": 9,
    "thinking": 9,
    "index": 9,
    "judging": 10,
    "evaluation": 10,
    "tiny": 11,
    "bench": 12,
    "scripts": 12,
    "cli": 13,
    "__init__": 14,
}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def loaded_after(code: str) -> set[str]:
    report = f"{code}\nimport sys\nprint(*{{m.partition('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> list[tuple[int, str]]:
    """Every import of a file as (line, absolute dotted name), those inside functions too."""
    package = ("hf_mmembed", *path.relative_to(PACKAGE).parts[:-1])
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            parts = [*base, *([node.module] if node.module else [])]
            names = [alias.name for alias in node.names] if parts == ["hf_mmembed"] else [None]
            found += [(node.lineno, ".".join([*parts, *([name] if name else [])])) for name in names]
    return found


def test_import_loads_nothing_heavy():
    assert loaded_after("import hf_mmembed").isdisjoint(HEAVY)


def test_every_help_loads_nothing_heavy():
    from hf_mmembed.cli.main import app

    names = [c.name or c.callback.__name__.replace("_", "-") for c in app.registered_commands]
    names += [group.name or group.typer_instance.info.name for group in app.registered_groups]
    code = "from hf_mmembed.cli.main import main\n"
    for words in [["--help"], *([name, "--help"] for name in names)]:
        code += f"try:\n    main({words!r})\nexcept SystemExit as stop:\n    assert stop.code == 0, {words!r}\n"
    assert loaded_after(code).isdisjoint(HEAVY)


def test_public_names():
    assert hf_mmembed.__all__ == [
        "PRESETS",
        "HierarchicalPrompt",
        "MMEmbedConfig",
        "MMEmbedModel",
        "MMEmbedOutput",
        "MMEmbedProcessor",
        "MMEmbedder",
        "__version__",
        "convert",
        "load_prompt",
        "tiny",
    ]
    assert dir(hf_mmembed) == sorted(hf_mmembed.__all__)


@pytest.mark.parametrize("name", hf_mmembed.__all__)
def test_public_name_resolves(name):
    assert getattr(hf_mmembed, name) is not None


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        hf_mmembed.no_such_name  # noqa: B018


@pytest.mark.parametrize("path", LAZY, ids=name_of)
def test_lazy_names_are_no_modules(path):
    package = import_module(".".join(path.relative_to(ROOT).parent.parts))
    for name in package.__all__:
        # The import of a module, at the first use, puts the module in the place of what has the same name.
        first = getattr(package, name)
        assert first is getattr(package, name)
        assert not isinstance(first, ModuleType) or first is hf_mmembed.tiny, f"{name} is a module"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_has_docstring_and_all(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "no module docstring"
    targets = [
        target
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    ]
    assert "__all__" in {target.id for target in targets if isinstance(target, ast.Name)}, "no explicit __all__"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_parts_import_only_what_lies_below(path):
    part = part_of(path)
    assert part in RANK, f"give {part!r} a rank in tests/test_package.py"
    for line, target in imports_of(path):
        pieces = target.split(".")
        if pieces[0] != "hf_mmembed" or len(pieces) == 1 or pieces[1] == "__version__":
            continue
        other = pieces[1]
        assert other == part or RANK[other] < RANK[part], f"line {line}: {part} imports {other}"


@pytest.mark.parametrize("path", REMOTE_CODE, ids=name_of)
def test_remote_code_is_self_contained(path):
    # jinja2 and safetensors are requirements of torch and transformers themselves.
    allowed = {"torch", "transformers", "PIL", "numpy", "jinja2", "safetensors", *sys.stdlib_module_names}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert {alias.name.partition(".")[0] for alias in node.names} <= allowed, f"line {node.lineno}"
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module.partition(".")[0] in allowed, f"line {node.lineno}"
        elif isinstance(node, ast.ImportFrom):
            # transformers finds sibling files by the text `from .name import`; it must be a file that travels too.
            assert node.level == 1 and node.module, f"line {node.lineno}"
            assert path.with_name(f"{node.module}.py") in REMOTE_CODE, f"line {node.lineno}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_loads_code_from_data(path):
    banned_modules = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
    banned_calls = {"torch.load", "torch.save", "yaml.load", "yaml.unsafe_load", "eval", "exec"}
    for line, target in imports_of(path):
        assert target.partition(".")[0] not in banned_modules, f"line {line}: {target}"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in banned_calls, f"line {node.lineno}"
            pickled = [k for k in node.keywords if k.arg == "allow_pickle" and ast.unparse(k.value) != "False"]
            assert not pickled, f"line {node.lineno}"


def repository_texts() -> Iterator[Path]:
    skipped = {
        ".git",
        ".venv",
        ".mypy_cache",
        ".pytest_cache",
        ".ruff_cache",
        ".hypothesis",
        "__pycache__",
        "quickstart",
    }
    suffixes = {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".json", ".jsonl", ".jinja", ".csv", ".cfg", ""}
    for folder, folders, names in os.walk(ROOT):
        folders[:] = sorted(set(folders) - skipped)
        for path in (Path(folder, name) for name in sorted(names)):
            # This file names what it looks for; in a linked work tree `.git` is a file.
            if path.suffix in suffixes and path != Path(__file__).resolve() and path.name != ".git":
                yield path


def test_no_machine_paths_or_package_registries():
    foreign = re.compile(
        r"(?<![\w.])/(?:work|root|home|Users|mnt)/\w|pypi\.org|pythonhosted\.org|download\.pytorch\.org|npmjs|anaconda\.org"
    )
    hits = []
    for path in repository_texts():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            hits += [f"{name_of(path)}:{number}: {line.strip()[:80]}"] if foreign.search(line) else []
    assert not hits, "\n".join(hits)


def test_core_dependencies_are_few_and_have_floors():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    core = {r.name: r.specifier for r in map(Requirement, project["dependencies"])}
    assert set(core) == {
        "datasets",
        "faiss-cpu",
        "huggingface-hub",
        "numpy",
        "pillow",
        "scipy",
        "sentence-transformers",
        "torch",
        "transformers",
        "typer",
    }
    optional = [Requirement(r) for group in project["optional-dependencies"].values() for r in group]
    for requirement in [Requirement(r) for r in project["dependencies"]] + optional:
        if requirement.name != project["name"]:
            assert [s.operator for s in requirement.specifier] == [">="], requirement
    assert not core["transformers"].contains("5.2.0"), "transformers before 5.3 runs code named in a config.json"


def test_constraints_pin_the_dependencies_within_their_floors():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {
        r.name.replace("_", "-").lower(): r.specifier
        for r in map(Requirement, filter(re.compile(r"^\w").match, lines))
    }
    assert str(pins["torch"]) == "==2.13.0"
    assert "torchvision" not in pins
    for specifier in pins.values():
        assert [s.operator for s in specifier] == ["=="]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tested = (
        project["dependencies"] + project["optional-dependencies"]["train"] + project["optional-dependencies"]["eval"]
    )
    for requirement in map(Requirement, tested):
        [pin] = pins[requirement.name]
        assert requirement.specifier.contains(pin.version), requirement


def test_make_help_lists_every_target():
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = set(re.findall(r"make (\w+)", done.stdout))
    assert listed == {"help", "quickstart", "test", "quality", "bench", "clean"}
