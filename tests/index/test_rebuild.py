"""A directory that is indexed again while another process, or this one, has it open or is about to write to it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hf_mmembed.data import open_source
from hf_mmembed.index import Index, build_index, embed_query, embed_source, read_manifest, vectors, write_npy
from hf_mmembed.lock import only_writer
from tests.index.fake_embedder import FakeEmbedder, identity


@pytest.fixture
def pictures(many_pictures, tmp_path):
    return Path(shutil.copytree(many_pictures, tmp_path / "pictures"))


@pytest.fixture
def out(pictures, tmp_path):
    """An index over `pictures`, without those that are broken."""
    for broken in ("05 cut.png", "11 empty.png"):
        (pictures / broken).unlink()
    index(pictures, tmp_path / "out")
    return tmp_path / "out"


def embed(pictures, out):
    return embed_source(open_source(pictures), FakeEmbedder(), identity(), out, shard_size=7)


def index(pictures, out):
    build_index(out, embed(pictures, out))


def best(opened, pictures, name):
    return opened.search(embed_query(FakeEmbedder(), image=pictures / name), k=1)[0].name


def contents(out):
    return {path.name: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def after_first_load(monkeypatch, action):
    """Does something right after an `index.faiss` has been read for the first time."""
    load = vectors.load
    actions = [action]

    def load_then_act(path):
        loaded = load(path)
        if actions:
            actions.pop()()
        return loaded

    monkeypatch.setattr(vectors, "load", load_then_act)


def test_an_open_index_does_not_mix_old_vectors_with_new_items(out, pictures):
    opened = Index(out)
    (pictures / "00.png").unlink()
    index(pictures, out)
    for name in ("08.png", "16.png"):
        with pytest.raises(ValueError, match=r"is gone: if the directory was indexed again meanwhile, open it anew"):
            best(opened, pictures, name)
        assert best(Index(out), pictures, name) == name


@pytest.mark.parametrize("old", [False, True])
def test_a_directory_indexed_again_while_it_is_opened_is_read_once_more(out, pictures, monkeypatch, old):
    """Also one of before, whose manifest does not say which items its index is of."""
    if old:
        forget_items(out)

    def index_again():
        (pictures / "00.png").unlink()
        index(pictures, out)

    after_first_load(monkeypatch, index_again)
    assert best(Index(out), pictures, "08.png") == "08.png"


def test_a_list_of_skipped_rows_written_meanwhile_does_not_count_as_damage(out, pictures, monkeypatch):
    whole = (pictures / "00.png").read_bytes()
    (pictures / "00.png").write_bytes(b"")
    index(pictures, out)

    def index_again():
        (pictures / "00.png").write_bytes(whole)
        index(pictures, out)

    after_first_load(monkeypatch, index_again)
    assert best(Index(out), pictures, "08.png") == "08.png"


def test_an_index_that_is_not_of_the_items_is_refused_and_mended_by_another_run(out, pictures, tmp_path):
    whole = Path(shutil.copytree(out, tmp_path / "whole"))
    (pictures / "08.png").write_bytes((pictures / "09.png").read_bytes())
    index(pictures, out)
    for name in ("index.faiss", "manifest.json"):
        shutil.copy(whole / name, out / name)
    with pytest.raises(
        ValueError, match=r"out is being indexed again .*or was not indexed to the end.* hf-mmembed index"
    ):
        Index(out)
    index(pictures, out)
    assert best(Index(out), pictures, "16.png") == "16.png"


def forget_items(out):
    """Makes an index one that was written before its manifest named the items."""
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["faiss"].pop("items", None)
    (out / "manifest.json").write_text(json.dumps(manifest))


def test_an_index_without_the_fingerprint_of_its_items_opens(out, pictures):
    forget_items(out)
    assert best(Index(out), pictures, "08.png") == "08.png"


def test_an_older_index_over_other_numbers_of_items_is_refused(out, pictures, tmp_path):
    forget_items(out)
    whole = Path(shutil.copytree(out, tmp_path / "whole"))
    for path in sorted(pictures.iterdir())[:9]:
        path.unlink()
    index(pictures, out)
    shutil.copy(whole / "manifest.json", out / "manifest.json")
    with pytest.raises(
        ValueError, match=r"cannot read .*out \(it lists 2 files, and 18 rows need 3\): run `hf-mmembed"
    ):
        Index(out)
    shutil.copytree(whole / "items", out / "items", dirs_exist_ok=True)
    with pytest.raises(ValueError, match="out is being indexed again"):
        Index(out)


@pytest.mark.parametrize("finished", [True, False])
def test_an_index_is_not_written_over_items_of_another_run(out, pictures, finished):
    (pictures / "00.png").unlink()
    report = embed(pictures, out)
    (pictures / "01.png").unlink()
    later = embed(pictures, out)
    if finished:
        build_index(out, later)
    before = contents(out)
    for add in (build_index, lambda out, report: write_npy(report, out)):
        with pytest.raises(ValueError, match=r"out was changed by another run meanwhile: run the same command again"):
            add(out, report)
    assert contents(out) == before
    index(pictures, out)
    assert best(Index(out), pictures, "08.png") == "08.png"


def test_an_index_is_not_written_where_another_run_was_stopped(out, pictures, monkeypatch):
    report = embed(pictures, out)
    (pictures / "00.png").write_bytes(b"")

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("hf_mmembed.index.embedding.write_dataset_files", stop)
        embed(pictures, out)
    with pytest.raises(ValueError, match="was changed by another run"):
        build_index(out, report)
    assert not read_manifest(out).complete


def test_nobody_else_writes_while_an_index_is_built(out, pictures, monkeypatch):
    build = vectors.build
    refused = []

    def build_alone(blocks, **options):
        with pytest.raises(ValueError, match="another process is writing"), only_writer(out):
            pass
        refused.append(True)
        return build(blocks, **options)

    monkeypatch.setattr(vectors, "build", build_alone)
    index(pictures, out)
    assert refused == [True]
