"""A folder of drawn pictures and a deterministic embedder."""

from __future__ import annotations

from random import Random

import pytest

from hf_mmembed.data.scenes import draw, random_scene
from tests.index.fake_embedder import FakeEmbedder


@pytest.fixture(scope="session")
def many_pictures(tmp_path_factory):
    """20 picture files, one a copy of another, two broken; do not write to it."""
    folder = tmp_path_factory.mktemp("many") / "pictures"
    folder.mkdir()
    rng = Random(5)
    for number in range(17):
        draw(random_scene(rng), rng, pixels=32).save(folder / f"{number:02}.png")
    (folder / "03 copy.png").write_bytes((folder / "03.png").read_bytes())
    (folder / "05 cut.png").write_bytes((folder / "05.png").read_bytes()[:80])
    (folder / "11 empty.png").touch()
    return folder


@pytest.fixture
def fake():
    return FakeEmbedder()
