"""CSV, TSV, JSONL, Parquet, image folders with metadata and saved datasets."""

from __future__ import annotations

import csv
import io
import json

import datasets
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from hf_mmembed.data import open_source

ODD_TEXTS = [
    "NA",
    "null",
    "007",
    "1e5",
    "true",
    'a, b\n"c"',
    "pics/a.png",
    "https://x.org/a.png",
    "<|im_end|>",
    "漢字",
]


def png(color="red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / "pics").mkdir()
    for name in ("a", "b"):
        (tmp_path / f"pics/{name}.png").write_bytes(png())
    return tmp_path


def write_csv(path, rows, names, delimiter=","):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
        writer.writerows([names, *rows])
    return path


def rows_of(source):
    return [source[row] for row in range(len(source))]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet", "dataset"])
def test_texts_are_texts_in_every_format(pictures, kind):
    path = pictures / f"t.{kind}"
    if kind in ("csv", "tsv"):
        write_csv(path, [[text] for text in ODD_TEXTS], ["text"], "\t" if kind == "tsv" else ",")
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps({"text": text}) for text in ODD_TEXTS))
    elif kind == "parquet":
        datasets.Dataset.from_dict({"text": ODD_TEXTS}).to_parquet(path)
    else:
        datasets.Dataset.from_dict({"text": ODD_TEXTS}).save_to_disk(path)
    source = open_source(path)
    assert [row.text for row in rows_of(source)] == ODD_TEXTS
    assert all(row.image is None for row in rows_of(source))
    assert (source.text_column, source.image_column) == ("text", None)


def test_picture_paths_are_relative_to_the_table(pictures):
    write_csv(pictures / "t.csv", [["pics/a.png", "one", "3"], ["", "two", ""]], ["image", "caption", "label"])
    source = open_source(pictures / "t.csv")
    assert [row.image for row in rows_of(source)] == [pictures / "pics/a.png", None]
    assert [row.text for row in rows_of(source)] == ["one", "two"]
    assert [source.name(0), source.name(1)] == ["pics/a.png", "t.csv row 1"]
    assert source.notes == ["pictures from column 'image' and texts from column 'caption'; not embedded: 'label'"]


def test_a_named_column_is_the_only_one_used(pictures):
    write_csv(pictures / "t.csv", [["pics/a.png", "one"]], ["image", "text"])
    source = open_source(pictures / "t.csv", image_column="image")
    assert source[0].text is None and source[0].image is not None


@pytest.mark.parametrize(
    "url", ["http://x.org/a.png", "https://x.org/a.png", "file:///etc/passwd", "data:image/png;base64,AA"]
)
def test_urls_are_not_pictures(pictures, url):
    write_csv(pictures / "t.csv", [[url]], ["image"])
    source = open_source(pictures / "t.csv")
    with pytest.raises(ValueError, match="URLs are not fetched"):
        source[0]
    assert source.fingerprint(0)


def test_an_empty_row_is_an_error_of_that_row(pictures):
    write_csv(pictures / "t.csv", [["", ""], ["pics/a.png", " "]], ["image", "text"])
    source = open_source(pictures / "t.csv")
    with pytest.raises(ValueError, match="the row is empty"):
        source[0]
    assert source[1].text is None


@pytest.mark.parametrize("kind", ["parquet", "dataset"])
def test_pictures_stored_in_a_table(pictures, kind):
    features = datasets.Features({"photo": datasets.Image(), "text": datasets.Value("string")})
    cells = [{"bytes": png(c), "path": None} for c in ("red", "blue", "green")]
    table = datasets.Dataset.from_dict({"photo": cells, "text": ["r", "b", "g"]}, features=features)
    path = pictures / f"t.{kind}"
    if kind == "parquet":
        table.to_parquet(path, batch_size=2)
    else:
        table.save_to_disk(path)
    source = open_source(path)
    assert source.image_column == "photo"
    assert [source[row].image for row in (2, 0, 1)] == [png("green"), png("red"), png("blue")]
    assert len({source.fingerprint(row) for row in range(3)}) == 3


@pytest.mark.parametrize("kind", [pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int32(), pa.binary())])
def test_every_type_of_stored_picture(tmp_path, kind):
    cells = [png("red"), png("blue"), png("red")]
    parquet.write_table(pa.table({"photo": pa.array(cells).cast(kind)}), tmp_path / "t.parquet")
    source = open_source(tmp_path / "t.parquet")
    assert source.image_column == "photo" and [source[row].image for row in range(3)] == cells


def test_two_columns_of_one_name_are_named(tmp_path):
    parquet.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"cannot read .*t\.parquet: several columns are called 'text'"):
        open_source(tmp_path / "t.parquet")


def test_an_imagefolder_follows_its_metadata(pictures):
    lines = [{"file_name": "pics/b.png", "text": "b"}, {"file_name": "gone.png", "text": "g"}]
    (pictures / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    source = open_source(pictures)
    assert source.kind == "imagefolder" and source.path == pictures
    assert [source.name(0), source.name(1)] == ["pics/b.png", "gone.png"]
    assert source[0].text == "b" and source[0].image == pictures / "pics/b.png"
    assert "left out 1 pictures that metadata.jsonl does not name" in source.notes


def test_paths_in_metadata_may_be_written_in_any_way(pictures):
    names = ["./pics/a.png", f"{pictures}/pics/../pics/b.png"]
    (pictures / "metadata.jsonl").write_text("\n".join(json.dumps({"file_name": name}) for name in names))
    source = open_source(pictures)
    assert source.notes == ["pictures from column 'file_name'"] and len(source) == 2


def test_metadata_may_name_pictures_elsewhere(pictures):
    (pictures / "table").mkdir()
    write_csv(pictures / "table/metadata.csv", [["../pics/a.png"]], ["file_name"])
    assert open_source(pictures / "table")[0].image == pictures / "table/../pics/a.png"


def test_unrelated_metadata_leaves_a_plain_folder(pictures):
    write_csv(pictures / "metadata.csv", [["1", "May"]], ["id", "text"])
    source = open_source(pictures)
    assert (source.kind, [source.name(row) for row in range(len(source))]) == ("folder", ["pics/a.png", "pics/b.png"])
    assert "metadata.csv names no pictures, so it is not used; it has 'id' (text), 'text' (text)" in source.notes


def test_an_odd_cell_is_an_error_of_its_row(pictures):
    odd = [
        {"text": "a red star", "image": "pics/a.png"},
        {"text": 5},
        {"text": "b", "image": ["pics/b.png"]},
        {"text": "5"},
    ]
    (pictures / "t.jsonl").write_text("\n".join(map(json.dumps, odd)))
    source = open_source(pictures / "t.jsonl")
    assert source[0].image == pictures / "pics/a.png" and source[3].text == "5"
    with pytest.raises(ValueError, match="column 'text' holds int 5, not text"):
        source[1]
    with pytest.raises(ValueError, match=r"column 'image' holds list .*b.png.*, not text"):
        source[2]
    assert source.name(2) == "t.jsonl row 2"
    assert len({source.fingerprint(row) for row in range(4)}) == 4


def test_a_column_without_values_is_no_obstacle(pictures):
    datasets.Dataset.from_dict({"image": ["pics/a.png"], "text": [None]}).to_parquet(pictures / "t.parquet")
    assert open_source(pictures / "t.parquet")[0].image == pictures / "pics/a.png"


@pytest.mark.parametrize("content", ["{broken", "[]", "{}"])
def test_a_broken_saved_dataset_names_the_file(tmp_path, content):
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "d")
    (tmp_path / "d/state.json").write_text(content)
    with pytest.raises(ValueError, match=r"cannot read .*d/state.json .*save the dataset again"):
        open_source(tmp_path / "d")


def test_fingerprints_follow_the_files_of_a_parquet_column_that_can_hold_pictures(pictures):
    """Row groups of pictures alone, of both, of paths alone and of neither."""
    file, stored = {"bytes": None, "path": "pics/a.png"}, {"bytes": png(), "path": "pics/a.png"}
    cells = [stored, stored, stored, file, file, {"bytes": None, "path": "pics/gone.png"}, None, None]
    features = datasets.Features({"image": datasets.Image(decode=False), "text": datasets.Value("string")})
    table = pa.table({"image": cells, "text": ["x"] * 8}, schema=features.arrow_schema)
    parquet.write_table(table, pictures / "t.parquet", row_group_size=2)

    def fingerprints():
        source = open_source(pictures / "t.parquet")
        return [source.fingerprint(row) for row in range(8)]

    before = fingerprints()
    (pictures / "pics/a.png").write_bytes(png("blue") + b" longer")
    (pictures / "pics/gone.png").write_bytes(png())
    assert [row for row in range(8) if fingerprints()[row] != before[row]] == [3, 4, 5]
    assert len(set(before)) == 8


def test_fingerprints_follow_texts_and_picture_files(pictures):
    write_csv(pictures / "t.csv", [["pics/a.png", "one"], ["pics/b.png", "two"]], ["image", "text"])
    before = [open_source(pictures / "t.csv").fingerprint(row) for row in range(2)]
    write_csv(pictures / "t.csv", [["pics/a.png", "ONE"], ["pics/b.png", "two"]], ["image", "text"])
    (pictures / "pics/b.png").write_bytes(png("blue") + b" ")
    after = [open_source(pictures / "t.csv").fingerprint(row) for row in range(2)]
    assert before[0] != after[0] and before[1] != after[1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "id,label\n1,2\n", "no column that looks like.*'id' .text., 'label'"),
        ("t.csv", "text\n", "has no rows"),
        ("t.csv", "", "cannot read .*t.csv"),
        ("t.csv", "text,text\na,b\n", "several columns are called 'text'"),
        ("t.csv", "text\na,b\n", "cannot read .*t.csv"),
        ("t.csv", "text;image\na, b;c\nd;e\n", "cannot read .*t.csv.*holds ';' and no comma: save it with commas"),
        ("t.csv", "text\nü\n".encode("latin-1"), "cannot read .*t.csv.*; save it as UTF-8"),
        ("t.csv", "tëxt\na\n".encode("latin-1"), "cannot read .*t.csv.*; save it as UTF-8"),
        ("t.jsonl", '{"text": "ü"}\n'.encode("latin-1"), "line 1 is not UTF-8; save it as UTF-8"),
        ("t.jsonl", '{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
        ("t.jsonl", '{"text": "a"}\n["b"]\n', "line 2 is a list, not a JSON object"),
        ("t.jsonl", '{"caption": 5, "image": "a.png"}\n', "column 'caption' of .* holds int, not text: name the"),
        ("t.jsonl", '{"text": "a", "image": ["a.png"]}\n', "column 'image' of .* holds list, not text or image"),
        ("t.parquet", "no parquet", "cannot read .*t.parquet"),
    ],
)
def test_broken_tables_say_what_is_wrong(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path / name)


def test_unknown_and_unfit_columns(tmp_path):
    datasets.Dataset.from_dict({"text": ["a"], "label": [3]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="no column 'txt' in .*t.parquet; it has 'text' .text., 'label' .int64."):
        open_source(tmp_path / "t.parquet", text_column="txt")
    with pytest.raises(ValueError, match="column 'label' .* holds int64, not text"):
        open_source(tmp_path / "t.parquet", text_column="label")


def test_a_dataset_dict_asks_for_a_split(tmp_path):
    split = datasets.Dataset.from_dict({"text": ["a"]})
    datasets.DatasetDict({"train": split, "test": split}).save_to_disk(tmp_path / "d")
    with pytest.raises(ValueError, match=r"name one of its splits \(.*test, .*train\)"):
        open_source(tmp_path / "d")
    assert open_source(tmp_path / "d" / "test")[0].text == "a"


def test_half_a_surrogate_pair_is_an_error_of_that_row(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "\\ud800"}\n{"text": "\\ud83d\\ude00"}\n')
    source = open_source(tmp_path / "t.jsonl")
    with pytest.raises(ValueError, match="not valid Unicode"):
        source[0]
    assert source[1].text == "😀" and source.fingerprint(0) != source.fingerprint(1)


def test_a_csv_cell_may_be_long(tmp_path):
    texts = ["a", "x" * 2_500_000, "b"]
    write_csv(tmp_path / "t.csv", [[text] for text in texts], ["text"])
    assert [row.text for row in rows_of(open_source(tmp_path / "t.csv"))] == texts


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1), min_size=1))
def test_any_text_survives_csv_and_jsonl(tmp_path, texts):
    texts = [text for text in texts if text.strip()] or ["a"]
    write_csv(tmp_path / "t.csv", [[text, "x"] for text in texts], ["text", "other"])
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    for name in ("t.csv", "t.jsonl"):
        assert [row.text for row in rows_of(open_source(tmp_path / name))] == texts
