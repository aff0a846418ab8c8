"""SugarCrepe and SugarCrepe++: strict comparisons, decided by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hf_mmembed.evaluation import evaluate
from hf_mmembed.evaluation.subsets import SUGARCREPE, SUGARCREPE_PP, choose
from hf_mmembed.evaluation.sugarcrepe import read_sugarcrepe, read_sugarcrepe_pp
from tests.evaluation import layouts
from tests.evaluation.test_mmeb_image import score

# A picture of 1 points along x. Angles in degrees of what the captions say.
ANGLES = {"near": 10, "mirrored": -10, "far": 50, "opposite": 180, "tiny": 1e-6}


def by_angle():
    def vector(item):
        word = (item.text or "").rsplit(" ", 1)[-1]
        angle = np.deg2rad(ANGLES.get(word, 0))
        return np.array([np.cos(angle), np.sin(angle)])

    return layouts.Fake(vector)


def row(true, false, **more):
    return {"filename": "1.png", "caption": true, "negative_caption": false, **more}


@pytest.fixture
def folder(tmp_path):
    layouts.write_pictures(tmp_path / "val2017", [1])
    return tmp_path


def test_rows_of_ones_own_are_not_put_beside_published_figures(folder, tmp_path):
    (folder / "swap_att.json").write_text(json.dumps({str(n): row("near", "far") for n in range(666)}))
    official = evaluate(by_angle(), "sugarcrepe", folder, out=tmp_path / "a").metadata["reference_split"]
    (folder / "swap_obj.json").write_text(json.dumps({"0": row("near", "far")}))
    own = evaluate(by_angle(), "sugarcrepe", folder, out=tmp_path / "b").metadata["reference_split"]
    assert (official, own) == ("SugarCrepe", None)


def test_equal_similarity_is_wrong(folder):
    rows = [row("near", "far"), row("far", "near"), row("near", "mirrored"), row("near", "near"), row("tiny", "tiny ")]
    (folder / "swap_att.json").write_text(json.dumps({str(number): one for number, one in enumerate(rows)}))
    [subset] = choose(SUGARCREPE, ["swap_att"])
    task = read_sugarcrepe(folder, subset, "user")
    assert task.items[0].role == "document" and task.items[0].text is None
    assert task.items[1].text == "Find me an image that matches the given caption: near"
    assert [item.images for item in task.items].count(task.items[0].images) == 1  # the picture once, for five rows
    for tie in ("strict", "legacy"):
        assert score(task, by_angle(), folder, tie)["accuracy"] == pytest.approx(1 / 5)
    assert read_sugarcrepe(folder, subset, "system").items[1].instruction.startswith("Find me")


def test_both_true_captions_must_win(folder):
    rows = [
        row("near", "far", caption2="mirrored"),  # picture: 10, 10 < 50; texts: 20 < 40, 20 < 60
        row("near", "far", caption2="opposite"),  # picture: 180 loses; texts: 170 loses
        row("mirrored", "near", caption2="near"),  # picture: 10 against 10 ties; texts: 20 against 20 ties
        row("near", "mirrored", caption2="far"),  # picture: ties and loses; texts: 40 against 20 loses
        row("far", "opposite", caption2="mirrored"),  # picture: wins; texts: 60 < 130, 60 < 170
    ]
    (folder / "data").mkdir()
    (folder / "data" / "replace_obj.json").write_text(json.dumps(rows))
    [subset] = choose(SUGARCREPE_PP, ["replace_obj"])
    found = score(read_sugarcrepe_pp(folder, subset, "user"), by_angle(), folder)
    assert (found["itt"], found["tot"]) == (2 / 5, 2 / 5)
    assert score(read_sugarcrepe_pp(folder, subset, "user"), layouts.constant(), folder)["itt"] == 0


def test_bad_files_are_named(folder):
    [subset] = choose(SUGARCREPE, ["add_obj"])
    file = folder / "add_obj.json"
    for content, message in (
        ('{"0": {"filename": "1.png"', "interrupted"),
        ("[]", "no rows"),
        ('{"0": {"filename": "1.png", "caption": null}}', "row 0 has not the texts"),
        (json.dumps([row("a", "b") | {"filename": "2.png"}]), r"row 0: no picture '2.png' in .*val2017"),
    ):
        file.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_sugarcrepe(folder, subset, "user")
