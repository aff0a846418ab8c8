from __future__ import annotations

import pytest

from hf_mmembed.bench import ablation, distillation
from hf_mmembed.cli.bench import _ARMS
from hf_mmembed.cli.main import main
from tests.distillation.conftest import TEACHER


def test_what_is_compared_by_default_are_the_arms_that_there_are():
    """The command writes them down anew, as its help must not load torch."""
    assert list(_ARMS) == [arm.name for arm in ablation.ARMS.values() if not arm.remine]


def test_the_table_is_printed_and_kept(tmp_path, monkeypatch, capsys):
    asked = []

    def run(out, plan, seeds):
        asked.append((plan.teacher, plan.steps, list(seeds)))
        return [{"seed": seed, "scores": {"Spearman": 50.0 + 10 * (seed is not None)}} for seed in (None, *seeds)]

    monkeypatch.setattr(distillation, "run_distillation", run)
    with pytest.raises(SystemExit) as stop:
        main(["bench", "distill", "--out", str(tmp_path), "--seeds", "2", "--steps", "5"])
    assert stop.value.code == 0 and asked == [(str(TEACHER), 5, [0, 1])]
    assert "| Spearman | 50.0 | 60.0 ± 0.0 | +10.0 |" in capsys.readouterr().out
    assert "+10.0" in (tmp_path / "distill.md").read_text()
