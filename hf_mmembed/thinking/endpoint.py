"""A reasoner behind an OpenAI-compatible chat endpoint: vLLM, TGI, SGLang, llama.cpp or a paid service.

In: inputs, sent as chat messages with pictures as data URLs, several requests at a time. Out: traces, in order. A
picture file that every server reads the same is sent as it is, any other as a PNG of what `open_image` makes of it.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event, Lock
from typing import Any

from PIL import Image

from hf_mmembed.model.images_mmembed import ImageError, open_image
from hf_mmembed.model.rows_mmembed import Row

from .reasoner import Settings, row_of
from .templates import Templates, load_templates
from .traces import Origin, Trace

__all__ = ["EndpointReasoner"]

_NOT_ACCEPTED = (400, 413, 422)  # one input is at fault, such as a text that is too long, not the server
_BUSY = (429, 503)
_WAITS = (1.0, 4.0, 15.0)  # seconds until a busy server is asked again
_LONGEST_WAIT = 60.0  # whatever the server asks for
_SENT_AS_THEY_ARE = {"JPEG": "image/jpeg", "PNG": "image/png"}  # llama.cpp reads no WebP
# What Pillow calls the parts of a file that are for Pillow, or for nobody, to read.
_NOT_SENT = {"transparency", "exif", "xmp", "XML:com.adobe.xmp", "photoshop"}
_BIT_DEPTH = 24  # its place in a PNG: Pillow opens 16 bits per channel as "RGB", too
_DECODING = Lock()


class EndpointReasoner:
    """A served model.

    Args:
        base_url: Such as ``http://localhost:8000/v1``.
        model: The name that it is served under.
        revision: What tells this version of the model from others of the same name: the server does not say.
        api_key: Defaults to none.
        settings: Defaults to greedy decoding of up to 512 tokens.
        templates: Defaults to the latest.
        concurrency: Requests on their way at once. Defaults to 16.
        timeout: Seconds until a request is given up. Defaults to 600.

    Raises:
        ValueError: The URL or the key cannot be sent.

    Example:
        ::

            reasoner = EndpointReasoner("http://localhost:8000/v1", "Qwen/Qwen2.5-VL-72B-Instruct")
            reasoner.think(["two discs, the left one red"], "content")
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        revision: str = "",
        api_key: str | None = None,
        settings: Settings | None = None,
        templates: Templates | None = None,
        concurrency: int = 16,
        timeout: float = 600.0,
    ) -> None:
        if not base_url.startswith(("http://", "https://")) or not base_url.isascii():
            raise ValueError(f"the endpoint is {base_url!r}; give a URL such as http://localhost:8000/v1")
        if api_key and not (api_key.isascii() and api_key.isprintable()):
            raise ValueError("the API key holds a line break or another character that cannot be sent; give it alone")
        self.base_url, self.name = base_url, model
        self.settings = settings or Settings()
        self.templates = templates or load_templates()
        self.concurrency = concurrency
        self.batch_size = 4 * concurrency
        self.origin = Origin(model, revision, self.templates.version, self.settings.as_json())
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout = timeout
        self._stopped = Event()

    def think(self, inputs: Sequence[Any], task_family: str, *, answers: Sequence[str] | None = None) -> list[Trace]:
        """See `Reasoner.think`.

        A server that says it is busy is asked three times more, after 1, 4 and 15 seconds or when it says.

        Raises:
            ConnectionError: The endpoint cannot be reached, does not answer in time or refuses. Its `finished` holds
                the traces that are there already, by the place of their input.
            KeyboardInterrupt: Ctrl-C was pressed; the same. What is on its way is waited for, and no more is asked.
            ValueError: An input cannot be used, by the server's word neither, or the answer is no chat completion; the
                same.
        """
        request = self.templates.prompt(task_family).represent_text
        rows = [row_of(item, index, self.templates, answers) for index, item in enumerate(inputs)]

        def trace_of(index: int, row: Row) -> Trace:
            # Pictures are read here, in several threads and while others wait for the server.
            return self._ask(index, self._messages(row, index, request), gold_visible=answers is not None)

        self._stopped.clear()
        pool = ThreadPoolExecutor(self.concurrency)
        asked: list[Future[Trace]] = []
        stopped: BaseException | None = None
        try:
            try:
                for index, row in enumerate(rows):
                    asked.append(pool.submit(trace_of, index, row))
                wait(asked, return_when=FIRST_EXCEPTION)
            except KeyboardInterrupt:
                self._stopped.set()
                raise
            finally:
                # What is on its way is paid for and waited for; a second Ctrl-C gives up its traces.
                pool.shutdown(cancel_futures=True)
        except KeyboardInterrupt as pressed:
            stopped = pressed
        done = {index: one for index, one in enumerate(asked) if one.done() and not one.cancelled()}
        failure = stopped or next((error for one in done.values() if (error := one.exception()) is not None), None)
        if failure is not None:
            finished = {index: one.result() for index, one in done.items() if one.exception() is None}
            failure.finished = finished  # type: ignore[attr-defined]
            raise failure
        return [one.result() for one in asked]

    def _messages(self, row: Row, index: int, request: str) -> list[dict[str, Any]]:
        words = "\n".join(part for part in (row.instruction, row.text) if part)
        content: list[dict[str, Any]] = []
        for image in row.images:
            try:
                content.append({"type": "image_url", "image_url": {"url": _data_url(image)}})
            except ImageError as error:
                raise ImageError(f"the image of inputs[{index}]: {error}") from error
        content.append({"type": "text", "text": words + request})
        return [{"role": "system", "content": self.templates.system}, {"role": "user", "content": content}]

    def _ask(self, index: int, messages: list[dict[str, Any]], *, gold_visible: bool) -> Trace:
        settings = self.settings
        completion = self._post(
            {
                "model": self.name,
                "messages": messages,
                "max_tokens": settings.max_new_tokens,
                "temperature": settings.temperature,
                "top_p": settings.top_p,
                "seed": settings.seed,
                **({"stop": list(settings.stop)} if settings.stop else {}),
            },
            index,
        )
        try:
            [choice, *_] = completion["choices"]
            message = choice["message"]
            raw = message.get("content") or ""
            # Servers that know the model's reasoning format hand the two parts out separately.
            if reasoning := message.get("reasoning") or message.get("reasoning_content"):
                raw = f"<think> {reasoning} </think> {raw}"
            # Half of a surrogate pair is valid in JSON, but no text.
            raw = raw.encode("utf-8", "replace").decode()
            tokens = (completion.get("usage") or {}).get("completion_tokens") or 0
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{self.base_url} answered {str(completion)[:200]}, which is no chat completion; is it the right URL?"
            ) from error
        return Trace(raw, "length" if choice.get("finish_reason") == "length" else "stop", tokens, gold_visible)

    def _post(self, body: dict[str, Any], index: int) -> Any:
        # The standard library's client: that of the Hub refuses any request while `HF_HUB_OFFLINE` is set.
        url = f"{self.base_url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), self._headers)
        try:
            return json.loads(self._patiently(request))
        except urllib.error.HTTPError as error:
            said = " ".join(error.read().decode("utf-8", "replace").split())[:300]
            if error.code in _NOT_ACCEPTED:
                raise ValueError(
                    f"inputs[{index}]: {self.base_url} does not accept it: {error.code} {error.reason} {said}"
                ) from error
            raise ConnectionError(
                f"{self.base_url} refuses a request for {self.name!r}: {error.code} {error.reason} {said}"
            ) from error
        except json.JSONDecodeError as error:
            raise ValueError(f"{url} does not answer in JSON; is it the right URL?") from error
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionError(
                f"{self.base_url} cannot be reached ({error}); is the server up? What is in the store stays, and the "
                "same command goes on from there."
            ) from error

    def _patiently(self, request: urllib.request.Request) -> bytes:
        for seconds in _WAITS:
            try:
                return self._sent(request)
            except urllib.error.HTTPError as error:
                if error.code not in _BUSY:
                    raise
                wished = error.headers.get("Retry-After", "")
                if self._stopped.wait(min(float(wished), _LONGEST_WAIT) if wished.isdecimal() else seconds):
                    raise
        return self._sent(request)

    def _sent(self, request: urllib.request.Request) -> bytes:
        with urllib.request.urlopen(request, timeout=self._timeout) as response:
            return response.read()


def _data_url(image: Any) -> str:
    opened = _opened(image)  # with all checks, whatever is sent
    kind, data = _as_it_is(image) or ("image/png", _png(opened))
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _opened(image: Any) -> Image.Image:
    if not isinstance(image, Image.Image):
        return open_image(image)
    with _DECODING:  # which happens in place, and one picture may belong to several inputs
        return open_image(image).copy()


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _as_it_is(image: Any) -> tuple[str, bytes] | None:
    """Type and bytes of a picture file that can be sent unchanged; None for any other picture.

    A file that says where and when it was taken, or how to turn it, is not sent unchanged.
    """
    if not isinstance(image, (bytes, str, os.PathLike)):
        return None
    try:
        data = image if isinstance(image, bytes) else Path(image).read_bytes()
        with Image.open(io.BytesIO(data), formats=list(_SENT_AS_THEY_ARE)) as file:
            plain = file.mode in ("RGB", "L") and getattr(file, "n_frames", 1) == 1 and not file.getexif()
            kind = None if file.info.keys() & _NOT_SENT else _SENT_AS_THEY_ARE.get(file.format or "")
    except OSError:  # another format
        return None
    if not plain or kind is None or (kind == "image/png" and data[_BIT_DEPTH] != 8):
        return None
    return kind, data
