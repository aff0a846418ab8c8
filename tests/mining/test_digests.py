"""A picture file is read once, by all runs together, for as long as it stays the same."""

from __future__ import annotations

import os
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from hf_mmembed.data.pairs import read_pairs
from hf_mmembed.mining import content_ids, digests

LONG_AGO = 1_600_000_000


@pytest.fixture
def read(monkeypatch):
    """Names of the files that were read."""
    names = []

    def note(path, original=digests.read_digest):
        names.append(Path(path).name)
        return original(path)

    monkeypatch.setattr(digests, "read_digest", note)
    return names


@pytest.fixture
def folder(tmp_path):
    """Three pictures, two of which are the same."""
    for name, data in (("a", b"one"), ("b", b"two"), ("copy", b"one")):
        write(tmp_path / name, data)
    return tmp_path


def write(path, data, modified=LONG_AGO):
    path.write_bytes(data)
    os.utime(path, (modified, modified))


def pairs_in(folder, names=("a", "b", "copy")):
    images = [{"bytes": None, "path": str(folder / name)} for name in names] + [{"bytes": b"one", "path": None}]
    return read_pairs(Dataset.from_dict({"query_image": images, "pos_text": ["p"] * len(images)}))


def same(one, other):
    return all(np.array_equal(mine, yours) for mine, yours in zip(astuple(one), astuple(other), strict=True))


def test_what_has_not_changed_is_not_read_again(folder, read):
    pairs, kept = pairs_in(folder), folder / "kept"
    first = content_ids(pairs, kept=kept)
    assert sorted(read) == ["a", "b", "copy"] and kept.stat().st_size < 200
    read.clear()
    written = kept.stat().st_ino
    again = content_ids(pairs, kept=kept)
    assert not read and kept.stat().st_ino == written, "nor is anything written"
    assert again.query_ids.tolist() == [0, 1, 0, 0]
    assert same(first, again) and same(content_ids(pairs), again)


@pytest.mark.parametrize(("data", "modified"), [(b"one!", LONG_AGO), (b"one", LONG_AGO + 1)], ids=["size", "time"])
def test_a_changed_file_is_read_again(folder, read, data, modified):
    pairs, kept = pairs_in(folder), folder / "kept"
    content_ids(pairs, kept=kept)
    size = kept.stat().st_size
    read.clear()
    write(folder / "b", data, modified)
    assert same(content_ids(pairs, kept=kept), content_ids(pairs))
    assert read == ["b"] and kept.stat().st_size == size, "what it was before is forgotten"


def test_a_link_to_another_file_is_read_again(folder, read):
    (folder / "link").symlink_to(folder / "a")
    pairs, kept = pairs_in(folder, ["link"]), folder / "kept"
    assert content_ids(pairs, kept=kept).query_ids.tolist() == [0, 0]
    (folder / "link").unlink()
    (folder / "link").symlink_to(folder / "b")
    assert content_ids(pairs, kept=kept).query_ids.tolist() == [0, 1]
    assert read == ["link", "link"]


def test_a_file_that_was_just_written_may_change_unseen(folder, read, monkeypatch):
    monkeypatch.setattr(digests.time, "time_ns", lambda: (LONG_AGO + 1) * 10**9)
    pairs, kept = pairs_in(folder), folder / "kept"
    content_ids(pairs, kept=kept)
    write(folder / "b", b"one")
    assert content_ids(pairs, kept=kept).query_ids.tolist() == [0, 0, 0, 0]
    assert len(read) == 6 and not kept.exists()


def test_what_was_read_is_kept_when_a_file_is_missing(folder, read):
    kept = folder / "kept"
    content_ids(pairs_in(folder, ["copy"]), kept=kept)
    with pytest.raises(ValueError, match=r"row 1: the picture .*absent cannot be read \(No such file"):
        content_ids(pairs_in(folder, ["a", "absent"]), kept=kept)
    read.clear()
    content_ids(pairs_in(folder, ["a", "copy"]), kept=kept)
    assert not read


@pytest.mark.parametrize(
    "broken",
    [
        lambda data: b"",
        lambda data: data[:-7],
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: data.replace(b"digests 1", b"digests 0"),
    ],
    ids=["empty", "cut", "flipped", "version"],
)
def test_a_broken_file_counts_for_nothing(folder, read, caplog, broken):
    pairs, kept = pairs_in(folder), folder / "kept"
    first = content_ids(pairs, kept=kept)
    whole = kept.read_bytes()
    read.clear()
    kept.write_bytes(broken(whole))
    assert same(content_ids(pairs, kept=kept), first) and len(read) == 3
    assert "kept is broken or of another version: all pictures are read again" in caplog.text
    assert len(kept.read_bytes()) == len(whole)


def test_a_file_that_cannot_be_read_or_written_is_a_warning(folder, caplog):
    (folder / "kept").mkdir()
    assert content_ids(pairs_in(folder), kept=folder / "kept").query_ids.tolist() == [0, 1, 0, 0]
    assert "kept cannot be read" in caplog.text and "kept cannot be written" in caplog.text
    content_ids(pairs_in(folder), kept=folder / "absent" / "kept")
    assert "the next run reads all pictures again" in caplog.text
