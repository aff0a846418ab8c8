"""The Space as it is served: one process with the shipped model, on loopback, for the whole test session.

The reasoner is the shipped model, too: it has nothing sensible to say, but says it quickly.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

ROOT = Path(__file__).parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@dataclass(frozen=True)
class Served:
    url: str
    process: subprocess.Popen[str]
    log: Path

    def memory(self) -> int:
        """Resident bytes of the server."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def ask(self, text: str, *, k: int = 4, think: bool = False, session: str | None = None) -> str:
        """The results for a text, by plain HTTP: Gradio's own client takes more time than the Space."""
        call = f"{self.url}/gradio_api/call/search"
        body = json.dumps({"data": [text, None, "", k, think], "session_hash": session or uuid4().hex}).encode()
        request = urllib.request.Request(call, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=300) as answer:
            event = json.load(answer)["event_id"]
        with urllib.request.urlopen(f"{call}/{event}", timeout=300) as stream:
            *_, state, content = stream.read().decode().strip().splitlines()
        assert state == "event: complete", f"{state}: {content}"
        [results] = json.loads(content.removeprefix("data: "))
        return results


@pytest.fixture(scope="session")
def space(tmp_path_factory) -> Iterator[Served]:
    """The running Space."""
    pytest.importorskip("gradio", reason="LOUD: the Space is not tested, gradio is missing: pip install '.[demo]'")
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("space")
    log = folder / "log.txt"
    command = [sys.executable, "-m", "hf_mmembed.cli", "demo", "--port", str(port), "--no-browser"]
    environment = {
        **os.environ,
        "MMEMBED_REASONER": "mmembed-tiny",
        "GRADIO_TEMP_DIR": str(folder / "uploads"),
        "PYTHONPATH": str(ROOT),
    }
    with log.open("w") as sink:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=sink, stderr=sink, text=True)
    served = Served(f"http://127.0.0.1:{port}", process, log)
    try:
        deadline = time.monotonic() + 300
        while True:
            try:
                urllib.request.urlopen(served.url, timeout=5).close()
                break
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
                process_wait(process)
        yield served
    finally:
        process.terminate()
        process.wait(timeout=30)


def process_wait(process: subprocess.Popen[str]) -> None:
    """A quarter of a second, or less if the process ends."""
    try:
        process.wait(timeout=0.25)
    except subprocess.TimeoutExpired:
        pass


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium; skipped with a loud line where there is none."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="LOUD: the browser tests do not run, playwright is missing: pip install '.[dev]'"
    )
    if CHROMIUM is None:
        pytest.skip("LOUD: the browser tests do not run, there is no chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield running
        running.close()


@pytest.fixture(scope="session")
def visitor(browser):
    """A visitor whose browser keeps the scripts of the page, which take seconds to load."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield context
    context.close()


@pytest.fixture
def page(visitor, space):
    """A fresh tab with the Space, loaded."""
    tab = visitor.new_page()
    tab.set_default_timeout(90_000)
    tab.goto(space.url)
    tab.wait_for_selector("#results .hit")
    yield tab
    tab.close()
