"""embed, index and search as commands, with a real (tiny, random) Qwen2-VL embedder."""

from __future__ import annotations

import errno
import io
import json
import re
import shutil
import sys
from pathlib import Path
from random import Random

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_mmembed import MMEmbedder
from hf_mmembed.cli import main as cli
from hf_mmembed.data.scenes import draw, random_scene
from hf_mmembed.index import Index


def run(*arguments) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(list(map(str, arguments)))
    return stop.value.code


@pytest.fixture(scope="module")
def model(embedder):
    return embedder("qwen2_vl")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "pic tures é"
    folder.mkdir()
    rng = Random(1)
    for number in range(7):
        draw(random_scene(rng), rng, pixels=48).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def index(model, pictures):
    out = pictures.parent / "index"
    assert run("index", model, pictures, out, "--device", "cpu", "--shard-size", 3) == 0
    return out


def test_vectors_are_those_of_the_embedder(index, model, pictures):
    items = datasets.load_from_disk(str(index / "items"))
    documents = [{"image": Image.open(pictures / name)} for name in items["name"]]
    expected = MMEmbedder(str(model), device="cpu", model_kwargs={"dtype": "float32"}).encode_document(documents)
    np.testing.assert_allclose(np.asarray(items["embedding"][:]), expected, atol=2e-5)


def test_search_prints_a_table_of_scores_and_paths(index, pictures, capsys):
    assert run("search", index, "--image", pictures / "4.png", "-k", 3, "--device", "cpu") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["rank", "score", "item"] and len(lines) == 4
    rank, score, path = lines[1].split(None, 2)
    assert (rank, len(score)) == ("1", 6) and path.strip().startswith(str(pictures))


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_search_with_a_closed_stream_shows_the_rest(index, tmp_path, monkeypatch, closed):
    """As `>&-` leaves it."""
    monkeypatch.setattr(f"sys.{closed}", None)
    assert run("search", index, "--text", "x", "--html", tmp_path / "s.html", "--device", "cpu") == 0
    assert (tmp_path / "s.html").is_file()


def test_search_as_json_with_sheets(index, pictures, tmp_path, capsys):
    query = ("--image", pictures / "4.png", "--text", "make it blue", "--instruction", "Find the changed picture.")
    sheets = ("--html", tmp_path / "s.html", "--png", tmp_path / "s.png")
    assert run("search", index, *query, "-k", 2, "--json", *sheets, "--device", "cpu") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["query"]["text"] == "make it blue" and [hit["rank"] for hit in found["hits"]] == [1, 2]
    assert found["hits"][0]["score"] >= found["hits"][1]["score"]
    assert (tmp_path / "s.html").read_text().count("<img ") == 3 and Image.open(tmp_path / "s.png").width == 1600


def test_embedding_again_says_when_the_index_is_gone(index, model, pictures, tmp_path, capsys):
    copy = shutil.copytree(index, tmp_path / "index")
    for size, gone in ((3, False), (4, True), (4, False)):
        assert run("embed", model, pictures, copy, "--device", "cpu", "--shard-size", size) == 0
        assert ("the index is gone" in capsys.readouterr().out) == gone


def test_an_index_refuses_another_prompt(index, embedder, capsys):
    other = embedder("qwen2_vl", prompt="plain")
    assert run("search", index, "--text", "x", "--model", other, "--device", "cpu") == 1
    error = capsys.readouterr().err
    assert "built with another embedder" in error and "the prompt (hash " in error


def test_an_index_refuses_another_model(index, embedder, capsys):
    other = embedder("qwen2_vl", readout="pre_mlp")
    assert run("search", index, "--text", "x", "--model", other, "--device", "cpu") == 1
    assert "what differs: the model files config.json" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["embed", "search"])
def test_an_index_in_the_place_of_a_model_is_called_that(index, model, pictures, tmp_path, capsys, command):
    words = {"embed": (index, pictures, tmp_path), "search": (index, "--text", "x", "--model", index)}
    assert run(command, *words[command], "--device", "cpu") == 1
    error = capsys.readouterr().err
    assert f"{index} is an index and no embedder" in error and "the INDEX of `hf-mmembed search`" in error
    assert f"Give an embedder, such as {model}, which" in error and "convert" not in error


def test_a_model_that_has_moved_is_named_again(index, model, tmp_path, capsys):
    moved = Path(shutil.copytree(index, tmp_path / "index"))
    manifest = (moved / "manifest.json").read_text()
    (moved / "manifest.json").write_text(manifest.replace(json.dumps(str(model)), '"/gone/model"'))
    assert run("search", moved, "--text", "x", "--device", "cpu") == 1
    assert "no checkpoint directory at /gone/model. If the model" in capsys.readouterr().err
    assert run("search", moved, "--text", "x", "--device", "cpu", "--model", model) == 0


def test_a_model_of_the_hub_stays_at_its_revision(model, embedder, pictures, tmp_path, monkeypatch, capsys):
    commits = {"a" * 40: model, "b" * 40: embedder("qwen2_vl", prompt="plain")}
    for commit, directory in commits.items():
        (tmp_path / commit).symlink_to(directory)
    main = "a" * 40
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda _, revision, **__: tmp_path / (revision or main))
    index = ("index", "me/emb", pictures, tmp_path / "out", "--device", "cpu")
    assert run(*index) == 0
    main = "b" * 40
    assert run("search", tmp_path / "out", "--text", "x", "--device", "cpu") == 0
    assert run(*index) == 0
    assert "(7 of them in an earlier run)" in capsys.readouterr().out
    assert run(*index, "--revision", main) == 1
    assert "what differs: the prompt" in capsys.readouterr().err
    assert run("embed", model, pictures, tmp_path / "other", "--revision", "main") == 1
    assert "is a directory: it has no revision 'main'" in capsys.readouterr().err


def test_bad_files_are_listed_and_the_exit_code_says_so(model, pictures, tmp_path, capsys):
    table = tmp_path / "t.csv"
    table.write_text(f"image,text\n{pictures}/1.png,one\nhttps://x.org/a.png,two\ngone.png,\n,only words\n")
    assert run("embed", model, table, tmp_path / "out", "--npy", "--device", "cpu") == 1
    shown = capsys.readouterr()
    assert "embedded 2 of 4 items" in shown.out and "pictures from column 'image'" in shown.err
    assert (
        "skipped 2" in shown.err and "URLs are not fetched" in shown.err and "gone.png: there is no file" in shown.err
    )
    assert np.load(tmp_path / "out/embeddings.npy").shape[0] == 2
    assert len((tmp_path / "out/skipped.jsonl").read_text().splitlines()) == 2
    # The same command again does nothing new and says the same.
    assert run("embed", model, table, tmp_path / "out", "--device", "cpu") == 1
    assert "(2 of them in an earlier run)" in capsys.readouterr().out


def test_a_picture_with_too_many_pixels_is_skipped_without_a_warning(model, tmp_path, capsys, recwarn):
    (tmp_path / "folder").mkdir()
    Image.new("1", (12_000, 10_000)).save(tmp_path / "folder/large.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "folder/small.png")
    assert run("embed", model, tmp_path / "folder", tmp_path / "out", "--device", "cpu") == 1
    assert "large.png is 12000x10000 = 120,000,000 pixels" in capsys.readouterr().err
    assert not any("decompression bomb" in str(warning.message) for warning in recwarn)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [(KeyboardInterrupt(), 130, "stopped"), (OSError(28, "No space left on device", "a.arrow"), 1, "'a.arrow'")],
)
def test_what_ends_a_run_says_how_to_go_on(
    index, model, pictures, tmp_path, monkeypatch, capsys, error, code, message
):
    def stopped(*arguments, **options):
        raise error

    monkeypatch.setattr("hf_mmembed.index.embed_source", stopped)
    assert run("embed", model, pictures, tmp_path / "out", "--device", "cpu") == code
    shown = capsys.readouterr().err
    assert message in shown and "are kept" not in shown  # there are none yet
    shutil.copytree(index, tmp_path / "out")
    assert run("embed", model, pictures, tmp_path / "out", "--device", "cpu") == code
    assert f"{message}; finished shards are kept in {tmp_path}/out: the same command" in capsys.readouterr().err


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_directory_that_may_not_be_written_to_is_called_that(
    index, model, pictures, tmp_path, monkeypatch, capsys, code
):
    """The same command would not go on from there."""

    def refused(*arguments, **options):
        raise OSError(code, "no", str(place))

    monkeypatch.setattr("hf_mmembed.index.embed_source", refused)
    advice = "; make it writable, or choose another directory than"
    monkeypatch.chdir(index.parent)
    for place, advised in ((index / ".lock", True), (index.parent, True), (pictures / "0.png", False)):
        assert run("index", model, pictures, index.name, "--device", "cpu") == 1
        shown = capsys.readouterr().err
        assert f"no: '{place}'" in shown and "are kept" not in shown
        assert (f"{advice} {index.name}" in shown) == advised
    (tmp_path / "link").symlink_to(index)
    place = index / ".lock"
    assert run("index", model, pictures, tmp_path / "link", "--device", "cpu") == 1
    assert f"{advice} {tmp_path}/link" in capsys.readouterr().err


def test_the_table_shows_what_can_be_shown(model, tmp_path, capsys):
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": "a\x1b[2J" + 300 * "b"}) + "\n" + json.dumps({"text": "c"}))
    assert run("index", model, tmp_path / "t.jsonl", tmp_path / "out", "--device", "cpu") == 0
    capsys.readouterr()
    assert run("search", tmp_path / "out", "--text", "a", "--device", "cpu") == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line == line.rstrip() for line in lines)
    [long] = [line.rpartition("  ")[2] for line in lines if "b" in line]
    assert long == "a [2J" + 194 * "b" + "…"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("auto", "flat FAISS index over 7 vectors, exact"),
        ("hnsw", "HNSW graph over 7 vectors, approximate (default above 200,000 vectors)"),
        ("ivf", "inverted lists (IVF) over 7 vectors, approximate (default above 2,000,000 vectors)"),
    ],
)
def test_an_index_of_any_kind_says_what_it_is_and_is_searched(model, pictures, tmp_path, capsys, kind, said):
    assert run("index", model, pictures, tmp_path / "out", "--faiss", kind, "--device", "cpu") == 0
    assert said in capsys.readouterr().out
    assert run("search", tmp_path / "out", "--image", pictures / "4.png", "-k", 1, "--device", "cpu", "--json") == 0
    [hit] = json.loads(capsys.readouterr().out)["hits"]
    assert hit["name"] == "4.png"


def test_a_saved_dataset_is_indexed_and_searched(model, pictures, tmp_path, capsys):
    files = [str(pictures / f"{number}.png") for number in (2, 5)]
    rows = datasets.Dataset.from_dict({"image": files}).cast_column("image", datasets.Image())
    rows.save_to_disk(str(tmp_path / "saved"))
    assert run("index", model, tmp_path / "saved", tmp_path / "out", "--device", "cpu") == 0
    assert "embedded 2 of 2 items" in capsys.readouterr().out
    assert run("search", tmp_path / "out", "--image", files[1], "-k", 1, "--device", "cpu", "--json") == 0
    [hit] = json.loads(capsys.readouterr().out)["hits"]
    assert hit["row"] == 1


def test_a_terminal_shows_progress_in_items_per_second(model, pictures, tmp_path, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    assert run("embed", model, pictures, tmp_path / "out", "--device", "cpu", "--shard-size", 3) == 0
    assert re.search(r"embedding: 100%.* 7/7 .*items/s\]", terminal.getvalue())


def test_an_approximate_index_says_when_it_finds_too_few(index, pictures, tmp_path, monkeypatch, capsys):
    found = Index.search
    monkeypatch.setattr(Index, "search", lambda self, query, k: found(self, query, 2))
    assert run("search", index, "--text", "x", "-k", 5, "--device", "cpu") == 0
    assert "found 2 of the 5 asked for: an index of the kind flat" in capsys.readouterr().err


def test_strict_stops(model, pictures, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(b"")
    assert run("index", model, tmp_path / "in", tmp_path / "out", "--strict", "--device", "cpu") == 1
    assert "a.png" in (error := capsys.readouterr().err) and error.rstrip().endswith("(stopped by --strict)")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["search", "nowhere", "--text", "x"], 1, "no index at nowhere"),
        (["search", "nowhere", "--image", ""], 2, "--image is empty"),
        (["search", "nowhere", "--text", "x", "--html", "."], 2, ". is a directory; give a file"),
        (["search", "nowhere"], 2, "give --text, --image or both"),
        (["search", "nowhere", "--image", "https://host/a.png"], 2, "https://host/a.png is a URL"),
        (["index", "./no-model", "{pictures}", "out"], 1, "no checkpoint directory at ./no-model"),
        (["index", "{model}", "{pictures}/0.png/x", "out"], 1, "no such input"),
        (["embed", "{model}", "{pictures}", ""], 2, "an empty name"),
        (["embed", "{model}", "{pictures}", "{pictures}/0.png"], 1, "0.png is a file: choose a directory"),
        (["embed", "{model}", "{pictures}", "out", "--device", "foo"], 2, "--device foo is none: give cpu, cuda"),
        (["embed", "{model}", "{pictures}", "out", "--device", "xla"], 2, "--device xla: this machine has"),
        (["embed", "{model}", "{pictures}", "out", "--text-column", "text"], 1, "has no columns"),
        (["embed", "{model}", "{pictures}", "out", "--shard-size", "0"], 2, "shard-size"),
    ],
)
def test_wrong_calls(model, pictures, tmp_path, monkeypatch, capsys, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    assert run(*(argument.format(model=model, pictures=pictures) for argument in arguments)) == code
    assert message in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []
