"""The ablation: what it measures, that it goes on where it stopped, and what it prints."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from hf_mmembed.bench import ablation
from hf_mmembed.bench.ablation import ARMS, Plan, mean_score, run_ablation
from hf_mmembed.bench.ablation_report import comparisons, markdown, plot
from hf_mmembed.cli.main import main
from hf_mmembed.tiny.testset import CHANGES

SCORES = {"text→image R@1": 10.0, "image→text R@1": 20.0, "composed R@1": 30.0, "classify shape": 1.0}
SCORES |= {"classify color": 2.0} | {change.replace("_", " "): 50.0 + place for place, change in enumerate(CHANGES)}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """A bench that trains nothing and says what it was asked."""
    asked: list[tuple[str, int]] = []

    class Bench:
        def __init__(self, folder, plan, seed, test, memory, teacher) -> None:  # type: ignore[no-untyped-def]
            self.seed = seed

        def run(self, arm: ablation.Arm) -> dict[str, object]:
            if arm.name == "top-k" and self.seed == 1 and len(asked) < 4:
                raise KeyboardInterrupt
            asked.append((arm.name, self.seed))
            trained = {"false_negatives": 2.0 + self.seed, "pairs": 64.0} if arm.strategy else {}
            result = {"arm": arm.name, "seed": self.seed, "steps": 5, "seconds": {"mining": 1.0}, "scores": SCORES}
            return result | trained | {"mean": mean_score(SCORES) + self.seed}

    monkeypatch.setattr(ablation, "_Bench", Bench)
    monkeypatch.setattr(ablation, "build_testset", lambda *_, **__: None)
    return asked


def test_the_mean_weighs_four_abilities_alike() -> None:
    assert mean_score(SCORES) == pytest.approx((10 + 20 + 30 + 52) / 4)


def test_a_killed_ablation_goes_on_where_it_stopped(bench, tmp_path) -> None:  # type: ignore[no-untyped-def]
    arms, plan = [ARMS["random"], ARMS["top-k"]], Plan("model", steps=5)
    with pytest.raises(KeyboardInterrupt):
        run_ablation(tmp_path, plan, arms=arms, seeds=[0, 1])
    assert bench == [("random", 0), ("top-k", 0), ("random", 1)]
    bench.append(("interrupted", 0))
    results = run_ablation(tmp_path, plan, arms=arms, seeds=[0, 1])
    assert bench[4:] == [("top-k", 1)]
    assert [(r["arm"], r["seed"]) for r in results] == [("random", 0), ("top-k", 0), ("random", 1), ("top-k", 1)]
    assert run_ablation(tmp_path, plan, arms=arms, seeds=[0, 1]) == results and len(bench) == 5
    with pytest.raises(ValueError, match="another plan"):
        run_ablation(tmp_path, Plan("model", steps=6), arms=arms, seeds=[0])


def test_the_command_prints_the_table_and_draws_the_plot(bench, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "bench",
                "ablation",
                "--model",
                "m",
                "--out",
                str(tmp_path),
                "--seeds",
                "2",
                "--strategies",
                "zero-shot,random,saha",
            ]
        )
    assert not stop.value.code
    shown = capsys.readouterr().out
    table = (tmp_path / "ablation.md").read_text(encoding="utf-8")
    assert table in shown and "| random | 28.5 ± 0.7 | 10.0 ± 0.0 |" in table
    assert Image.open(tmp_path / "ablation.png").format == "PNG"
    assert len(list((tmp_path / "runs").iterdir())) == 6


def test_an_unknown_strategy_is_wrong_usage(capsys) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SystemExit) as stop:
        main(["bench", "ablation", "--strategies", "random,best"])
    assert stop.value.code == 2 and "saha-paper" in capsys.readouterr().err


def test_what_an_arm_has_not_is_a_dash(tmp_path) -> None:  # type: ignore[no-untyped-def]
    zero_shot = {"arm": "zero-shot", "seed": 0, "steps": 0, "seconds": {}, "scores": SCORES, "mean": 28.0}
    last = json.loads(json.dumps(zero_shot)) | {"arm": "saha", "false_negatives": 1.0}
    first_line, second_line = markdown([zero_shot, last]).splitlines()[2:4]
    assert first_line.count("–") == 4 and second_line.count("–") == 3
    plot([zero_shot, last], tmp_path / "plot.png")
    assert Image.open(tmp_path / "plot.png").width > 500


def test_saha_is_compared_over_the_seeds_that_both_arms_have() -> None:
    def run(arm: str, seed: int, mean: float) -> dict[str, object]:
        return {"arm": arm, "seed": seed, "steps": 5, "seconds": {}, "scores": SCORES, "mean": mean}

    saha = [run("saha", seed, mean) for seed, mean in ((0, 80.0), (1, 82.0), (2, 99.0))]
    random = [run("random", seed, mean) for seed, mean in ((1, 77.0), (0, 79.0))]
    once = run("margin", 1, 50.0)
    # deviations of √2 both, means 81 and 78
    assert comparisons([*saha, *random, once]) == ["- saha against random: +3.0, 2.1 standard deviations (2 seeds)"]
    lines = markdown([*saha, *random, once]).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:5]] == ["saha", "random (only 0, 1)", "margin (only 1)"]
    assert lines[-1] == "- saha against random: +3.0, 2.1 standard deviations (2 seeds)"
    assert comparisons([once, *random]) == []
