"""The loopback Hub and a client that talks to it instead of to the real one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.utils._http as client_http
import pytest
from huggingface_hub import constants
from transformers.utils.hub import hf_api

from tests.hub.hub_server import TOKEN, Hub, running_hub


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[Hub]:
    """A Hub on loopback; `huggingface_hub` in this process talks to it, without xet and without waiting."""
    with running_hub() as server:
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in {
            "ENDPOINT": server.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(hf_api(), "endpoint", server.endpoint)  # transformers keeps one client for good
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(client_http.time, "sleep", lambda seconds: None)
        yield server


@pytest.fixture
def family() -> str:
    """Which one `checkpoint` is of; a test may name another."""
    return "qwen2_vl"


@pytest.fixture
def checkpoint(embedder, family, tmp_path) -> Path:
    """A converted checkpoint that a test may change."""
    return Path(shutil.copytree(embedder(family), tmp_path / "my-embedder"))
