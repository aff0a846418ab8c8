"""The doctor names what is missing, old or broken, and never dies of it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from hf_mmembed.cli import doctor as doctor_module
from hf_mmembed.cli.doctor import (
    Finding,
    examine_extras,
    examine_requirements,
    examine_torch_with_faiss,
    examine_torchvision,
    probe,
)

REQUIREMENTS = [
    "typer>=0.1",
    "torch>=9999; extra == 'huge'",
    "pytest>=1; extra == 'test'",
    "nosuch>=2; extra == 'lost'",
]


def plant(folder, name: str, source: str) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(source, encoding="utf-8")


@pytest.fixture
def broken_torchvision(tmp_path, monkeypatch):
    """A torchvision that fails as a CUDA build beside a CPU torch does."""
    plant(tmp_path, "torchvision", "raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_core_ignores_extras():
    [finding] = examine_requirements(REQUIREMENTS)
    assert finding.name == "typer" and finding.remedy is None


def test_extra_ignores_core():
    assert [f.name for f in examine_requirements(REQUIREMENTS, "test")] == ["pytest"]


def test_old_version_is_named_with_what_is_needed():
    [finding] = examine_requirements(REQUIREMENTS, "huge")
    assert "but >=9999 is needed" in finding.state
    assert finding.remedy == 'pip install "torch>=9999"'


def test_extras_say_what_they_lack():
    assert examine_extras(REQUIREMENTS, ["test", "lost"]) == [
        Finding("test", "complete"),
        Finding("lost", "lacks nosuch", 'pip install "hf-mmembed[lost]"'),
    ]


def test_absent_torchvision_is_fine(monkeypatch):
    monkeypatch.setattr(doctor_module.importlib.util, "find_spec", lambda name: None)
    finding = examine_torchvision("2.13.0")
    assert finding.remedy is None and "needed only to open native exports of the Qwen family" in finding.state


def test_working_torchvision_is_fine(tmp_path, monkeypatch):
    plant(tmp_path, "torchvision", "__version__ = '0.28.0'\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    finding = examine_torchvision("2.13.0")
    assert finding.remedy is None and finding.state.startswith("0.28.0")


def test_broken_torchvision_is_reported_and_not_imported(broken_torchvision):
    finding = examine_torchvision("2.13.0+cpu")
    assert "operator torchvision::nms does not exist" in finding.state
    assert "2.13.0+cpu" in finding.state
    assert finding.remedy == "pip uninstall -y torchvision"
    assert "torchvision" not in sys.modules


def test_probe_gives_up_on_a_hanging_import(monkeypatch):
    monkeypatch.setattr(doctor_module, "PROBE_SECONDS", 0.2)
    assert probe("while True: pass") == ("", "no answer within 0.2 seconds")


def test_probe_reports_a_crash_of_the_interpreter():
    printed, error = probe("import os; os.abort()")
    assert printed == "" and error == "killed by signal 6"


@pytest.fixture
def colliding(tmp_path, monkeypatch):
    """`colliding(source)`: a faiss that does so when it is imported beside torch, and is fine alone."""

    def plant_both(source: str) -> None:
        plant(tmp_path, "torch", "")
        plant(tmp_path, "faiss", f"import os, sys\nif 'torch' in sys.modules:\n    {source}\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return plant_both


OPENMP = r"'OMP: Error #15: libomp.dylib already initialized.\nOMP: Hint This is dangerous.\n'"


@pytest.mark.parametrize(
    ("crash", "said"),
    [
        ("os.abort()", "killed by signal 6."),
        (f"sys.stderr.write({OPENMP}); sys.stderr.flush(); os.abort()", "killed by signal 6: OMP: Error #15: libomp"),
        (f"sys.stderr.write({OPENMP}); sys.exit(3)", "OMP: Error #15: libomp"),
    ],
)
def test_a_crash_of_torch_beside_faiss_is_explained(crash, said, colliding):
    colliding(crash)
    assert probe("import torch") == probe("import faiss") == ("", None)
    finding = examine_torch_with_faiss()
    assert finding.state.startswith(f"BROKEN: {said}") and "Hint" not in finding.state
    assert "OpenMP runtime" in finding.state and "conda-forge" in finding.state
    assert finding.remedy == "export KMP_DUPLICATE_LIB_OK=TRUE OMP_NUM_THREADS=1"


def test_another_error_of_torch_beside_faiss_is_not_blamed_on_openmp(colliding):
    colliding("raise ImportError('undefined symbol')")
    finding = examine_torch_with_faiss()
    assert finding.state == "BROKEN: ImportError: undefined symbol" and "faiss-cpu" in finding.remedy


def doctor_in_child(**environment: str) -> subprocess.CompletedProcess:
    code = "from hf_mmembed.cli.main import main; main(['doctor'])"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


def test_whole_report_with_a_broken_torchvision(broken_torchvision):
    done = doctor_in_child(PYTHONPATH=str(broken_torchvision))
    assert done.returncode == 1
    assert "operator torchvision::nms does not exist" in done.stdout
    assert done.stdout.rstrip().endswith("pip uninstall -y torchvision")
    assert done.stderr == ""


def test_a_command_and_an_import_that_break_on_it_point_here(broken_torchvision):
    """In one new interpreter, which takes many seconds to start."""
    script = """
import sys
from hf_mmembed.cli.main import main
try:
    main(["prompt", "show", "mmembed-tiny", "a"])
except SystemExit as stop:
    print(f"left with {stop.code}", file=sys.stderr)
from hf_mmembed import MMEmbedder
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    command, ended, imported = done.stderr.partition("left with 1\n")
    assert ended and done.returncode == 1
    for printed in (command, imported):
        assert "operator torchvision::nms does not exist" in printed and "hf-mmembed doctor" in printed
        assert ("Traceback" in printed) == (printed is imported)


def test_whole_report_of_this_environment():
    done = doctor_in_child()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all good" in done.stdout
    for name in (
        "python",
        "torch ",
        "transformers",
        "sentence-transformers",
        "faiss-cpu",
        "torch and faiss together",
        "device",
        "bfloat16",
        "train",
    ):
        assert name in done.stdout
