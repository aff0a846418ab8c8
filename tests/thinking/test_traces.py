from __future__ import annotations

import os
import signal
import sqlite3
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hf_mmembed.inputs import as_messages
from hf_mmembed.thinking.traces import Origin, Record, Trace, TraceStore, content_digest
from tests.forks import exit_codes

ORIGIN = Origin("someone", "abc", "1", "{}")


def record(content: str, raw: str = "<think> a </think> b", origin: Origin = ORIGIN, side: str = "query") -> Record:
    return Record(origin.key(content, side, "qa"), content, side, "qa", origin, Trace(raw, "stop", 3))


def digest(item) -> str:
    return content_digest(as_messages(item))


@pytest.mark.parametrize(
    ("raw", "reason", "status", "final"),
    [
        ("<think> a\nb </think>\n c", "stop", "complete", "c"),
        ("a </think> c", "stop", "complete", "c"),
        ("<think> a </think> c", "length", "complete", "c"),
        ("<think> a </think>", "stop", "malformed", None),
        ("<think> a </think>", "length", "cut", None),
        ("<think> a", "length", "cut", None),
        ("just words", "stop", "malformed", None),
        ("<think> a <think> b </think> c", "stop", "malformed", None),
        ("<think> a </think> b </think> c", "stop", "malformed", None),
        (" \n", "stop", "empty", None),
        ("", "length", "empty", None),
        ("<think> 左边 </think> 红色圆形", "stop", "complete", "红色圆形"),
    ],
)
def test_form(raw, reason, status, final):
    trace = Trace(raw, reason)
    assert (trace.status, trace.final) == (status, final)


def test_text_is_raw_with_the_tag_that_the_template_wrote():
    assert Trace(" a </think> c").text == "<think>a </think> c"
    assert Trace("no form at all ").text == "no form at all"
    assert Trace(" ").text == ""


@given(st.text(), st.text())
def test_what_is_put_together_comes_apart(think, final):
    trace = Trace(f"<think>{think}</think>{final}")
    if final.strip() and "think>" not in think + final:
        assert (trace.think, trace.final) == (think.strip(), final.strip())
        assert Trace(trace.text).final == trace.final


def test_digest_is_of_content_alone(tmp_path):
    picture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    for name in ("a.png", "b.png"):
        picture.save(tmp_path / name)
    data = (tmp_path / "a.png").read_bytes()
    same = {digest({"text": "x", "image": source}) for source in (tmp_path / "a.png", str(tmp_path / "b.png"), data)}
    assert len(same) == 1
    assert digest(picture) == digest(picture.copy())
    array = np.asarray(picture)
    assert digest(array) == digest(array.copy()) == digest(torch.from_numpy(array.copy()))


def test_digests_differ_in_everything_that_counts():
    picture, other = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    palettes = [Image.new("P", (4, 4)), Image.new("P", (4, 4))]
    palettes[0].putpalette([255, 0, 0])
    palettes[1].putpalette([0, 0, 255])
    items = ["a", "b", {"text": "a", "instruction": "b"}, {"text": "b", "instruction": "a"}, picture, other,
             {"text": "a", "image": picture}, {"image": [picture, other]}, {"image": [other, picture]},
             Image.new("RGB", (2, 8), "red"), *palettes,
             np.full((4, 4, 3), 255, np.uint8), np.full((4, 4, 3), -1, np.int8)]  # fmt: skip
    assert len({digest(item) for item in items}) == len(items)


def test_missing_picture_is_named(tmp_path):
    with pytest.raises(ValueError, match="gone.png cannot be read"):
        digest({"image": tmp_path / "gone.png"})


@pytest.mark.parametrize("field", ["reasoner", "revision", "template_version", "settings"])
def test_key_depends_on_the_origin(field):
    other = Origin(**{**vars(ORIGIN), field: "other"})
    assert other.key("c", "query", "qa") != ORIGIN.key("c", "query", "qa")


def test_key_depends_on_the_rest():
    calls = [("c", "query", "qa", None), ("d", "query", "qa", None), ("c", "document", "qa", None),
             ("c", "query", "content", None), ("c", "query", "qa", "red"), ("c", "query", "qa", "")]  # fmt: skip
    assert len({ORIGIN.key(*call[:3], answer=call[3]) for call in calls}) == len(calls)


def test_threads_share_a_store(tmp_path):
    with TraceStore(tmp_path / "traces.sqlite") as store, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: store.put([record(f"content {number}")]), range(60)))
        assert len(store) == 60


def test_round_trip(tmp_path):
    trace = Trace("<think> é \x00 \U0001f600 </think> x", "length", 9, gold_visible=True)
    with TraceStore(tmp_path / "deep" / "traces.sqlite") as store:
        store.put([Record("k", "c", "document", "content", ORIGIN, trace)])
        store.put([Record("k", "c", "document", "content", ORIGIN, Trace("another"))])
        assert store.get(["k", "absent"]) == {"k": trace}
    with TraceStore(tmp_path / "deep" / "traces.sqlite") as store:
        assert store.get(["k"]) == {"k": trace}
        assert (len(store), store.origins(), store.summary()) == (1, [ORIGIN], {"complete": 1, "tokens": 9})
        [record] = store.records()
        assert (record.trace, record.side) == (trace, "document")


def test_what_is_no_text_is_not_lost_or_named():
    store = TraceStore(":memory:")
    store.put([Record("k", "c", "query", "qa", ORIGIN, Trace("a \ud800"))])
    assert store.get(["k"])["k"].raw == "a ?"
    with pytest.raises(ValueError, match=":memory: takes valid Unicode alone"):
        store.put([record("c", origin=Origin("\ud800", "", "1", "{}"))])


def test_more_keys_than_sqlite_takes_at_once():
    store = TraceStore(":memory:")
    records = [record(str(number)) for number in range(1200)]
    store.put(records)
    assert len(store.get([item.key for item in records])) == 1200


def test_by_content_wants_one_origin():
    store, other = TraceStore(":memory:"), Origin("other", "", "1", "{}")
    assert store.by_content() == {}
    store.put([record("c"), record("c", "theirs", other)])
    assert store.by_content(other)["query", "c"].raw == "theirs"
    named = f"They are reasoner='other', .*; reasoner={ORIGIN.reasoner!r}, .* settings={ORIGIN.settings!r}$"
    with pytest.raises(ValueError, match="2 origins.* a command takes .* into another file.*" + named):
        store.by_content()


def test_by_content_refuses_two_traces_of_one_input():
    store = TraceStore(":memory:")
    key = ORIGIN.key("c", "query", "content")
    store.put([record("c"), Record(key, "c", "query", "content", ORIGIN, Trace("x"))])
    with pytest.raises(ValueError, match="different traces of one query"):
        store.by_content()


def test_by_content_takes_the_first_of_several_answers():
    store = TraceStore(":memory:")
    keys = {answer: ORIGIN.key("c", "query", "qa", answer=answer) for answer in "abcdef"}
    gold = {answer: Trace(answer, gold_visible=True) for answer in keys}
    store.put([Record(keys[answer], "c", "query", "qa", ORIGIN, gold[answer]) for answer in keys])
    assert store.by_content() == {("query", "c"): gold[min(keys, key=keys.__getitem__)]}
    assert [item.key for item in store.records()] == sorted(keys.values())
    store.put([record("c")])  # the same input without an answer
    with pytest.raises(ValueError, match="different traces of one query"):
        store.by_content()


def test_by_content_refuses_answers_for_two_families():
    store = TraceStore(":memory:")
    for family in ("qa", "content"):
        key = ORIGIN.key("c", "query", family, answer="a")
        store.put([Record(key, "c", "query", family, ORIGIN, Trace(family, gold_visible=True))])
    with pytest.raises(ValueError, match="different traces of one query"):
        store.by_content()


def test_a_database_of_others_is_left_alone(tmp_path):
    path = tmp_path / "runs.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE runs (x)")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"runs\.db is no store of traces \(it holds the tables runs\); give another"):
        TraceStore(path)
    assert path.read_bytes() == before


def test_no_store(tmp_path):
    (tmp_path / "a.txt").write_text("no database " * 100)
    with pytest.raises(ValueError, match="a.txt is no store of traces"):
        TraceStore(tmp_path / "a.txt")
    connection = sqlite3.connect(tmp_path / "later.sqlite")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(ValueError, match="version 99"):
        TraceStore(tmp_path / "later.sqlite")


@pytest.mark.parametrize("place", ["", "file.txt/below/t.sqlite", "file.txt/t.sqlite"])
def test_what_cannot_be_opened_is_named(tmp_path, place):
    (tmp_path / "file.txt").touch()
    with pytest.raises(OSError, match=f"cannot open {tmp_path / place} as a store of traces.*give the path of a file"):
        TraceStore(tmp_path / place)


def test_reading_needs_no_right_to_write(tmp_path):
    path = tmp_path / "traces.sqlite"
    with TraceStore(path) as store:
        store.put([record("c")])
    with TraceStore(path) as store, TraceStore(path) as writer, writer._transaction():
        assert len(store) == 1  # nor has it to wait for who writes
        assert len(TraceStore(path)) == 1


def write(path, name: str, count: int, kill: int | None = None) -> None:
    """In a process of its own: pairs of records, until it is killed in the middle of transaction `kill`."""
    store, origin = TraceStore(path), Origin("w", "", "1", "{}")
    for number in range(count):
        contents = [f"{name}-{number}-{part}" for part in range(2)]
        if number == kill:
            store._connection.execute("BEGIN IMMEDIATE")
            store._connection.execute(
                "INSERT INTO traces VALUES ('half','c','query','qa','w','','1','{}','r','empty','stop',0,0)"
            )
            os.kill(os.getpid(), signal.SIGKILL)
        store.put(Record(origin.key(c, "query", "qa"), c, "query", "qa", origin, Trace(c)) for c in contents)


def test_many_write_and_one_is_killed(tmp_path):
    path = tmp_path / "traces.sqlite"
    assert exit_codes(write, (path, "a", 15), (path, "b", 15), (path, "c", 15, 10)) == [0, 0, -signal.SIGKILL]
    with TraceStore(path) as store:
        assert len(store) == 2 * (15 + 15 + 10)
        assert store.get(["half"]) == {}


@pytest.mark.parametrize("use", [len, TraceStore.summary, lambda store: store.get(["key"])])
def test_a_closed_store_says_so(tmp_path, use):
    store = TraceStore(tmp_path / "traces.sqlite")
    store.close()
    with pytest.raises(
        ValueError, match=r"traces.sqlite cannot be used \(Cannot operate on a closed database.\) If it"
    ):
        use(store)
