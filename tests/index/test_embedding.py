"""Resumable embedding: what is kept, what is done again, what is skipped, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_mmembed.data import open_source
from hf_mmembed.index import build_index, embed_source, read_manifest, write_npy
from hf_mmembed.lock import only_writer
from tests.forks import exit_code
from tests.index.fake_embedder import DIM, FakeEmbedder, identity

ROOT = Path(__file__).resolve().parents[2]


def run(folder, out, embedder=None, **options):
    report = embed_source(
        open_source(folder, exclude=[out]), embedder or FakeEmbedder(), identity(), out, **{"shard_size": 6, **options}
    )
    build_index(out, report)
    return report


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def vectors_by_name(out: Path) -> dict[str, np.ndarray]:
    items = datasets.load_from_disk(str(out / "items"))
    return {row["name"]: np.asarray(row["embedding"], np.float32) for row in items}


def copy_of(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "pictures"))


def test_what_is_written(many_pictures, tmp_path, fake):
    report = run(many_pictures, tmp_path / "out", fake)
    items = datasets.load_from_disk(str(tmp_path / "out/items"))
    assert items.column_names == ["row", "name", "text", "path", "fingerprint", "embedding"]
    assert items["row"][:] == [row for row in range(20) if row not in (6, 13)]
    expected = fake.encode_document([{"image": Image.open(path).convert("RGB")} for path in items["path"]])
    np.testing.assert_array_equal(np.asarray(items["embedding"][:], np.float32), expected)
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.rows, manifest.embedded, manifest.skipped, manifest.complete) == (20, 18, 2, True)
    lines = [json.loads(line) for line in (tmp_path / "out/skipped.jsonl").read_text().splitlines()]
    assert [(line["row"], line["name"]) for line in lines] == [(6, "05 cut.png"), (13, "11 empty.png")]
    assert "breaks off" in lines[0]["reason"] and "0 bytes" in lines[1]["reason"]
    assert [item.name for item in report.skipped] == ["05 cut.png", "11 empty.png"]


def test_a_second_run_embeds_nothing_and_changes_nothing(many_pictures, tmp_path):
    run(many_pictures, tmp_path / "out")
    before = contents(tmp_path / "out")
    again = FakeEmbedder()
    report = run(many_pictures, tmp_path / "out", again)
    assert again.embedded == report.new == 0 and len(report.skipped) == 2
    assert contents(tmp_path / "out") == before


def test_a_second_writer_is_refused_while_the_first_is_at_work(many_pictures, tmp_path):
    class Interrupted(FakeEmbedder):
        def encode_document(self, inputs, **options):
            with pytest.raises(ValueError, match=r"another process is writing to .*out: wait"):
                run(many_pictures, tmp_path / "out")
            return super().encode_document(inputs, **options)

    first = Interrupted()
    report = run(many_pictures, tmp_path / "out", first)
    assert first.embedded == report.new == 18
    with only_writer(tmp_path / "out"), pytest.raises(ValueError, match="another process is writing"):
        build_index(tmp_path / "out", report)
    assert run(many_pictures, tmp_path / "out").new == 0


READABLE = [row for row in range(20) if row not in (6, 13)]


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


def test_killed_at_any_write_and_run_again_gives_the_same_bytes(many_pictures, tmp_path, monkeypatch):
    """Before and after every file that appears, and inside every call of the model."""
    run(many_pictures, tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    rename = os.replace
    writes = 0

    def fails_at(moment: int, when: str):
        def replace(source, target):
            nonlocal writes
            writes += 1
            if writes == moment and when == "before":
                shutil.copy(
                    source, f"{source}".replace(".tmp", ".left.tmp")
                )  # what a process that is gone cannot clean up
                raise Killed
            rename(source, target)
            if writes == moment and when == "after":
                raise Killed

        return replace

    moment, finished = 0, []
    while True:
        moment += 1
        out = tmp_path / f"killed-{moment}"
        for when in ("before", "after"):
            shutil.rmtree(out, ignore_errors=True)
            writes = 0
            monkeypatch.setattr(os, "replace", fails_at(moment, when))
            try:
                run(many_pictures, out)
            except Killed:
                finished.append(len(list(out.glob("items/data-*.arrow"))))
            monkeypatch.setattr(os, "replace", rename)
            again = FakeEmbedder()
            report = run(many_pictures, out, again)
            assert report.new == again.embedded
            if writes >= moment:
                assert report.new == sum(row >= 6 * finished[-1] for row in READABLE), "finished work was done again"
            assert contents(out) == expected
        if writes < moment:
            break
    assert {0, 1, 2, 3, 4} <= set(finished)


def test_an_exception_of_the_model_keeps_finished_shards(many_pictures, tmp_path):
    class Fails(FakeEmbedder):
        def _encode(self, inputs, task):
            if self.embedded >= 10:
                raise RuntimeError("out of memory")
            return super()._encode(inputs, task)

    with pytest.raises(RuntimeError, match="out of memory"):
        run(many_pictures, tmp_path / "out", Fails())
    assert not read_manifest(tmp_path / "out").complete
    assert run(many_pictures, tmp_path / "out").new == 18 - 11


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_sigkill_in_the_middle_of_a_write(many_pictures, tmp_path):
    count, rename = 0, os.replace

    def replace(source, target):
        nonlocal count
        count += "data-" in str(target)
        if count == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    out = tmp_path / "killed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", replace)
        assert exit_code(run, many_pictures, out) == -signal.SIGKILL
    assert len(list(out.glob("items/data-*.arrow"))) == 2 and len(list(out.glob("items/.*.tmp"))) == 1
    assert run(many_pictures, out).new == 18 - 11
    run(many_pictures, tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")


def test_only_changed_added_and_repaired_files_are_embedded_again(many_pictures, tmp_path):
    folder, out = copy_of(many_pictures, tmp_path), tmp_path / "out"
    run(folder, out)
    before = vectors_by_name(out)
    Image.new("RGB", (9, 9), "navy").save(folder / "00 new.png")
    Image.new("RGB", (32, 32), "navy").save(folder / "07.png")
    Image.new("RGB", (32, 32), "teal").save(folder / "05 cut.png")
    (folder / "12.png").unlink()
    again = FakeEmbedder()
    report = run(folder, out, again)
    assert again.embedded == report.new == 3 and report.manifest.embedded == 19
    after = vectors_by_name(out)
    assert set(after) == {*before, "00 new.png", "05 cut.png"} - {"12.png"}
    for name in set(before) & set(after) - {"07.png"}:
        np.testing.assert_array_equal(after[name], before[name])
    assert not np.array_equal(after["07.png"], before["07.png"])
    run(folder, tmp_path / "fresh")
    np.testing.assert_array_equal(
        np.stack(list(vectors_by_name(tmp_path / "fresh").values())), np.stack(list(after.values()))
    )


def test_a_killed_update_loses_nothing_either(many_pictures, tmp_path, monkeypatch):
    folder, out = copy_of(many_pictures, tmp_path), tmp_path / "out"
    run(folder, out)
    Image.new("RGB", (9, 9), "navy").save(folder / "00 new.png")

    class Fails(FakeEmbedder):
        def _encode(self, inputs, task):
            raise Killed

    with pytest.raises(Killed):
        run(folder, out, Fails())
    again = FakeEmbedder()
    run(folder, out, again)
    assert again.embedded == 1


@pytest.mark.parametrize("changes", [False, True])
def test_an_index_and_an_array_last_as_long_as_their_embeddings(many_pictures, tmp_path, changes):
    folder, out = copy_of(many_pictures, tmp_path), tmp_path / "out"
    write_npy(run(folder, out), out)
    if changes:
        Image.new("RGB", (9, 9), "navy").save(folder / "zz new.png")
    embed_source(open_source(folder), FakeEmbedder(), identity(), out, shard_size=6)
    assert (read_manifest(out).faiss is None, (out / "embeddings.npy").exists()) == (changes, not changes)


def test_another_shard_size_reuses_every_row(many_pictures, tmp_path):
    run(many_pictures, tmp_path / "out")
    again = FakeEmbedder()
    run(many_pictures, tmp_path / "out", again, shard_size=4)
    assert again.embedded == 0
    assert len(list((tmp_path / "out/items").glob("data-*.arrow"))) == 5


def test_strict_stops_at_the_first_bad_file_and_keeps_what_is_finished(many_pictures, tmp_path):
    with pytest.raises(ValueError, match="05 cut.png: .*breaks off.*--strict; finished shards are kept"):
        run(many_pictures, tmp_path / "out", strict=True)
    assert len(list((tmp_path / "out/items").glob("data-*.arrow"))) == 1
    assert run(many_pictures, tmp_path / "out").new == 18 - 6
    finished = contents(tmp_path / "out")
    with pytest.raises(ValueError, match="05 cut.png: .*breaks off.*--strict"):
        run(many_pictures, tmp_path / "out", strict=True)
    assert contents(tmp_path / "out") == finished


def test_an_input_that_the_model_refuses_is_found_and_skipped(tmp_path):
    texts = [f"text {row}" for row in range(9)]
    texts[2] = texts[7] = "refuse me"
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    report = run(tmp_path / "t.jsonl", tmp_path / "out", shard_size=100)
    assert [(item.row, item.reason) for item in report.skipped] == [
        (2, "an input is refused"),
        (7, "an input is refused"),
    ]
    assert vectors_by_name(tmp_path / "out").keys() == {f"t.jsonl row {row}" for row in range(9) if row not in (2, 7)}


def test_a_vector_that_is_not_finite_stops_the_run(many_pictures, tmp_path):
    class Broken(FakeEmbedder):
        def _encode(self, inputs, task):
            return super()._encode(inputs, task) * np.nan

    with pytest.raises(RuntimeError, match="not finite for 00.png"):
        run(many_pictures, tmp_path / "out", Broken())


def test_nothing_readable_is_an_error(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_text("no picture")
    with pytest.raises(
        ValueError,
        match=r"nothing in .* could be embedded \(1 items skipped; the first: a.png: .*not a readable image",
    ):
        run(tmp_path / "in", tmp_path / "out")
    assert json.loads((tmp_path / "out/skipped.jsonl").read_text())["name"] == "a.png"
    assert not read_manifest(tmp_path / "out").complete


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"identity": identity("other")}, "the model files model.safetensors"),
        ({"identity": identity(prompt_hash="another")}, "the prompt .hash prompt there, another here."),
        ({"task": "query"}, "the task or instruction"),
        ({"instruction": "Find it."}, "the task or instruction"),
        ({"source": "elsewhere"}, "the input .*elsewhere here"),
    ],
)
def test_a_directory_begun_with_something_else_is_refused(many_pictures, tmp_path, changed, message):
    out = tmp_path / "out"
    run(many_pictures, out)
    before = contents(out)
    folder = shutil.copytree(many_pictures, tmp_path / "elsewhere") if "source" in changed else many_pictures
    arguments = {"identity": identity(), **{key: value for key, value in changed.items() if key != "source"}}
    with pytest.raises(ValueError, match=f"built from something else; what differs: {message}"):
        embed_source(open_source(folder), FakeEmbedder(), out=out, **arguments)
    assert contents(out) == before


def test_a_directory_with_other_files_is_refused(many_pictures, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="not empty"):
        run(many_pictures, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_a_damaged_shard_is_named_and_embedded_again_when_it_is_deleted(many_pictures, tmp_path):
    out = tmp_path / "out"
    run(many_pictures, out)
    before = contents(out)
    shard = min((out / "items").glob("*.arrow"))
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(ValueError, match=f"{shard.name} is damaged .*: delete it and run the same command again"):
        run(many_pictures, out)
    shard.unlink()
    again = FakeEmbedder()
    run(many_pictures, out, again)
    assert 0 < again.embedded <= 6 and contents(out) == before


def test_a_file_is_no_place_for_the_output(many_pictures, tmp_path):
    (tmp_path / "out").write_text("precious")
    with pytest.raises(ValueError, match="out is a file: choose a directory"):
        run(many_pictures, tmp_path / "out")


def test_the_input_is_no_place_for_the_output(many_pictures, tmp_path):
    folder = copy_of(many_pictures, tmp_path)
    with pytest.raises(ValueError, match="is not empty and holds no embeddings of ours: choose another"):
        run(folder, folder)


def test_a_directory_inside_the_input_is_not_indexed(many_pictures, tmp_path):
    folder = copy_of(many_pictures, tmp_path)
    run(folder, folder / "index")
    Image.new("RGB", (9, 9)).save(folder / "index/sheet.png")
    again = FakeEmbedder()
    assert len(run(folder, folder / "index", again).skipped) == 2 and again.embedded == 0


def test_instruction_and_task_reach_the_model(tmp_path):
    (tmp_path / "t.csv").write_text("text\na\n")
    fake = FakeEmbedder()
    run(tmp_path / "t.csv", tmp_path / "out", fake, task="query", instruction="Find it.")
    assert fake.calls == [[{"text": "a", "instruction": "Find it."}]]


def test_a_folder_that_was_opened_in_finder_counts_as_empty(many_pictures, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.DS_Store").touch()
    assert run(many_pictures, tmp_path / "out").new == 18


def test_npy_has_the_rows_of_the_dataset(many_pictures, tmp_path):
    report = run(many_pictures, tmp_path / "out")
    array = np.load(write_npy(report, tmp_path / "out"), allow_pickle=False)
    assert array.shape == (18, DIM) and array.dtype == np.float32
    np.testing.assert_array_equal(array, np.stack(list(vectors_by_name(tmp_path / "out").values())))


def test_a_full_disk_is_an_error_that_names_the_file(many_pictures, tmp_path, full_disk):
    report = run(many_pictures, tmp_path / "out", shard_size=100)
    before = contents(tmp_path / "out")
    writes = {
        "embeddings.npy": lambda: write_npy(report, tmp_path / "out"),
        "index.faiss": lambda: build_index(tmp_path / "out", report),
        "other/items/data-": lambda: run(many_pictures, tmp_path / "other", shard_size=100),
    }
    for name, write in writes.items():
        with full_disk(1000), pytest.raises(OSError, match=f"File too large.*{name}"):
            write()
    assert contents(tmp_path / "out") == before


def test_groups_of_opened_pictures_are_bounded(many_pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_mmembed.index.portions._OPEN_PIXELS", 3 * 32 * 32)
    fake = FakeEmbedder()
    run(many_pictures, tmp_path / "out", fake, shard_size=100)
    assert [len(call) for call in fake.calls] == [3] * 6
    run(many_pictures, tmp_path / "whole", shard_size=100)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
