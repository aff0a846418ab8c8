"""Pairs from every kind of source come out the same."""

from __future__ import annotations

import json

import datasets
import numpy as np
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Image as ImageFeature
from datasets.arrow_writer import ArrowWriter
from datasets.splits import SplitDict, SplitInfo
from PIL import Image
from pyarrow import parquet

from hf_mmembed.data.pair_schema import check_pairs
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
    rows = [
        '{"query": "a", "positive": "b", "negative": null}',
        f'{{"query": "a", "positive": "b", "negative": {cell}}}',
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows))
    with pytest.raises(ValueError, match="pairs.jsonl, row 1: 'negative' is no text"):
        read_pairs(tmp_path / "pairs.jsonl")


@pytest.mark.parametrize("cells", [(2**64, 1), (1, "a"), ("a", ["b"]), ("a", "\ud800")])
def test_a_column_that_nobody_asks_for_may_hold_anything(tmp_path, cells):
    rows = [{"query": "a", "positive": "b", "more": cell} for cell in cells]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [query_of(row) for row in read_pairs(tmp_path / "pairs.jsonl")] == [{"text": "a"}] * 2
    (tmp_path / "usual.jsonl").write_text("\n".join(json.dumps({**row, "answer": row["more"]}) for row in rows))
    assert [document_of(row) for row in read_pairs(tmp_path / "usual.jsonl")] == [{"text": "b"}] * 2
    with pytest.raises(ValueError, match=r"pairs\.jsonl.*'more' (is no text|holds values of different types)"):
        read_pairs(tmp_path / "pairs.jsonl", columns={"query_text": "more", "pos_text": "positive"})


def test_parquet_files_that_hold_no_table_of_pairs(tmp_path):
    parquet.write_table(pa.table({"query": pa.array([], pa.string())}), tmp_path / "none.parquet")
    with pytest.raises(ValueError, match=r"none\.parquet has no rows"):
        read_pairs(tmp_path / "none.parquet")
    parquet.write_table(pa.table([["a"], ["b"]], names=["query", "query"]), tmp_path / "twice.parquet")
    with pytest.raises(ValueError, match=r"cannot read .*twice\.parquet: several columns are called 'query'"):
        read_pairs(tmp_path / "twice.parquet")


@pytest.mark.parametrize("text", [pa.string(), pa.large_string(), pa.string_view()])
@pytest.mark.parametrize("data", [pa.binary(), pa.large_binary(), pa.binary_view()])
@pytest.mark.parametrize("list_of", [pa.list_, pa.large_list, lambda kind: pa.list_(kind, 2)])
def test_every_type_of_text_and_picture(tmp_path, text, data, list_of):
    one, other = png(tmp_path / "a.png").read_bytes(), png(tmp_path / "b.png", "blue").read_bytes()
    columns = {
        "query": pa.array(["a"], text),
        "positive": pa.array([one], data),
        "negative": pa.array([[other, one]], list_of(data)),
    }
    parquet.write_table(pa.table(columns), tmp_path / "pairs.parquet")
    [row] = read_pairs(tmp_path / "pairs.parquet")
    assert (query_of(row), document_of(row)) == ({"text": "a"}, {"image": one})
    assert negatives_of(row) == [{"image": other}, {"image": one}]


def test_pictures_of_more_than_two_gigabytes(tmp_path):
    """In one piece they do not fit the offsets of their type. Here all rows share one piece of untouched memory."""
    size = 1 << 28
    offsets = pa.py_buffer(np.array([0, size], np.int32))
    data = pa.Array.from_buffers(pa.binary(), 1, [None, offsets, pa.allocate_buffer(size)])
    pictures = pa.StructArray.from_arrays([data, pa.array([None], pa.string())], ["bytes", "path"])
    rows = read_pairs(Dataset.from_dict({"query": ["a"] * 9, "positive": ["b"] * 9})).data.table
    place = rows.schema.get_field_index("pos_image")
    table = rows.set_column(place, "pos_image", pa.chunked_array([pictures] * 9))
    pairs = Dataset(table, fingerprint="of its own, since they are not to be read")
    assert check_pairs(pairs, "pairs") is pairs


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
    assert query_of(pairs[1]) == {"text": "Who is it?\n", "image": image, "instruction": f"\n{QUESTION}"}
    assert document_of(pairs[1]) == {"text": "a man"}
    assert negatives_of(pairs[0]) == [{"text": "train"}] and negatives_of(pairs[1]) == []
    assert query_of(pairs[3]) == {"text": "A cat.", "instruction": "Find me an everyday image. "}
    assert document_of(pairs[3]) == {
        "image": str(mmeb_train / "images/1.jpg"),
        "instruction": "\nRepresent the given image.\n",
    }


def test_mmeb_train_in_other_words_has_the_same_contents(mmeb_train):
    pairs = read_pairs(mmeb_train / "A-OKVQA", split="diverse_instruction")
    assert pairs["query_text"][:] == ["What is it?\n", "Who is it?\n"]
    assert pairs["query_instruction"][:] == [f"\n{QUESTION}", "\nAnswer it: "]
    with pytest.raises(ValueError, match="has no split 'train'; it has diverse_instruction, original"):
        read_pairs(mmeb_train / "A-OKVQA")
    with pytest.raises(ValueError, match="has no subset 'CIRR'; it has A-OKVQA, MSCOCO_t2i"):
        read_pairs(mmeb_train, split="original", subset="CIRR")
    assert len(read_pairs(mmeb_train, split="original", subset="MSCOCO_t2i")) == 2
