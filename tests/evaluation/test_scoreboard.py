"""Averages: which data sets belong to one, what a partial run may say, and the schema of leaderboard files."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hf_mmembed.evaluation.compare import compare
from hf_mmembed.evaluation.references import references
from hf_mmembed.evaluation.scoreboard import MACRO, OVERALL, aggregate, read_results, subsets_of, visdoc_split
from hf_mmembed.evaluation.subsets import MMEB_V1, MMEB_V2, OLD_SPLITS, SUGARCREPE, choose


def leaderboard(seed=0, *, old=False, extra=True):
    """A file as the leaderboard's, with random scores, in another order, with measures and data sets that do not count."""
    random = np.random.default_rng(seed)
    metrics = {"image": {}, "video": {}, "visdoc": {}}
    for place in random.permutation(len(MMEB_V2)):
        subset = MMEB_V2[place]
        name = OLD_SPLITS.get(subset.name, subset.name) if old else subset.name
        metrics[subset.modality][name] = {
            "hit@1": random.random(),
            "hit@5": 1.0,
            "ndcg_linear@5": random.random(),
            "ndcg_exponential@5": 0.0,
            "num_data": int(random.integers(50, 9000)),
        }
    if extra:
        metrics["visdoc"]["ViDoRe_esg_reports_v2"] = {"hit@1": 0.0, "ndcg_linear@5": 0.0}
    return {"metadata": {"model_name": "m"}, "metrics": metrics}


def by_hand(results, modality):
    key = "ndcg_linear@5" if modality == "visdoc" else "hit@1"
    return [row[key] for name, row in results["metrics"][modality].items() if name != "ViDoRe_esg_reports_v2"]


@pytest.mark.parametrize("old", [False, True])
def test_leaderboard_files_are_averaged_flat(old):
    results = leaderboard(old=old)
    means = aggregate(results["metrics"], subsets_of(results))
    for modality, count in (("image", 36), ("video", 18), ("visdoc", 24)):
        assert means[modality].expected == count
        assert means[modality].value == pytest.approx(np.mean(by_hand(results, modality)))
    every = [score for modality in ("image", "video", "visdoc") for score in by_hand(results, modality)]
    assert len(every) == 78 and means[OVERALL].value == pytest.approx(np.mean(every))
    tasks = [s.meta_task for s in MMEB_V2]
    assert len(dict.fromkeys(tasks)) == 12
    assert means[MACRO].value == pytest.approx(np.mean([means[task].value for task in dict.fromkeys(tasks)]))
    assert means[MACRO].value != pytest.approx(means[OVERALL].value)


@pytest.mark.parametrize("absent", [None, "FILE_N/A", {}, {"hit@1": "n/a"}])
def test_a_partial_run_has_no_overall(absent):
    results = leaderboard()
    if absent is None:
        del results["metrics"]["video"]["K700"]
    else:
        results["metrics"]["video"]["K700"] = absent
    means = aggregate(results["metrics"], subsets_of(results))
    assert means[OVERALL].value is None and means[MACRO].value is None and means["video"].value is None
    assert str(means["video"]) == "partial (17 of 18)" and means["video"].missing == ("K700",)
    assert means["image"].value is not None and means["Moment retrieval"].value is not None


@pytest.mark.parametrize("score", [float("nan"), 64.2, -1.0])
def test_what_is_no_fraction_is_an_error(score):
    results = leaderboard()
    results["metrics"]["image"]["GQA"]["hit@1"] = score
    with pytest.raises(ValueError, match=f"score of GQA is {score}; scores are fractions"):
        aggregate(results["metrics"], MMEB_V2)


def test_splits_are_told_apart_also_where_both_are_there():
    old, fixed = leaderboard(0, old=True), leaderboard(1)
    both = {"visdoc": old["metrics"]["visdoc"] | fixed["metrics"]["visdoc"]}
    half = {"visdoc": old["metrics"]["visdoc"] | {"ViDoSeek-page-fixed": {"ndcg_linear@5": 1.0}}}
    found = [visdoc_split(metrics) for metrics in (old["metrics"], fixed["metrics"], both, half, {"image": {}})]
    assert found == ["old page labels", "page-fixed", "page-fixed", "page-fixed and old page labels", None]
    assert aggregate(both, MMEB_V2)["visdoc"] == aggregate(fixed["metrics"], MMEB_V2)["visdoc"]


def test_leaderboard_files_of_other_hands(tmp_path):
    results = leaderboard()
    results["metadata"] = None
    results["metrics"] |= {"video": None, "audio": {"Clotho": {"hit@1": 0.5}}}
    results["metrics"]["image"]["GQA"]["hit@1"] = True
    (tmp_path / "a.json").write_text(json.dumps(results))
    read = read_results(tmp_path / "a.json")
    means = aggregate(read["metrics"], subsets_of(read))
    assert means["image"].missing == ("GQA",) and means["video"].present == 0 and means["visdoc"].value is not None
    read["metadata"] = {"subsets": ["GQA"]}  # not ours, whatever it means
    assert subsets_of(read) == MMEB_V2


def test_a_file_without_videos_is_a_partial_one_of_the_leaderboard():
    results = leaderboard()
    del results["metrics"]["video"], results["metrics"]["visdoc"]
    means = aggregate(results["metrics"], subsets_of(results))
    assert means["image"].value is not None and means[OVERALL].value is None


def test_v1_means_by_distribution():
    metrics = {"image": {subset.name: {"hit@1": float(subset.distribution == "IND")} for subset in MMEB_V1}}
    means = aggregate(metrics, MMEB_V1)
    assert (means["IND"].value, means["IND"].expected, means["OOD"].value, means["OOD"].expected) == (1, 20, 0, 16)
    assert means[OVERALL].value == pytest.approx(20 / 36)
    assert {name: means[name].expected for name in ("Classification", "VQA", "Retrieval", "Grounding")} == {
        "Classification": 10,
        "VQA": 10,
        "Retrieval": 12,
        "Grounding": 4,
    }


def test_sugarcrepe_groups():
    metrics = {"sugarcrepe": {subset.name: {"accuracy": index / 10} for index, subset in enumerate(SUGARCREPE)}}
    means = aggregate(metrics, SUGARCREPE)
    assert means["Replace"].value == pytest.approx(0.1) and means["Add"].value == pytest.approx(0.55)
    assert means[OVERALL].value == pytest.approx(0.3)


def test_names_are_suggested():
    for wrong, right in (
        ("ImageNet_1K", "ImageNet-1K"),
        ("okvqa", "OK-VQA"),
        ("RefCoco", "RefCOCO"),
        ("VizzWiz", "VizWiz"),
    ):
        with pytest.raises(ValueError, match=f"did you mean '{right}'"):
            choose(MMEB_V1, [wrong])
    assert [s.name for s in choose(MMEB_V2, ["ViDoSeek-page", "GQA"])] == ["GQA", "ViDoSeek-page"]
    assert len(choose(MMEB_V2, ["visdoc", "Video QA"])) == 29 and len(choose(MMEB_V2, None)) == 78


@pytest.mark.parametrize("content", ["{", "[]", '{"metrics": []}', '{"metrics": {"image": 3}}'])
def test_no_results_file(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=r"a\.json"):
        read_results(tmp_path / "a.json")


def test_comparison_says_what_does_not_compare():
    one, other = leaderboard(old=True), leaderboard()
    one["metadata"] |= {"model_name": "old", "instruction_in": "user", "num_frames": 8}
    other["metadata"] |= {"model_name": "new", "instruction_in": "system", "num_frames": 64}
    other["metrics"]["image"]["GQA"]["hit@1"] = one["metrics"]["image"]["GQA"]["hit@1"] + 0.015
    table = compare(one, other)
    assert "instruction_in is user in the first and system in the second" in table
    assert "num_frames is 8" in table
    assert "scored on old page labels in the first and on page-fixed in the second" in table
    assert "| +1.50 |" in next(line for line in table.splitlines() if line.startswith("| GQA |"))
    assert "\n| ViDoSeek-page / ViDoSeek-page-fixed | " in table and "\n| ViDoSeek-page | " in compare(one, one)
    assert "Not comparable" not in compare(other, other)


def small(**metadata):
    return {
        "metadata": {"model_name": "m", "benchmark": "sugarcrepe", **metadata},
        "metrics": {"sugarcrepe": {"swap_obj": {"accuracy": 0.5}}},
    }


def test_comparison_tells_data_of_ones_own_from_the_official():
    own, official, silent = small(reference_split=None), small(reference_split="SugarCrepe"), small()
    assert "the first is on data of one's own and the second on SugarCrepe" in compare(own, official)
    assert "the first is on SugarCrepe and the second on data of one's own" in compare(official, own)
    for one, other in ((own, own), (official, official), (own, silent), (silent, official)):
        assert "Not comparable" not in compare(one, other)
    retrieval = small(benchmark="retrieval", reference_split=None)  # which no published figures are on
    assert compare(retrieval, official).count("Not comparable") == 1  # the benchmark alone
    images = {"benchmark": "mmeb-v2", "reference_split": "MMEB-V2"}  # without visual documents
    assert "Not comparable" not in compare(small(**images), small(**images | {"reference_split": "page-fixed"}))


def test_comparison_tells_sizes_of_pictures_where_they_mean_the_same():
    pixels = [small(image_size={"shortest_edge": 3136, "longest_edge": edge}) for edge in (984064, 12845056)]
    table = compare(*pixels)
    assert "image_size is {'shortest_edge': 3136, 'longest_edge': 984064} in the first and {" in table
    side = small(image_size={"longest_edge": 1536})
    for other in (pixels[0], side, small(image_size={}), small(image_size=None), small()):
        assert "Not comparable" not in compare(pixels[0], other)


def with_thinking(reasoner, score, traced=None, **thinking):
    results = small(thinking={"reasoner": reasoner, "when": "auto"} | thinking)
    row = results["metrics"]["sugarcrepe"]["swap_obj"]
    row["thinking"] = {"accuracy": score} | ({} if traced is None else {"traced": traced})
    return results


def test_comparison_shows_scores_with_thinking_and_who_thought():
    one, other = with_thinking("a", 0.75, 12), with_thinking("b", 0.875, 12, when="always")
    table = compare(one, other)
    assert "| swap_obj | 50.00 | 50.00 | +0.00 |" in table
    assert "| swap_obj (with thinking) | 75.00 | 87.50 | +12.50 |" in table
    assert "with thinking, reasoner is a in the first and b in the second" in table
    assert "with thinking, when is auto in the first and always in the second" in table
    assert "with thinking, other numbers of queries have a trace: swap_obj (12 and 3)" in compare(
        one, with_thinking("a", 0.5, 3)
    )
    for alike in (one, with_thinking("a", 0.5), small()):  # earlier runs did not count
        assert "Not comparable" not in compare(one, alike)
    assert "with thinking" not in compare(one, small())


def test_references_name_their_source_and_split_and_agree_with_themselves():
    rows = [row for benchmark in ("mmeb-v1", "mmeb-v2", "sugarcrepe", "retrieval") for row in references(benchmark)]
    assert len(rows) > 60 and all(row.source and row.split and row.scores for row in rows)
    weights = {"Classification": 10, "VQA": 10, "Retrieval": 12, "Grounding": 4}
    for row in references("mmeb-v1"):
        if set(weights) < set(row.scores):  # a flat mean is the weighted mean of the meta-tasks
            flat = sum(weights[name] * row.scores[name] for name in weights) / 36
            assert flat == pytest.approx(row.scores["overall"], abs=0.16), row.system
    for row in references("mmeb-v2", "page-fixed"):
        flat = (36 * row.scores["image"] + 18 * row.scores["video"] + 24 * row.scores["visdoc"]) / 78
        assert flat == pytest.approx(row.scores["overall"], abs=0.16), row.system


def test_reading_keeps_what_was_written(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(leaderboard()))
    assert read_results(tmp_path / "a.json") == leaderboard()
