"""Against a small server that speaks the protocol of OpenAI's chat endpoint."""

from __future__ import annotations

import base64
import io
import json
import struct
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from datasets import Dataset
from PIL import ExifTags, Image

from hf_mmembed.data.pairs import read_pairs
from hf_mmembed.model.images_mmembed import ImageError, open_image
from hf_mmembed.thinking import endpoint
from hf_mmembed.thinking.endpoint import EndpointReasoner
from hf_mmembed.thinking.filling import Thought, fill, think_about_pairs
from hf_mmembed.thinking.reasoner import Settings
from hf_mmembed.thinking.traces import Trace, TraceStore


class Handler(BaseHTTPRequestHandler):
    """Answers with the first word of what it is asked, after the colour of the picture if there is one."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, self.headers.get("Authorization"), body))
        parts = body["messages"][-1]["content"]
        word = parts[-1]["text"].split()[0]
        if word == "busy" and sum("busy" in str(asked[2]) for asked in self.server.seen) < 3:
            return self._send(429, {"error": {"message": "later"}})
        if word == "refused":
            return self._send(503, {"error": {"message": "overloaded"}})
        if word == "unacceptable":
            return self._send(400, {"error": {"message": "the prompt is too long"}})
        for part in parts[:-1]:
            data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
            word = f"{Image.open(io.BytesIO(data)).getpixel((0, 0))} {word}"
        message = {"role": "assistant", "content": f"<think> hm </think> {word}"}
        if word == "split":
            message = {"role": "assistant", "content": "done", "reasoning": "apart"}
        if word == "halved":
            message = {"role": "assistant", "content": "a \ud83d", "reasoning": "\ude00"}
        choice = {"index": 0, "message": message, "finish_reason": "length" if word == "endless" else "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 5, "total_tokens": 6}
        return self._send(200, {"id": "1", "created": 1, "model": body["model"], "system_fingerprint": "",
                                "object": "chat.completion", "choices": [choice], "usage": usage})  # fmt: skip

    def _send(self, status: int, body: dict) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *words) -> None:
        """Nothing."""


class Server(ThreadingHTTPServer):
    """Lets everyone wait in line; with room for five, a slow machine turns some of 16 away."""

    request_queue_size = 128


@pytest.fixture(scope="module")
def server():
    server = Server(("127.0.0.1", 0), Handler)
    server.seen = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def reasoner(server) -> EndpointReasoner:
    server.seen.clear()
    return EndpointReasoner(f"http://127.0.0.1:{server.server_port}/v1", "teacher", settings=Settings(64))


@pytest.fixture(autouse=True)
def waits(monkeypatch) -> list[float]:
    """How long a busy server was given; nobody really waits."""
    slept: list[float] = []

    class Impatient(threading.Event):
        def wait(self, timeout=None):
            slept.append(timeout)
            return self.is_set()

    monkeypatch.setattr(endpoint, "Event", Impatient)
    return slept


def test_traces_come_in_order_with_reason_and_tokens(reasoner):
    traces = reasoner.think([f"word{i} and more" for i in range(20)] + ["endless story"], "content")
    assert [trace.final for trace in traces] == [*(f"word{i}" for i in range(20)), "endless"]
    assert {trace.n_tokens for trace in traces} == {5}
    assert [trace.finish_reason for trace in traces] == ["stop"] * 20 + ["length"]


def test_what_is_sent(reasoner, server):
    picture = Image.new("RGB", (8, 8), (1, 2, 3))
    [trace] = reasoner.think([{"image": picture, "text": "which?", "instruction": "Look."}], "qa", answers=["this"])
    assert trace.final == "(1, 2, 3) Look." and trace.gold_visible
    [(path, key, body)] = server.seen
    assert (path, key) == ("/v1/chat/completions", None)
    assert (body["model"], body["max_tokens"], body["temperature"], body["stop"]) == ("teacher", 64, 0.0, ["<emb>"])
    system, user = body["messages"]
    assert system["content"] == reasoner.templates.system
    words = user["content"][-1]["text"]
    assert words.startswith("Look.\nwhich?\nThe right result is known to be: this\nAnswer the question.")


def test_reasoning_that_the_server_hands_out_separately(reasoner):
    [trace] = reasoner.think(["split"], "qa")
    assert (trace.think, trace.final) == ("apart", "done")


def test_half_of_a_surrogate_pair_is_no_text(reasoner):
    [trace] = reasoner.think(["halved"], "qa")
    assert (trace.think, trace.final) == ("?", "a ?")
    with pytest.raises(ValueError, match=r"^inputs\[1\] is not valid Unicode"):
        reasoner.think(["a", "\ud800"], "qa")


def test_a_key_that_cannot_be_sent_is_not_shown():
    with pytest.raises(ValueError, match="API key holds a line break") as raised:
        EndpointReasoner("http://localhost:8000/v1", "teacher", api_key="secret\n")
    assert "secret" not in str(raised.value)


def test_key_is_sent_to_the_server_it_is_for(server):
    server.seen.clear()
    reasoner = EndpointReasoner(f"http://127.0.0.1:{server.server_port}/v1", "teacher", api_key="secret")
    reasoner.think(["hello"], "qa")
    assert server.seen[0][1] == "Bearer secret"


def test_refusal_says_so(reasoner):
    with pytest.raises(ConnectionError, match="refuses a request for 'teacher'.*503"):
        reasoner.think(["refused"], "qa")


def test_a_busy_server_is_asked_again_after_a_while(reasoner, waits):
    [trace] = reasoner.think(["busy server"], "content")
    assert trace.final == "busy" and waits == [1.0, 4.0]


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [("refused again", ConnectionError, "503"), ("unacceptable text", ValueError, "row 5, query: .*too long")],
)
def test_what_was_answered_before_a_failure_is_kept(server, waits, tmp_path, bad, error, message):
    rows = {"query": [*(f"fine{n} text" for n in range(5)), bad], "positive": ["p"] * 6}
    pairs = read_pairs(Dataset.from_dict(rows))
    few_at_once = EndpointReasoner(f"http://127.0.0.1:{server.server_port}/v1", "tiny", concurrency=2)
    with TraceStore(tmp_path / "traces.sqlite") as store:
        with pytest.raises(error, match=message):
            think_about_pairs(store, few_at_once, pairs, sides=["query"], families="content")
        assert len(store) == 5
        asked = len(server.seen)
        with pytest.raises(error, match=message):
            think_about_pairs(store, few_at_once, pairs, sides=["query"], families="content")
        assert not any("fine" in str(body) for _, _, body in server.seen[asked:])


def test_a_busy_server_is_not_asked_again_after_ctrl_c(reasoner, server, monkeypatch):
    monkeypatch.setattr(endpoint.Event, "wait", lambda *_: True)  # pressed meanwhile
    with pytest.raises(ConnectionError, match="429"):
        reasoner.think(["busy server"], "content")
    assert len(server.seen) == 1


@pytest.mark.parametrize(("presses", "kept"), [(1, 3), (2, 1)])
def test_ctrl_c_asks_no_more_and_keeps_what_is_answered(monkeypatch, presses, kept):
    reasoner = EndpointReasoner("http://127.0.0.1:9/v1", "teacher", concurrency=2)
    store, asked = TraceStore(":memory:"), []
    on_their_way, answer = threading.Barrier(3, timeout=10), threading.Event()

    def ask(index, messages, *, gold_visible):
        asked.append(index)
        if index:
            on_their_way.wait()
            assert answer.wait(10)
        return Trace(f"<think> hm </think> {index}")

    def wait(futures, **options):
        on_their_way.wait()
        if presses == 1:
            futures[-1].add_done_callback(lambda _: answer.set())  # when it is cancelled
        raise KeyboardInterrupt

    def shutdown(pool, **options):
        close(pool, **{**options, "wait": presses == 1})
        if presses == 2:
            raise KeyboardInterrupt

    close = endpoint.ThreadPoolExecutor.shutdown
    monkeypatch.setattr(endpoint.ThreadPoolExecutor, "shutdown", shutdown)
    monkeypatch.setattr(endpoint, "wait", wait)
    monkeypatch.setattr(reasoner, "_ask", ask)
    with pytest.raises(KeyboardInterrupt):
        fill(store, reasoner, [Thought(f"row {n}", f"text {n}", "query", "content") for n in range(6)])
    answer.set()
    assert (len(store), sorted(asked)) == (kept, [0, 1, 2])


def test_an_input_that_the_server_does_not_accept_is_named(reasoner):
    with pytest.raises(ValueError, match=r"^inputs\[1\]: .*400.*too long"):
        reasoner.think(["a", "unacceptable", "b"], "qa")
    with pytest.raises(ValueError, match="row 1, query: "):
        pairs = read_pairs(Dataset.from_dict({"query": ["a", "unacceptable"], "positive": ["b", "c"]}))
        think_about_pairs(TraceStore(":memory:"), reasoner, pairs)


def test_missing_endpoint_is_a_clear_error_and_the_store_stays(reasoner, server, text_pairs, tmp_path):
    with TraceStore(tmp_path / "traces.sqlite") as store:
        assert think_about_pairs(store, reasoner, text_pairs, sides=["query"]).new == 2
        nobody = EndpointReasoner("http://127.0.0.1:9/v1", "teacher", settings=Settings(64))
        with pytest.raises(ConnectionError, match="127.0.0.1:9/v1 cannot be reached .* is the server up"):
            think_about_pairs(store, nobody, text_pairs)
        assert len(store) == 2


def test_no_url():
    with pytest.raises(ValueError, match="give a URL"):
        EndpointReasoner("localhost:8000", "teacher")
    with pytest.raises(ValueError, match="give a URL"):
        EndpointReasoner("http://gerät:8000/v1", "teacher")


def encoded(picture, kind, **options):
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def sent_of(image):
    kind, _, data = endpoint._data_url(image).removeprefix("data:").partition(";base64,")
    return kind, base64.b64decode(data)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_file_that_needs_nothing_done_is_sent_as_it_is(tmp_path, kind, mode):
    data = encoded(Image.new("RGB", (8, 6), (200, 30, 30)).convert(mode), kind)
    (tmp_path / "a.bin").write_bytes(data)
    for image in (data, str(tmp_path / "a.bin"), tmp_path / "a.bin"):
        assert sent_of(image) == (f"image/{kind.lower()}", data)


ROTATED, CAMERA = Image.Exif(), Image.Exif()
ROTATED[ExifTags.Base.Orientation] = 6
CAMERA[ExifTags.Base.Make] = "a camera"
RED = Image.new("RGB", (8, 6), (200, 30, 30))
RED_16 = np.full((6, 8, 3), (200 << 8, 30 << 8, 30 << 8), ">u2")


def png_of_16_bits():
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + row.tobytes() for row in RED_16)
    header = struct.pack(">IIBBBBB", 8, 6, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(encoded(RED, "WEBP", lossless=True), id="webp"),  # which llama.cpp does not read
        pytest.param(encoded(RED, "BMP"), id="bmp"),
        pytest.param(encoded(RED.convert("CMYK"), "JPEG"), id="cmyk"),
        pytest.param(encoded(RED.convert("P"), "PNG"), id="palette"),
        pytest.param(encoded(RED.convert("RGBA"), "PNG"), id="alpha"),
        pytest.param(encoded(RED, "PNG", transparency=(200, 30, 30)), id="transparent colour"),
        pytest.param(encoded(RED.convert("1"), "PNG"), id="one bit"),
        pytest.param(png_of_16_bits(), id="16 bits"),
        pytest.param(encoded(RED, "PNG", save_all=True, append_images=[Image.new("RGB", RED.size)]), id="animated"),
        pytest.param(encoded(RED, "JPEG", exif=ROTATED), id="rotated"),
        pytest.param(encoded(RED, "PNG", exif=ROTATED), id="rotated png"),
        pytest.param(encoded(RED, "JPEG", exif=CAMERA), id="with what a camera notes"),
    ],
)
def test_any_other_file_is_sent_as_it_is_opened(data):
    kind, sent = sent_of(data)
    assert kind == "image/png" and sent != data
    picture, opened = Image.open(io.BytesIO(sent)), open_image(data)
    assert picture.mode == "RGB" and np.array_equal(np.asarray(picture), np.asarray(opened))
    assert not picture.getexif()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_file_that_breaks_off_is_not_sent(kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    with pytest.raises(ImageError, match="broken or breaks off"):
        endpoint._data_url(encoded(noise, kind)[:-600])
    with pytest.raises(ImageError, match="more than 200 times the other"):
        endpoint._data_url(encoded(Image.new("RGB", (402, 2)), kind))


def test_pictures_are_read_in_several_threads_at_once(reasoner, monkeypatch):
    both, read = threading.Barrier(2, timeout=10), endpoint.open_image

    def open_in_company(image):
        both.wait()
        return read(image)

    monkeypatch.setattr(endpoint, "open_image", open_in_company)
    traces = reasoner.think([{"image": encoded(RED, "PNG"), "text": f"w{n}"} for n in range(2)], "qa")
    assert [trace.final for trace in traces] == ["(200, 30, 30) w0", "(200, 30, 30) w1"]


def test_one_picture_in_several_inputs(reasoner, tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(RED, "PNG"))
    with Image.open(tmp_path / "a.png") as picture:
        traces = reasoner.think([{"image": picture, "text": f"w{n}"} for n in range(16)], "qa")
    assert [trace.final for trace in traces] == [f"(200, 30, 30) w{n}" for n in range(16)]


def test_what_was_answered_before_a_bad_picture_is_kept(server):
    one_at_a_time = EndpointReasoner(f"http://127.0.0.1:{server.server_port}/v1", "teacher", concurrency=1)
    with pytest.raises(ImageError, match=r"^the image of inputs\[1\]: ") as raised:
        one_at_a_time.think(["a", {"image": b"no picture"}, "b"], "qa")
    assert raised.value.finished[0].final == "a" and 1 not in raised.value.finished


def test_bad_picture_is_named(reasoner):
    with pytest.raises(ValueError, match=r"inputs\[1\]"):
        reasoner.think(["a", {"image": b"no picture"}], "qa")
