"""The tour: what is asked, what counts as right, and that it runs."""

from __future__ import annotations

import re

import pytest
from PIL import Image

from hf_mmembed import MMEmbedder
from hf_mmembed.cli import main as cli
from hf_mmembed.cli import quickstart as command
from hf_mmembed.cli import tour
from hf_mmembed.data.scenes import OPPOSITE, Scene, Shape, relation, split_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tour")
    return directory, tour.draw_folder(directory)


def scene(*things, kind="two"):
    places = ((20, 20), (45, 25), (30, 50))
    return Scene(
        kind,
        tuple(Shape(s, c, "small", "solid", x, y) for (s, c), (x, y) in zip(things, places, strict=False)),
        "white",
    )


def test_three_hundred_different_pictures_of_unseen_scenes(folder):
    directory, scenes = folder
    files = sorted(directory.iterdir())
    assert [file.name for file in files] == sorted(scenes) and len(scenes) == 300
    assert len({file.read_bytes() for file in files}) == 300
    assert {split_of(each) for each in scenes.values()} == {"test"}
    assert Image.open(files[0]).size == (192, 192)


def test_the_same_pictures_every_time_and_no_file_touched_twice(folder):
    directory, scenes = folder
    before = {file: file.stat().st_mtime_ns for file in directory.iterdir()}
    assert tour.draw_folder(directory) == scenes
    assert {file: file.stat().st_mtime_ns for file in directory.iterdir()} == before


def test_a_file_of_the_users_own_is_refused_by_name(tmp_path):
    (tmp_path / ".DS_Store").touch()
    (tmp_path / "001.jpg").touch()
    with pytest.raises(ValueError, match="holds 001.jpg, which the quickstart did not draw"):
        tour.draw_folder(tmp_path)
    assert not (tmp_path / "000.png").exists()


def test_every_search_has_a_right_answer_and_many_wrong_ones(folder):
    _, scenes = folder
    assert len(tour.SEARCHES) == 4
    for search in tour.SEARCHES:
        assert 1 <= sum(map(search.is_right, scenes.values())) <= 20, search.title


def test_the_picture_of_a_query_is_not_in_the_folder(folder):
    directory, _ = folder
    files = {Image.open(file).tobytes() for file in directory.iterdir()}
    pictures = [picture for search in tour.SEARCHES if (picture := search.picture()) is not None]
    assert len(pictures) == 2 and all(picture.tobytes() not in files for picture in pictures)


def test_what_is_right():
    by_text, by_relation, by_picture, by_change = tour.SEARCHES
    circle, star, heart = ("circle", "blue"), ("star", "yellow"), ("heart", "pink")
    assert by_text.is_right(scene(star, circle)) and by_text.is_right(scene(star, heart, circle, kind="three"))
    assert not by_text.is_right(scene(("circle", "yellow"), ("star", "blue")))
    assert by_picture.is_right(scene(("moon", "orange"), ("heart", "purple")))
    assert not by_picture.is_right(scene(("moon", "orange"), ("heart", "purple"), circle, kind="three"))
    assert by_change.is_right(scene(*by_change.wanted)) and not by_change.is_right(scene(*by_change.shown))
    first, second = (Shape(s, c, "small", "solid") for s, c in by_relation.wanted)
    for y, right in ((10, True), (55, False)):
        placed = Scene("two", (Shape(*first.attributes, 32, y), Shape(*second.attributes, 32, 32)), "white")
        assert by_relation.is_right(placed) is right


def test_the_mirror_image_of_the_relation_is_there_too(folder):
    _, scenes = folder
    search = tour.SEARCHES[1]
    mirrored = [
        each
        for each in scenes.values()
        if {shape.attributes[:2] for shape in each.shapes} == set(search.wanted) and not search.is_right(each)
    ]
    assert any(relation(*each.shapes) in (search.stands, OPPOSITE[search.stands]) for each in mirrored)


def test_the_command(embedder, tmp_path, monkeypatch, capsys):
    """With a random model, on 20 of the pictures: every verdict is checked, none is expected to be right."""
    monkeypatch.setattr(command, "SHIPPED", str(embedder("qwen2_vl")))
    monkeypatch.setattr(tour, "PICTURES", 20)
    with pytest.raises(SystemExit) as stop:
        cli.main(["quickstart", "--no-train", "--out", str(tmp_path / "a tour")])
    assert not stop.value.code
    shown = capsys.readouterr().out
    scenes = tour.draw_folder(tmp_path / "a tour/pictures")
    verdicts = re.findall(r"first hit (right|WRONG): (\d+\.png)", shown)
    assert [(word == "right") for word, _ in verdicts] == [
        search.is_right(scenes[name]) for search, (_, name) in zip(tour.SEARCHES, verdicts, strict=True)
    ]
    assert "Shown as it comes out" in shown and "its mirror image is at rank" in shown
    assert re.search(r"done in \d+ s", shown)
    assert Image.open(tmp_path / "a tour/contact-sheet.png").width == 1600
    assert (tmp_path / "a tour/contact-sheet.html").read_text().count("<section>") == 4

    # Again, and with another model in the place of a fine-tuned one.
    monkeypatch.setattr(command, "_fine_tune", lambda out: embedder("qwen2_vl", prompt="plain"))
    with pytest.raises(SystemExit):
        cli.main(["quickstart", "--out", str(tmp_path / "a tour")])
    shown = capsys.readouterr().out
    assert "is up to date" in shown
    verdicts = re.findall(r"first hit (right|WRONG): (\d+\.png)", shown)
    assert len(verdicts) == 8
    for number, (search, (_, first, then)) in enumerate(
        zip(tour.SEARCHES, re.findall(r"^  (By [a-z ]+): (\d+) → (\d+)$", shown, re.M), strict=True)
    ):
        for verdict, rank in ((verdicts[number], first), (verdicts[number + 4], then)):
            assert (verdict[0] == "right") == (rank == "1"), search.title
    assert Image.open(tmp_path / "a tour/contact-sheet-fine-tuned.png").width == 1600


def test_without_what_fine_tuning_needs_nothing_is_begun(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        cli.main(["quickstart", "--out", str(tmp_path / "a tour")])
    assert stop.value.code == 1 and not (tmp_path / "a tour").exists()
    assert 'pip install "hf-mmembed[train]", or leave it out with --no-train' in capsys.readouterr().err


def test_the_shipped_model_finds_what_the_three_searches_ask_for(tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["quickstart", "--no-train", "--out", str(tmp_path)])
    by_text, _, by_picture, by_change = re.findall(r"first hit (right|WRONG): ", capsys.readouterr().out)
    assert (by_text, by_picture, by_change) == ("right", "right", "right")


def test_fine_tuning_gives_a_model_that_opens(embedder, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "SHIPPED", str(embedder("qwen2_vl")))
    monkeypatch.setattr(command, "_FAMILIES", 4)
    monkeypatch.setattr(command, "_STEPS", 1)
    tuned = command._fine_tune(tmp_path)
    assert MMEmbedder(tuned).encode_query("a red star").shape == (32,)
    assert list(tmp_path.glob("clusters/*/clusters.arrow"))
