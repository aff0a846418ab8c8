"""What every test shares: an offline environment set before torch is imported, and session-wide fixtures."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A busy machine is no failure: hypothesis would measure each example by the clock.
settings.register_profile("any-machine", deadline=None, derandomize=True)
settings.load_profile("any-machine")


# What takes a worker many seconds to start, and the tests that use it.
STARTED_ONCE = {
    "the running Space": ("tests/spaces/",),
    "the fresh interpreter": (
        "tests/hub/test_export.py",
        "tests/model/test_remote_code.py",
        "tests/sentence_transformer/test_plain.py",
        "tests/test_hash_seed.py",
        "tests/thinking/test_unified.py",
    ),
}


def pytest_xdist_make_scheduler(config, log):
    """Workers take whole files, and one of them all that share something started once."""
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid):
            shared = (name for name, files in STARTED_ONCE.items() if nodeid.startswith(files))
            return next(shared, super()._split_scope(nodeid))

    return Files(config, log)


@pytest.fixture(scope="session")
def generative(tmp_path_factory) -> Callable[[str], Path]:
    """`generative("qwen2_vl")` is the directory of that family's tiny random checkpoint; do not write to it."""
    from tests.tiny_families import build

    return cache(lambda family: build(family, tmp_path_factory.mktemp("generative") / family))


@pytest.fixture(scope="session")
def embedder(generative, tmp_path_factory) -> Callable[..., Path]:
    """`embedder("qwen2_vl", prompt="saha", ...)` is the directory of the converted checkpoint; do not write to it."""
    from hf_mmembed import convert

    return cache(
        lambda family, **choices: convert(generative(family), tmp_path_factory.mktemp("embedder") / family, **choices)
    )


@pytest.fixture(scope="session")
def fresh_interpreter(tmp_path_factory):
    """`fresh_interpreter(script, *arguments, cwd=...)` is what the script prints where this package is not imported."""
    from tests.fresh import FreshInterpreter

    # The hashes of the tests' own process have a random seed.
    interpreter = FreshInterpreter(tmp_path_factory.mktemp("fresh"), PYTHONHASHSEED="1")
    yield interpreter.run
    interpreter.close()


@pytest.fixture
def full_disk():
    """`with full_disk(1000):` no file grows beyond 1,000 bytes."""
    resource = pytest.importorskip("resource")

    @contextmanager
    def limited(size):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited
