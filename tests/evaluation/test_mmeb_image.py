"""MMEB-V1 and the image half of V2, in miniature and in their official layouts, with their traps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hf_mmembed.evaluation.cache import EmbeddingCache
from hf_mmembed.evaluation.engine import embed_items
from hf_mmembed.evaluation.mmeb_image import read_v1, read_v2_image
from hf_mmembed.evaluation.subsets import MMEB_V1, choose
from hf_mmembed.evaluation.tables import Missing
from tests.evaluation import layouts


def subset(name):
    [found] = choose(MMEB_V1, [name])
    return found


def score(task, encoder, tmp_path, tie="strict"):
    vectors, places = embed_items(task.items, encoder, EmbeddingCache(tmp_path / "cache" / encoder.key), name="test")
    return task.score(vectors, places, tie).metrics


def test_v1_texts_pictures_and_gold(tmp_path):
    layouts.write_small_v1(tmp_path, rows=3, candidates=4)
    task = read_v1(tmp_path, subset("GQA"), "user")
    assert task.queries[0].text == "\nRepresent the given image with the following question: Which number?\n"
    assert task.queries[0].role == "query" and task.queries[0].instruction is None
    assert [item.text for item in task.candidates] == [f"#{number}" for number in range(6)]
    assert all(not item.images for item in task.candidates)
    assert task.relevance == [{0: 1}, {1: 1}, {2: 1}] and task.pools[2] == [2, 3, 4, 5]
    pictures = read_v1(tmp_path, subset("MSCOCO_t2i"), "user")
    assert pictures.queries[0].text.startswith("Find me") and pictures.queries[0].images == ()
    assert pictures.candidates[0].text == "\nRepresent the given image.\n"
    assert score(task, layouts.oracle(), tmp_path)["hit@1"] == 1


def test_v1_instruction_in_the_system_turn(tmp_path):
    layouts.write_small_v1(tmp_path, rows=2, candidates=3)
    task = read_v1(tmp_path, subset("GQA"), "system")
    query = task.queries[0]
    assert (query.instruction, query.text) == (
        "Represent the given image with the following question:",
        "Which number?",
    )
    candidate = read_v1(tmp_path, subset("MSCOCO_t2i"), "system").candidates[0]
    assert candidate.text is None and candidate.instruction is None and len(candidate.images) == 1
    grounding = {"qry_text": '<|image_1|>\nCrop the image to to isolate the object labeled as "dog"\n'}
    layouts.write_v1(tmp_path, "MSCOCO", [layouts.v1_vqa(1, ["#1"]) | grounding])  # not the words of MMEB-train
    assert read_v1(tmp_path, subset("MSCOCO"), "system").queries[0].text == '"dog"'
    row = layouts.v1_vqa(1, ["#1"]) | {"qry_text": "What is it?"}
    layouts.write_v1(tmp_path, "VizWiz", [row])
    with pytest.raises(ValueError, match=r"row 0.*does not begin with the instruction.*instruction_in='user'"):
        read_v1(tmp_path, subset("VizWiz"), "system")


@pytest.mark.parametrize("prefix", ["", "images/", "MMEB/"])
def test_v1_reads_images_zip(tmp_path, prefix):
    layouts.write_v1(tmp_path, "GQA", [layouts.v1_vqa(5, ["#5", "#6"])])
    layouts.write_zip(tmp_path / "images.zip", {f"{prefix}GQA/5.png": layouts.picture(5)})
    task = read_v1(tmp_path, subset("GQA"), "user")
    assert layouts.number_in(task.queries[0].images[0].read()) == 5


def test_a_candidate_of_many_rows_is_looked_for_once(tmp_path, monkeypatch):
    layouts.write_small_v1(tmp_path, rows=3, candidates=4)
    asked, is_file = [], Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda path: asked.append(path) or is_file(path))
    task = read_v1(tmp_path, subset("MSCOCO_t2i"), "user")
    pictures = [path for path in asked if path.suffix == ".png"]
    assert len(task.candidates) == 6 and len(task.pools) * len(task.pools[0]) == 12
    assert len(pictures) == len(set(pictures))


def test_candidates_that_share_a_picture_but_not_a_caption_are_two(tmp_path):
    layouts.write_pictures(tmp_path, [1, 2])
    rows = [
        {
            "qry_text": "<|image_1|>\nSelect the portion of the image that follows the language expressions: #2\n",
            "qry_img_path": "1.png",
            "tgt_text": [
                f"<|image_1|>\nSelect the portion of the image that follows the language expressions: #{n}\n"
                for n in (2, 3)
            ],
            "tgt_img_path": ["1.png", "1.png"],
        }
    ]
    layouts.write_v1(tmp_path, "RefCOCO-Matching", rows)
    task = read_v1(tmp_path, subset("RefCOCO-Matching"), "user")
    assert len(task.candidates) == 2 and {item.role for item in task.candidates} == {"query"}
    assert score(task, layouts.oracle(), tmp_path)["hit@1"] == 1


def test_a_copy_of_the_gold_is_the_gold(tmp_path):
    layouts.write_pictures(tmp_path, [4, 5])
    (tmp_path / "copy of 4.png").write_bytes(layouts.picture(4))
    row = {
        "qry_text": "Find me an everyday image that matches the given caption: #4",
        "qry_img_path": "",
        "tgt_text": ["<|image_1|>\nRepresent the given image.\n"] * 4,
        "tgt_img_path": ["4.png", "copy of 4.png", "5.png", "4.png"],
    }
    layouts.write_v1(tmp_path, "MSCOCO_t2i", [row])
    assert score(read_v1(tmp_path, subset("MSCOCO_t2i"), "user"), layouts.oracle(), tmp_path)["hit@1"] == 1


def test_ties_never_favour_the_gold_and_legacy_does(tmp_path):
    layouts.write_small_v1(tmp_path)
    task = read_v1(tmp_path, subset("GQA"), "user")
    assert score(task, layouts.constant(), tmp_path)["hit@1"] == 0
    assert score(task, layouts.constant(), tmp_path, "legacy")["hit@1"] == 1


def test_nan_is_an_error(tmp_path):
    layouts.write_small_v1(tmp_path)
    broken = layouts.Fake(lambda item: np.full(layouts.DIM, np.nan), "broken")
    with pytest.raises(ValueError, match="embedding of length nan"):
        score(read_v1(tmp_path, subset("GQA"), "user"), broken, tmp_path)


def test_no_picture_is_written_in_three_ways_but_a_text_none_is_a_text(tmp_path):
    row = layouts.v1_vqa(1, ["None", "#1", "#2"]) | {"tgt_img_path": ["", None, "None"]}
    layouts.write_pictures(tmp_path / "GQA", [1])
    layouts.write_v1(tmp_path, "GQA", [row])
    task = read_v1(tmp_path, subset("GQA"), "user")
    assert [(item.text, item.images) for item in task.candidates] == [("None", ()), ("#1", ()), ("#2", ())]


def test_bad_input_is_named(tmp_path):
    with pytest.raises(Missing, match="GQA"):
        read_v1(tmp_path, subset("GQA"), "user")
    layouts.write_v1(tmp_path, "GQA", [layouts.v1_vqa(9, ["#9", "#8"])])
    with pytest.raises(ValueError, match=r"row 0: no picture 'GQA/9.png' in"):
        read_v1(tmp_path, subset("GQA"), "user")
    file = tmp_path / "GQA" / "test-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"cannot read .*parquet.*interrupted"):
        read_v1(tmp_path, subset("GQA"), "user")
    layouts.write_parquet(file, [{"qry": "a"}])
    with pytest.raises(ValueError, match="no column qry_text"):
        read_v1(tmp_path, subset("GQA"), "user")
    layouts.write_v1(tmp_path, "GQA", [layouts.v1_vqa(9, []) | {"tgt_text": ["a"]}])
    with pytest.raises(ValueError, match="row 0: 1 texts and 0 pictures"):
        read_v1(tmp_path, subset("GQA"), "user")
    (tmp_path / "images.zip").write_bytes(b"PK cut off")
    with pytest.raises(ValueError, match=r"images.zip.*interrupted"):
        read_v1(tmp_path, subset("GQA"), "user")
    (tmp_path / "ImageNet_1K").mkdir()
    with pytest.raises(ValueError, match="has a folder 'ImageNet_1K'; this benchmark spells it 'ImageNet-1K'"):
        read_v1(tmp_path, subset("ImageNet-1K"), "user")


def v2_row(**changes):
    row = {
        "qry_inst": "<|image_1|>\nRepresent the given image with the following question: ",
        "qry_text": "Which number?",
        "qry_img_path": "MMEB/7.png",
        "tgt_inst": "",
        "tgt_text": ["#7", "#8"],
        "tgt_img_path": ["", ""],
    }
    return row | changes


@pytest.mark.parametrize("place", ["image-tasks", "image-query", "annotation/ziyjiang/MMEB_Test_Instruct"])
def test_v2_image_queries_are_worded_as_officially(tmp_path, place):
    layouts.write_parquet(tmp_path / place / "GQA" / "test-00000.parquet", [v2_row()])
    layouts.write_pictures(tmp_path / "image-tasks" / "MMEB", [7])
    task = read_v2_image(tmp_path, subset("GQA"), "user")
    assert task.queries[0].text == "\nRepresent the given image with the following question: Which number?\n"
    asked = read_v2_image(tmp_path, subset("GQA"), "system").queries[0]
    assert (asked.instruction, asked.text) == (
        "Represent the given image with the following question:",
        "Which number?",
    )
    assert score(task, layouts.oracle(), tmp_path)["hit@1"] == 1


def test_v2_image_candidates(tmp_path):
    layouts.write_pictures(tmp_path / "image-tasks", [1, 2])
    row = v2_row(
        qry_inst="<|image_1|>\nFind a Wikipedia image that answers this question: ",
        qry_text="#1?",
        qry_img_path="",
        tgt_inst="<|image_1|>\nRepresent the given Wikipedia image with related text information: ",
        tgt_text=["about #1", "about #2"],
        tgt_img_path=["1.png", "1.png"],
    )
    layouts.write_parquet(tmp_path / "image-tasks/WebQA/test-0.parquet", [row])
    task = read_v2_image(tmp_path, subset("WebQA"), "user")
    # The marker of a text-only query goes; candidates of one picture stay apart by their captions.
    assert task.queries[0].text == "Find a Wikipedia image that answers this question: #1?\n"
    assert [item.text for item in task.candidates] == [
        f"\nRepresent the given Wikipedia image with related text information: about #{n}\n" for n in (1, 2)
    ]
    apart = read_v2_image(tmp_path, subset("WebQA"), "system")
    assert [(item.text, item.instruction) for item in apart.candidates] == [("about #1", None), ("about #2", None)]


def test_v2_candidates_with_another_instruction_are_others(tmp_path):
    layouts.write_pictures(tmp_path / "image-tasks", [1, 2])
    rows = [
        v2_row(qry_img_path="", tgt_inst=f"<|image_1|>\n{words} ", tgt_text=["", ""], tgt_img_path=["1.png", "2.png"])
        for words in ("Represent it:", "Describe it:", "Represent it:")
    ]
    layouts.write_parquet(tmp_path / "image-tasks/WebQA/test-0.parquet", rows)
    task = read_v2_image(tmp_path, subset("WebQA"), "user")
    assert [item.text for item in task.candidates] == ["\nRepresent it:\n"] * 2 + ["\nDescribe it:\n"] * 2
    assert task.pools == [[0, 1], [2, 3], [0, 1]]
