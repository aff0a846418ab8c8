"""Opening and searching an index."""

from __future__ import annotations

import json
import os
import shutil

import datasets
import faiss
import numpy as np
import pytest
from PIL import Image
from sentence_transformers.sentence_transformer.modules import Dense

from hf_mmembed import MMEmbedder
from hf_mmembed.data import open_source
from hf_mmembed.index import Index, build_index, embed_query, embed_source, vectors
from hf_mmembed.index.manifest import read_manifest
from hf_mmembed.index.search import _index_command
from tests.index.fake_embedder import DIM, FakeEmbedder, identity


@pytest.fixture(scope="session")
def index_directory(many_pictures, tmp_path_factory):
    """An index over `many_pictures`; do not write to it."""
    out = tmp_path_factory.mktemp("index") / "out"
    build_index(out, embed_source(open_source(many_pictures), FakeEmbedder(), identity(), out, shard_size=7))
    return out


def test_vectors_have_unit_length_whatever_follows_the_model(embedder, many_pictures, tmp_path):
    opened = MMEmbedder(str(embedder("qwen2_vl")), device="cpu")
    model = MMEmbedder(modules=[opened[0], Dense(opened.get_embedding_dimension(), DIM)], device="cpu")
    assert abs(np.linalg.norm(model.encode("a dog")) - 1) > 1e-3
    report = embed_source(open_source(many_pictures / "08.png"), model, identity(), tmp_path / "out")
    build_index(tmp_path / "out", report)
    items = datasets.load_from_disk(str(tmp_path / "out/items"))
    assert np.linalg.norm(items["embedding"][0]) == pytest.approx(1, abs=1e-6)
    assert np.linalg.norm(embed_query(model, text="a dog")) == pytest.approx(1, abs=1e-6)


def test_hits_are_the_most_similar_items_in_order(index_directory, many_pictures, fake):
    index = Index(index_directory)
    query = embed_query(fake, image=many_pictures / "08.png")
    hits = index.search(query, k=18)
    items = datasets.load_from_disk(str(index_directory / "items"))
    scores = np.asarray(items["embedding"][:], np.float64) @ query.astype(np.float64)
    order = sorted(range(18), key=lambda place: (-np.float32(scores[place]), place))
    assert hits[0].name == "08.png" and hits[0].score == pytest.approx(1, abs=1e-6)
    assert [hit.rank for hit in hits] == list(range(1, 19))
    np.testing.assert_allclose([hit.score for hit in hits], scores[order], atol=1e-6)
    assert {hit.name for hit in hits} == set(items["name"][:])
    assert [(hit.path, hit.row) for hit in hits] == [
        (str(many_pictures / hit.name), items["row"][:][items["name"][:].index(hit.name)]) for hit in hits
    ]


def test_copies_tie_and_come_in_row_order(index_directory, many_pictures, fake):
    hits = Index(index_directory).search(embed_query(fake, image=many_pictures / "03.png"), k=2)
    assert [hit.name for hit in hits] == ["03 copy.png", "03.png"] and hits[0].score == hits[1].score


def test_k_beyond_the_index_gives_all(index_directory, fake):
    assert len(Index(index_directory).search(embed_query(fake, text="x"), k=1000)) == len(Index(index_directory)) == 18


@pytest.mark.parametrize(("shape", "k", "message"), [((DIM + 1,), 1, "dimension 24"), ((DIM,), 0, "k is 0")])
def test_unfit_arguments(index_directory, shape, k, message):
    with pytest.raises(ValueError, match=message):
        Index(index_directory).search(np.ones(shape, np.float32), k)


def test_the_query_carries_text_picture_and_instruction(fake, many_pictures):
    embed_query(fake, text="make it blue", image=many_pictures / "01.png", instruction="Find it.")
    ((query,),) = fake.calls
    assert (query["text"], query["instruction"]) == ("make it blue", "Find it.")
    assert isinstance(query["image"], Image.Image)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({}, "query is empty"),
        ({"text": "  "}, "query is empty"),
        ({"image": "gone.png"}, "no file gone.png"),
        ({"image": "https://x.org/a.png"}, "cannot search for the picture https://x.org/a.png: there is no file"),
    ],
)
def test_unfit_queries(fake, query, message):
    with pytest.raises(ValueError, match=message):
        embed_query(fake, **query)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (identity("retrained"), "another embedder .fake, revision None.*the model files model.safetensors"),
        (identity(prompt_hash="shorter"), "the prompt .hash prompt there, shorter here"),
        (identity(dimension=8), "the dimension .24 there, 8 here"),
    ],
)
def test_another_model_or_prompt_is_refused(index_directory, other, message):
    index = Index(index_directory)
    index.check(identity("fake"))
    with pytest.raises(ValueError, match=message):
        index.check(other)


def test_unusable_directories_say_what_to_do(index_directory, many_pictures, tmp_path):
    with pytest.raises(ValueError, match="no index at .*nowhere.*hf-mmembed index"):
        Index(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is no index: it has no manifest.json; build one with .hf-mmembed index"):
        Index(many_pictures)
    copied = shutil.copytree(index_directory, tmp_path / "copied")
    manifest = json.loads((copied / "manifest.json").read_text())

    def rewrite(**fields):
        (copied / "manifest.json").write_text(json.dumps({**manifest, **fields}))

    for fields, message in (
        ({"complete": False}, "is unfinished; this goes on where it stopped: hf-mmembed index fake"),
        ({"faiss": None}, "embeddings without an index; this adds it: hf-mmembed index fake"),
        ({"faiss": None, "input": {**manifest["input"], "path": "my pics"}}, "hf-mmembed index fake 'my pics'"),
        (
            {"faiss": None, "input": {**manifest["input"], "kind": "table", "text_column": "a b"}},
            "--text-column 'a b'",
        ),
        ({"faiss": None, "task": "query"}, "task 'query' .* index into another directory"),
        ({"format": "other"}, "format is not"),
        ({"format_version": 99}, "format version 99"),
        ({"model": {}}, "cannot use .*manifest.json"),
    ):
        rewrite(**fields)
        with pytest.raises(ValueError, match=message):
            Index(copied)
    rewrite()
    (copied / "index.faiss").unlink()
    with pytest.raises(ValueError, match=r"cannot read .*index.faiss"):
        Index(copied)


def test_the_advice_is_quoted_for_the_shell_of_windows(index_directory, monkeypatch):
    manifest = read_manifest(index_directory)
    manifest.input["path"] = "C:\\my pictures"
    with monkeypatch.context() as windows:
        windows.setattr(os, "name", "nt")
        advice = _index_command(manifest, "D:\\index")
    assert advice == 'hf-mmembed index fake "C:\\my pictures" D:\\index'


def test_a_damaged_file_of_items_is_named(index_directory, tmp_path, fake):
    copied = shutil.copytree(index_directory, tmp_path / "copied")
    shard = min((copied / "items").glob("*.arrow"))
    whole = shard.read_bytes()
    for length in (0, 100, len(whole) // 2, len(whole) - 1):
        shard.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=f"cannot read .*{shard.name}: run `hf-mmembed index` again"):
            Index(copied).search(embed_query(fake, text="a"), k=18)


def test_only_the_files_of_the_hits_are_read(index_directory, many_pictures, tmp_path, fake):
    copied = shutil.copytree(index_directory, tmp_path / "copied")
    first, *others = sorted((copied / "items").glob("*.arrow"))
    for other in others:
        other.unlink()
    index = Index(copied)
    assert index.search(embed_query(fake, image=many_pictures / "00.png"), k=1)[0].name == "00.png"
    with pytest.raises(ValueError, match=f"{others[-1].name} is gone: .* open it anew, else run `hf-mmembed index`"):
        index.search(embed_query(fake, image=many_pictures / "16.png"), k=1)
    (copied / "skipped.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"skipped.jsonl names 0 rows, and 2 have no embedding\): run"):
        Index(copied).search(embed_query(fake, text="a"))


def test_pictures_stored_in_a_table_are_read_again(tmp_path, fake):
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    cells = [Image.new("RGB", (6, 6), color) for color in ("red", "blue")]
    table = datasets.Dataset.from_dict({"image": cells, "text": ["r", None]}, features=features)
    table.to_parquet(tmp_path / "t.parquet")
    out = tmp_path / "out"
    build_index(out, embed_source(open_source(tmp_path / "t.parquet"), fake, identity(), out))
    index = Index(out)
    hits = index.search(embed_query(fake, image=cells[1]), k=2)
    assert (hits[0].path, hits[0].text, hits[0].name) == (None, None, "t.parquet row 1")
    assert index.picture(hits[0]).getpixel((0, 0)) == (0, 0, 255)
    table.select([0]).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="has changed since it was indexed"):
        Index(out).picture(hits[0])
    table.select([1, 0]).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="has changed since it was indexed"):
        Index(out).picture(hits[0])


@pytest.mark.parametrize("source", [".", "a.png"])
def test_a_picture_file_replaced_since_is_not_shown(tmp_path, fake, source):
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    for name, colour in (("a.png", "red"), ("sub/b.png", "blue")):
        Image.new("RGB", (6, 6), colour).save(folder / name)
    out = tmp_path / "out"
    build_index(out, embed_source(open_source(folder / source), fake, identity(), out))
    hits = Index(out).search(embed_query(fake, image=folder / "a.png"), k=2)
    Image.new("RGB", (6, 6), "lime").save(folder / "0.png")  # moves the rows of the folder
    for hit, colour in zip(hits, ((255, 0, 0), (0, 0, 255)), strict=False):
        assert Index(out).picture(hit).getpixel((0, 0)) == colour
    for hit in hits:
        Image.new("RGB", (7, 7), "lime").save(hit.path)
        os.utime(hit.path, ns=(0, 0))
        with pytest.raises(ValueError, match=f"{hit.name} has changed since it was indexed"):
            Index(out).picture(hit)
    (folder / "a.png").unlink()
    with pytest.raises(ValueError, match="there is no file"):
        Index(out).picture(hits[0])


def test_texts_have_no_picture(tmp_path, fake):
    (tmp_path / "t.csv").write_text("text\nred\nblue\n")
    out = tmp_path / "out"
    build_index(out, embed_source(open_source(tmp_path / "t.csv"), fake, identity(), out))
    hit = Index(out).search(embed_query(fake, text="blue"), k=1)[0]
    assert (hit.text, hit.path) == ("blue", None) and Index(out).picture(hit) is None


def test_an_approximate_index_may_find_fewer_than_asked_for(index_directory, many_pictures, fake):
    index = Index(index_directory)
    vectors_of_items = np.asarray(datasets.load_from_disk(str(index_directory / "items"))["embedding"][:], np.float32)
    index._faiss = faiss.IndexIVFFlat(faiss.IndexFlatIP(DIM), DIM, 6, faiss.METRIC_INNER_PRODUCT)
    index._faiss.train(vectors_of_items)
    index._faiss.add(vectors_of_items)
    hits = index.search(embed_query(fake, image=many_pictures / "08.png"), k=18)
    assert hits[0].name == "08.png" and len(hits) < 18
    assert len({hit.row for hit in hits}) == len(hits) and np.isfinite([hit.score for hit in hits]).all()


def test_pictures_behind_a_broken_one_are_their_own(tmp_path, fake):
    cells = [Image.new("RGB", (6, 6), colour) for colour in ("red", "lime", "blue")]
    table = datasets.Dataset.from_dict({"image": cells}).cast_column("image", datasets.Image(decode=False))
    rows = [table[0]["image"], {"bytes": b"broken", "path": None}, table[1]["image"], table[2]["image"]]
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": rows}, features=features).to_parquet(tmp_path / "t.parquet")
    out = tmp_path / "out"
    build_index(out, embed_source(open_source(tmp_path / "t.parquet"), fake, identity(), out))
    index = Index(out)
    for row, cell in zip((0, 2, 3), cells, strict=True):
        hit = index.search(embed_query(fake, image=cell), k=3)[0]
        assert hit.row == row and index.picture(hit).getpixel((0, 0)) == cell.getpixel((0, 0))


def test_an_index_that_cannot_be_written_is_not_in_the_manifest(many_pictures, tmp_path, fake, monkeypatch):
    report = embed_source(open_source(many_pictures), fake, identity(), tmp_path / "out")

    def full(index, path):
        raise OSError("the disk is full")

    monkeypatch.setattr(vectors, "save", full)
    with pytest.raises(OSError, match="the disk is full"):
        build_index(tmp_path / "out", report)
    with pytest.raises(ValueError, match="embeddings without an index"):
        Index(tmp_path / "out")
