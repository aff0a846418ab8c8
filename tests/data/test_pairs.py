"""Pairs from every kind of source come out the same."""

from __future__ import annotations

import json

import datasets
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Image as ImageFeature
from datasets.arrow_writer import ArrowWriter
from datasets.splits import SplitDict, SplitInfo
from PIL import Image
from pyarrow import parquet

from hf_mmembed.data.pairs import (
    NEGATIVE_FEATURES,
    PAIR_FEATURES,
    document_of,
    negatives_of,
    query_of,
    read_pairs,
)


def png(path, colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), colour).save(path)
    return path


TABLE = {"query": ["a disc", "a box"], "positive": ["round", "square"]}


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_tables(tmp_path, suffix):
    path = tmp_path / f"shapes.{suffix}"
    if suffix == "parquet":
        parquet.write_table(pa.table(TABLE), path)
    elif suffix == "jsonl":
        path.write_text(
            "".join(json.dumps(dict(zip(TABLE, row, strict=True))) + "\n" for row in zip(*TABLE.values(), strict=True))
        )
    else:
        tab = "," if suffix == "csv" else "\t"
        path.write_text(
            "\n".join([tab.join(TABLE), *(tab.join(row) for row in zip(*TABLE.values(), strict=True))]) + "\n"
        )
    pairs = read_pairs(path)
    assert pairs.features == PAIR_FEATURES and list(pairs.features) == list(PAIR_FEATURES)
    assert [query_of(row) for row in pairs] == [{"text": "a disc"}, {"text": "a box"}]
    assert [document_of(row) for row in pairs] == [{"text": "round"}, {"text": "square"}]
    assert pairs["subset"][0] == "shapes" and read_pairs(path, subset="x")["subset"][0] == "x"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """`hub(repository, configuration, table)` is on the Hub as far as `datasets` knows, which has it in its cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)

    def publish(repository, configuration, table):
        name = repository.rpartition("/")[2]
        folder = tmp_path / "cache" / repository.replace("/", "___") / configuration / "0.0.0" / "commit"
        folder.mkdir(parents=True)
        rows = Dataset.from_dict(table)
        with ArrowWriter(path=str(folder / f"{name}-test.arrow"), features=rows.features) as writer:
            writer.write_table(rows.data.table)
            writer.finalize()
        split = SplitInfo("test", num_examples=len(rows), dataset_name=name)
        info = datasets.DatasetInfo(
            features=rows.features,
            splits=SplitDict({"test": split}, dataset_name=name),
            dataset_name=name,
            config_name=configuration,
            version="0.0.0",
        )
        info.write_to_directory(str(folder))

    return publish


def test_a_dataset_on_the_hub(hub):
    hub("someone/shapes", "default", TABLE)
    hub("someone/shapes", "german", {"frage": ["eine Scheibe"], "antwort": ["rund"]})
    pairs = read_pairs("someone/shapes", split="test", subset="default")
    assert [query_of(row) for row in pairs] == [{"text": "a disc"}, {"text": "a box"}]
    assert pairs["subset"][:] == ["default", "default"]
    german = {"query_text": "frage", "pos_text": "antwort"}
    [row] = read_pairs("someone/shapes", split="test", subset="german", columns=german)
    assert document_of(row) == {"text": "rund"} and row["subset"] == "german"
    with pytest.raises(ValueError, match="train"):
        read_pairs("someone/shapes", subset="german", columns=german)


def test_hub_datasets_that_cannot_be_read_as_they_are(hub):
    hub("someone/shapes", "default", TABLE)
    assert read_pairs("someone/shapes", split="test")["subset"][:] == ["shapes", "shapes"]
    with pytest.raises(ConnectionError, match="nobody/shapes"):
        read_pairs("nobody/shapes")
    hub(
        "someone/mmeb",
        "default",
        {"qry": ["q"], "qry_image_path": ["a.jpg"], "pos_text": ["p"], "pos_image_path": [""]},
    )
    with pytest.raises(ValueError, match="the pictures of someone/mmeb lie in archives .*hf download someone/mmeb"):
        read_pairs("someone/mmeb", split="test")
    for path in ("./shapes", "a/b/c", "shapes.csv"):
        with pytest.raises(FileNotFoundError, match="no such input"):
            read_pairs(path)


def test_an_image_folder_with_captions(tmp_path):
    png(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a red square"}\n')
    [row] = read_pairs(tmp_path)
    assert query_of(row) == {"text": "a red square"}
    assert document_of(row) == {"image": str(tmp_path / "a.png")}
    [row] = read_pairs(tmp_path, columns={"query_image": "file_name", "pos_text": "text"})
    assert query_of(row) == {"image": str(tmp_path / "a.png")} and document_of(row) == {"text": "a red square"}


def test_stored_pictures_stay_encoded_and_labels_become_their_names(tmp_path):
    data = png(tmp_path / "a.png").read_bytes()
    features = Features({"photo": ImageFeature(), "kind": ClassLabel(names=["cat", "dog"])})
    raw = Dataset.from_dict({"photo": [{"bytes": data, "path": None}], "kind": [1]}, features=features)
    DatasetDict({"train": raw}).save_to_disk(tmp_path / "saved")
    columns = {"query_image": "photo", "pos_text": "kind"}
    [row] = read_pairs(tmp_path / "saved", columns=columns)
    assert query_of(row) == {"image": data} and document_of(row) == {"text": "dog"}
    with pytest.raises(ValueError, match="has no split 'test'; it has 'train'"):
        read_pairs(tmp_path / "saved", columns=columns, split="test")
    shuffled = Dataset.from_dict({"photo": [data, b"x"], "pos": ["p", "q"]}).select([1, 0])
    assert [
        query_of(row)["image"] for row in read_pairs(shuffled, columns={"query_image": "photo", "pos_text": "pos"})
    ] == [b"x", data]


def test_negatives(tmp_path):
    raw = Dataset.from_dict({"anchor": ["a", "b"], "positive": ["p", "q"], "negative": ["n", None]})
    pairs = read_pairs(raw)
    assert pairs.features == Features({**PAIR_FEATURES, "neg_text": NEGATIVE_FEATURES["neg_text"]})
    assert [negatives_of(row) for row in pairs] == [[{"text": "n"}], []]
    rows = [
        {
            "query_text": "a",
            "pos_text": "p",
            "pos_instruction": "Name it.",
            "neg_text": ["n", "m"],
            "neg_score": [0.5, 0.1],
        }
    ]
    [row] = read_pairs(Dataset.from_list(rows))
    assert negatives_of(row) == [{"text": t, "instruction": "Name it."} for t in "nm"] and row["neg_score"] == [
        0.5,
        0.1,
    ]
    rows[0]["neg_image"] = ["a.png"]
    with pytest.raises(ValueError, match="row 0 has neg_text and neg_image of different lengths"):
        read_pairs(Dataset.from_list(rows))


@pytest.mark.parametrize(
    ("table", "columns", "message"),
    [
        ({"a": ["x"], "b": ["y"]}, None, r"cannot tell queries and documents among 'a' \(string\), 'b' \(string\)"),
        (
            {"a": ["x"], "b": ["y"]},
            {"query_text": "c", "pos_text": "b"},
            "no column 'c' for 'query_text'; there are 'a'",
        ),
        ({"a": ["x"], "b": ["y"]}, {"question": "a"}, "a pair has no column 'question'; it has query_text"),
        ({"a": [1], "b": ["y"]}, {"query_text": "a", "pos_text": "b"}, "column 'a' holds int64, not text"),
        ({"query": ["x", " "], "pos": ["y", "z"]}, None, "row 1 has neither query_text nor query_image"),
        ({"query": ["x", "y"], "pos": [None, "z"]}, None, "row 0 has neither pos_text nor pos_image"),
        (
            {"text": ["x"], "image": ["https://example.org/a.png"]},
            None,
            "row 0, column 'image': .*URLs are not fetched",
        ),
        ({"query": [], "pos": []}, None, "has no rows"),
    ],
)
def test_what_is_wrong_is_named(table, columns, message):
    raw = Dataset.from_dict(table)
    if not len(raw):
        raw = raw.cast(Features({"query": Value("string"), "pos": Value("string")}))
    with pytest.raises(ValueError, match=message):
        read_pairs(raw, columns=columns)


@pytest.mark.parametrize(
    "source",
    [DatasetDict({"train": Dataset.from_dict({"query": ["a"], "positive": ["b"]})}),
     Dataset.from_dict({"query": ["a"], "positive": ["b"]}).to_iterable_dataset(), [{"query": "a", "positive": "b"}]],
)  # fmt: skip
def test_sources_of_another_kind_are_named(source):
    with pytest.raises(ValueError, match=f"cannot read pairs from a {type(source).__name__}: give a path"):
        read_pairs(source)


def test_paths_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such input"):
        read_pairs(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no such input"):
        read_pairs("nowhere.csv")
    with pytest.raises(ValueError, match="is no folder of pairs: it needs one of metadata.jsonl"):
        read_pairs(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    Dataset.from_dict(TABLE).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved/dataset_info.json").write_text("{broken")
    with pytest.raises(ValueError, match="cannot read .*saved .*save the dataset again"):
        read_pairs(tmp_path / "saved")
    with pytest.raises(ValueError, match="cannot read pairs from .*a.txt"):
        read_pairs(tmp_path / "a.txt")


@pytest.mark.parametrize("cell", ['"a \\ud800"', '["a", "\\udfff"]'])
def test_half_a_surrogate_pair_is_named(tmp_path, cell):
    rows = ['{"query": "a", "positive": "b", "more": null}', f'{{"query": "a", "positive": "b", "more": {cell}}}']
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows))
    with pytest.raises(ValueError, match="pairs.jsonl, row 1: 'more' is no text"):
        read_pairs(tmp_path / "pairs.jsonl")


MARK = "<|image_1|>\n"
QUESTION = "Represent the given image with the following question: "


def mmeb(root, subset, split, rows):
    names = ("qry", "qry_image_path", "pos_text", "pos_image_path", "neg_text", "neg_image_path")
    columns = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    (root / subset).mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), root / subset / f"{split}-00000-of-00001.parquet")


@pytest.fixture
def mmeb_train(tmp_path):
    image = "images/A-OKVQA/Train/0.jpg"
    questions = ["What is it?", "Who is it?"]
    answers = [("cab", "", "train", ""), ("a man", "", "", "")]
    for split, wordings in (("original", [QUESTION] * 2), ("diverse_instruction", [QUESTION, "Answer it: "])):
        rows = [(MARK + w + q + "\n", image, *a) for w, q, a in zip(wordings, questions, answers, strict=True)]
        mmeb(tmp_path, "A-OKVQA", split, rows)
    captions = ["Find me an everyday image. Two dogs.", "Find me an everyday image. A cat."]
    rows = [
        (caption, "", MARK + "Represent the given image.\n", f"images/{i}.jpg", "", "")
        for i, caption in enumerate(captions)
    ]
    mmeb(tmp_path, "MSCOCO_t2i", "original", rows)
    return tmp_path


def test_mmeb_train_takes_instructions_and_contents_apart(mmeb_train):
    pairs = read_pairs(mmeb_train, split="original")
    assert pairs["subset"][:] == ["A-OKVQA", "A-OKVQA", "MSCOCO_t2i", "MSCOCO_t2i"]
    image = str(mmeb_train / "images/A-OKVQA/Train/0.jpg")
    assert query_of(pairs[1]) == {"text": "Who is it?", "image": image, "instruction": QUESTION.strip()}
    assert document_of(pairs[1]) == {"text": "a man"}
    assert negatives_of(pairs[0]) == [{"text": "train"}] and negatives_of(pairs[1]) == []
    assert query_of(pairs[3]) == {"text": "A cat.", "instruction": "Find me an everyday image."}
    assert document_of(pairs[3]) == {
        "image": str(mmeb_train / "images/1.jpg"),
        "instruction": "Represent the given image.",
    }


def test_mmeb_train_in_other_words_has_the_same_contents(mmeb_train):
    pairs = read_pairs(mmeb_train / "A-OKVQA", split="diverse_instruction")
    assert pairs["query_text"][:] == ["What is it?", "Who is it?"]
    assert pairs["query_instruction"][:] == [QUESTION.strip(), "Answer it:"]
    with pytest.raises(ValueError, match="has no split 'train'; it has diverse_instruction, original"):
        read_pairs(mmeb_train / "A-OKVQA")
    with pytest.raises(ValueError, match="has no subset 'CIRR'; it has A-OKVQA, MSCOCO_t2i"):
        read_pairs(mmeb_train, split="original", subset="CIRR")
    assert len(read_pairs(mmeb_train, split="original", subset="MSCOCO_t2i")) == 2
