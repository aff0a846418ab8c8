"""Beside a GPU several portions are in the making at once; what comes out is the same, and in the same order."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest

from hf_mmembed.data import open_source
from hf_mmembed.index.portions import embed_portions, encoder_of, threads_beside
from hf_mmembed.index.shards import plan_shards
from tests.index.fake_embedder import FakeEmbedder
from tests.index.test_embedding import contents, run


def portions_of(source, fake, *, threads, size=6, known=None):
    shards = enumerate(plan_shards(source, salt="salt", size=size))
    encode = encoder_of(fake, task="document", instruction=None, batch_size=32)
    return embed_portions(source, shards, encode, known=known or {}, threads=threads)


@pytest.mark.parametrize(("device", "cores", "expected"), [("cpu", 64, 0), ("cuda", 1, 1), ("mps", 64, 8)])
def test_threads_beside_a_device(monkeypatch, device, cores, expected):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(cores)), raising=False)
    assert threads_beside(device) == expected


def test_beside_a_gpu_the_same_is_written(many_pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_mmembed.index.portions._PICTURES", 2)
    run(many_pictures, tmp_path / "cpu")
    run(many_pictures, tmp_path / "gpu", FakeEmbedder(device="cuda"))
    assert contents(tmp_path / "gpu") == contents(tmp_path / "cpu")


def test_several_portions_are_in_the_making_at_once_across_shards(many_pictures):
    class Meeting(FakeEmbedder):
        barrier = threading.Barrier(2, timeout=20)

        def encode_document(self, inputs, **options):
            self.barrier.wait()  # a portion of the other shard has to be there
            return super().encode_document(inputs, **options)

    done = list(portions_of(open_source(many_pictures), Meeting(), threads=2, size=10))
    assert [(portion.shard, portion.last, len(portion.rows)) for portion in done] == [(0, True, 9), (1, True, 9)]


def test_rows_are_read_in_the_thread_of_the_caller_alone(many_pictures):
    source = open_source(many_pictures)
    readers = set()

    class Watched:
        def __getattr__(self, name):
            return getattr(source, name)

        def __len__(self):
            return len(source)

        def __getitem__(self, row):
            readers.add(threading.get_ident())
            return source[row]

    assert sum(len(done.rows) for done in portions_of(Watched(), FakeEmbedder(), threads=3)) == 18
    assert readers == {threading.get_ident()}


@pytest.mark.parametrize("threads", [0, 2])
def test_portions_are_bounded_and_each_shard_ends_once(many_pictures, monkeypatch, threads):
    monkeypatch.setattr("hf_mmembed.index.portions._PICTURES", 4)
    done = list(portions_of(open_source(many_pictures), FakeEmbedder(), threads=threads, size=10))
    assert [(portion.shard, portion.last) for portion in done if portion.last] == [(0, True), (1, True)]
    assert [len(portion.rows) + len(portion.skipped) for portion in done] == ([4, 4, 2] * 2 if threads else [10, 10])


def test_pictures_inside_a_table_are_held_by_their_bytes(many_pictures, tmp_path, monkeypatch):
    from datasets import Dataset, Image

    picture = (many_pictures / "00.png").read_bytes()
    Dataset.from_list([{"image": {"path": None, "bytes": picture}}] * 5).cast_column("image", Image()).to_parquet(
        tmp_path / "pictures.parquet"
    )
    monkeypatch.setattr("hf_mmembed.index.portions._BYTES", len(picture) + 1)
    done = list(portions_of(open_source(tmp_path / "pictures.parquet"), FakeEmbedder(), threads=2, size=10))
    assert [len(portion.rows) for portion in done] == [2, 2, 1]


def test_an_error_of_one_portion_stops_the_others(many_pictures, monkeypatch):
    monkeypatch.setattr("hf_mmembed.index.portions._PICTURES", 1)

    class Failing(FakeEmbedder):
        def encode_document(self, inputs, **options):
            vectors = super().encode_document(inputs, **options)
            return vectors * float("nan") if len(self.calls) == 2 else vectors

    fake = Failing()
    with (
        pytest.raises(RuntimeError, match="not finite"),
        closing(portions_of(open_source(many_pictures), fake, threads=1)) as portions,
    ):
        list(portions)
    assert fake.embedded < 6
