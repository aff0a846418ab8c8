"""Equal content has an equal id."""

from __future__ import annotations

import os

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets
from PIL import Image

from hf_mmembed.data.pairs import read_pairs
from hf_mmembed.mining.ids import canonical_instructions, content_ids, normalise


def pairs(rows, subset="s"):
    return read_pairs(Dataset.from_list(rows), subset=subset)


def row(query="q", pos="p", instruction="", **rest):
    return {"query_text": query, "pos_text": pos, "query_instruction": instruction, **rest}


def test_texts_are_compared_after_normalisation():
    ids = content_ids(pairs([row("A  disc."), row("a\ndisc"), row("a disk"), row("A  disc.", "P!")]))
    assert ids.query_ids.tolist() == [0, 0, 1, 0]
    assert ids.document_ids.tolist() == [0, 0, 0, 0]
    assert ids.query_rows.tolist() == [0, 2] and ids.document_rows.tolist() == [0]
    assert ids.query_ids.dtype == ids.document_ids.dtype == ids.subset_ids.dtype == np.int64


def test_what_normalisation_keeps_apart():
    for one, other in [("C++", "C"), ("-5", "5"), ("10%", "10"), ("a b", "ab"), ("red on blue", "blue on red")]:
        assert normalise(one) != normalise(other)
    assert normalise("ﬁne") == normalise("FINE") == normalise(" fine… ")


def test_pictures_count_by_their_bytes_wherever_they_lie(tmp_path):
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (4, 4), colour).save(tmp_path / f"{name}.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "a.png").read_bytes())

    def picture(name):
        return {"bytes": None, "path": str(tmp_path / f"{name}.png")}

    stored = {"bytes": (tmp_path / "a.png").read_bytes(), "path": None}
    images = [picture("a"), picture("copy"), stored, picture("b"), None]
    table = Dataset.from_dict({"query_image": images, "query_text": [""] * 4 + ["x"], "pos_text": ["p"] * 5})
    ids = content_ids(read_pairs(table))
    assert ids.query_ids.tolist() == [0, 0, 0, 1, 2]
    with_text = Dataset.from_dict({"query_image": images, "query_text": ["x"] * 5, "pos_text": ["p"] * 5})
    assert content_ids(read_pairs(with_text)).query_ids.tolist() == [0, 0, 0, 1, 2]
    (tmp_path / "b.png").unlink()
    with pytest.raises(ValueError, match=r"row 3: the picture .*b\.png cannot be read"):
        content_ids(read_pairs(table))
    os.mkfifo(tmp_path / "b.png")  # opening it would wait for a writer
    with pytest.raises(ValueError, match=r"row 3: the picture .*b\.png cannot be read .*it is no file"):
        content_ids(read_pairs(table))


def test_wordings_of_one_instruction_are_one_query_and_tasks_are_two():
    one = pairs([row(instruction="Find it."), row(instruction="Find it."), row(instruction="Look for it.")], "find")
    other = pairs([row(instruction="Name it.")], "name")
    both = concatenate_datasets([one, other])
    ids = content_ids(both)
    assert ids.query_ids.tolist() == [0, 0, 0, 1]
    assert ids.document_ids.tolist() == [0, 0, 0, 0]
    assert ids.subsets == ("find", "name") and ids.subset_ids.tolist() == [0, 0, 0, 1]
    assert ids.instructions == ("Find it.", "Name it.")
    assert canonical_instructions(both) == {"find": "Find it.", "name": "Name it."}
    assert content_ids(both, canonical_instruction="Do it.").query_ids.tolist() == [0, 0, 0, 0]
    assert content_ids(both, canonical_instruction={"name": "Find it."}).query_ids.tolist() == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="no subset 'nmae'"):
        content_ids(both, canonical_instruction={"nmae": "x"})


def test_negatives_share_the_ids_of_documents():
    rows = [
        row(pos="a", neg_text=["b", "new"]),
        row(pos="b", neg_text=[]),
        row(pos="c", neg_text=["", "New!", "A"]),
    ]
    ids = content_ids(pairs(rows))
    assert ids.document_ids.tolist() == [0, 1, 2]
    assert ids.negative_ids.tolist() == [[1, 3], [-1, -1], [3, 0]]
    assert len(ids.document_digests) == 3


def test_digests_do_not_depend_on_what_else_is_there():
    rows = [row(f"q{i % 7}", f"p{i % 5}") for i in range(700)]
    whole, part = content_ids(pairs(rows)), content_ids(pairs(rows[::-1][:3]))
    assert len(whole.query_digests) == 7 and len(whole.document_digests) == 5
    assert whole.query_ids.tolist() == [i % 7 for i in range(700)]
    assert {bytes(d) for d in part.query_digests} <= {bytes(d) for d in whole.query_digests}


def test_the_fingerprint_is_of_the_contents_and_their_order():
    some = [row("a disc", "round", "Find it."), row("a box", "square")]
    [once, instructed, turned, other] = [
        content_ids(pairs(rows)).fingerprint
        for rows in (
            some,
            [{**one, "query_instruction": "Seek."} for one in some],
            some[::-1],
            [some[0], row("a box", "cubic")],
        )
    ]
    assert once == instructed and len({once, turned, other}) == 3 and len(once) == 32
