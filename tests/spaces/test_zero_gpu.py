"""What ZeroGPU does to the Space: what is on a GPU runs in another process, and takes seconds of the visitor's own."""

from __future__ import annotations

import pickle
import types
from collections.abc import Callable

import pytest
from PIL import Image

gr = pytest.importorskip("gradio")

from hf_mmembed.cli.demo import space_folder  # noqa: E402

FIRST_TEXT = "a blue heart left of a red star"


def crossed(value):
    """What arrives of it in another process."""
    return pickle.loads(pickle.dumps(value))  # noqa: S301  (it is our own)


class ZeroGpu:
    """In place of the decorator: arguments and results are pickled, and of errors only Gradio's keep their words."""

    def __init__(self) -> None:
        self.seconds: list[int] = []  # that were asked for

    def __call__(self, *, duration: Callable[..., int]) -> Callable[..., Callable]:
        def decorate(function: Callable) -> Callable:
            def crossing(*arguments):
                self.seconds.append(duration(*arguments))
                try:
                    return crossed(function(*crossed(arguments)))
                except gr.Error as error:
                    raise crossed(error) from None
                except Exception as error:  # noqa: BLE001  (as it does)
                    raise gr.Error(type(error).__name__) from None

            return crossing

        return decorate


@pytest.fixture(scope="module")
def zero():
    """The module, its engine, its page and the emulated ZeroGPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(space_folder())
        patch.setenv("MMEMBED_REASONER", "")
        import app

        gpu = ZeroGpu()
        patch.setattr(app, "on_gpu", gpu)
        engine = app.Engine("mmembed-tiny", samples=8)
        explorer = types.SimpleNamespace(
            choices=[("a red star", 3)], own_picture=str, candidates=lambda row: [], cluster_view=str
        )
        reading = types.SimpleNamespace(read=engine.read)
        patch.setattr(engine, "read", lambda *arguments: reading.read(*arguments))
        page = app.build(engine, explorer)
        functions = {one.name: one.fn for one in page.fns.values()}
        yield types.SimpleNamespace(app=app, engine=engine, page=page, gpu=gpu, ask=functions, reading=reading)


@pytest.fixture
def asked(zero):
    """What was asked of ZeroGPU in one test."""
    zero.gpu.seconds.clear()
    return zero.gpu.seconds


@pytest.fixture
def broken(tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(b"no picture")
    return str(path)


def test_to_open_the_page_computes_nothing_and_asks_for_nothing(zero):
    assert not [target for one in zero.page.fns.values() for target in one.targets if target[1] == "load"]
    shown = {c["props"].get("elem_id"): c["props"].get("value") for c in zero.page.get_config_file()["components"]}
    assert zero.gpu.seconds == []
    for name in ("results", "gallery", "chart", "prompts", "heat", "own", "steps", "cluster"):
        assert shown[name], name
    visitor = zero.app.Visitor()
    assert zero.ask["search"](FIRST_TEXT, None, "", 10, False, visitor) == shown["results"]
    assert zero.ask["draw_map"](shown["map-texts"], 0, visitor) == shown["heat"]
    assert zero.ask["compare"](shown["lab-query"], None, "", visitor) == (shown["chart"], shown["prompts"])


def test_what_is_wrong_with_the_input_is_said_and_costs_no_time_on_a_gpu(zero, asked, broken, tmp_path):
    nobody, full = zero.app.Visitor(), zero.app.Visitor(list(zero.engine.samples) * 2)
    picture, gone = tmp_path / "red.png", str(tmp_path / "gone.png")
    Image.new("RGB", (32, 32), "red").save(picture)
    for event, arguments, message in (
        ("search", ("", None, "", 10, False, nobody), "Type something"),
        ("search", ("x" * 1001, None, "", 10, False, nobody), "the limit here is"),
        ("search", ("", broken, "", 10, False, nobody), "not a readable image"),
        ("search", ("", gone, "", 10, False, nobody), "was deleted.* Choose it again"),
        ("search", ("a star", None, "", None, False, nobody), "how many results"),
        ("search", ("a star", None, "", 10, True, nobody), "no reasoner"),
        ("add", (None, nobody), "Choose a picture above"),
        ("add", (broken, nobody), "not a readable image"),
        ("add", (gone, nobody), "Choose it again"),
        ("add", (str(picture), full), "holds 12 pictures already"),
        ("compare", ("", None, "", nobody), "Type something"),
        ("compare", ("", broken, "", nobody), "not a readable image"),
        ("draw_map", (" \n", 0, nobody), "one text per line"),
        ("draw_map", ("a\n" + "x" * 1001, 0, nobody), "the limit here is"),
        ("explore", ("99",), "Pick one of the queries"),
    ):
        with pytest.raises(gr.Error, match=message):
            zero.ask[event](*arguments)
    assert asked == []


def test_what_is_computed_crosses_and_takes_one_turn_each(zero, asked, tmp_path):
    path = tmp_path / "red.png"
    Image.new("RGB", (32, 32), "red").save(path)
    visitor = zero.app.Visitor()
    again, shown = zero.ask["add"](str(path), visitor)
    assert again is visitor and "1 of yours" in shown and visitor.added[0].about == "your picture"
    assert "your picture" in zero.ask["search"]("", str(path), "", 1, False, visitor)
    assert "your picture" in zero.ask["compare"]("a red star", None, "", visitor)[0]
    assert zero.ask["draw_map"]("a star\na heart", 1, visitor).count("<tr>") == 3
    assert asked == [10] * 4
    zero.ask["explore"]("3")
    assert len(asked) == 4


def test_thinking_first_is_given_more_time(zero, asked, monkeypatch):
    reading = zero.engine.read([{"text": "a star"}], "query")
    monkeypatch.setattr(zero.reading, "read", lambda *arguments: reading)
    monkeypatch.setattr(zero.engine, "check_reasoner", lambda: None)
    zero.ask["search"]("a star", None, "", 10, True, zero.app.Visitor())
    assert asked == [60]


def test_an_error_of_computing_keeps_its_words_if_they_are_for_the_visitor(zero, asked, monkeypatch, caplog):
    def failing(error):
        def read(*arguments):
            raise error

        return read

    for error, message in ((ValueError("too many tokens"), "too many tokens"), (KeyError("x"), "on our side")):
        monkeypatch.setattr(zero.reading, "read", failing(error))
        with pytest.raises(gr.Error, match=message):
            zero.ask["search"]("a star", None, "", 10, False, zero.app.Visitor())
    assert "KeyError" in caplog.text
