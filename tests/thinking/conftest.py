"""A store, pairs and a reasoner that are small enough to be made anew."""

from __future__ import annotations

import pytest
from datasets import Dataset

from hf_mmembed.data.pairs import read_pairs
from hf_mmembed.inputs import as_messages
from hf_mmembed.thinking.templates import load_templates
from hf_mmembed.thinking.traces import Origin, Trace, content_digest
from tests.training.conftest import fresh, make_pairs  # noqa: F401 - `fresh` is a fixture


class Parrot:
    """Writes down what it is given; counts how often it was asked."""

    batch_size = 4

    def __init__(self, name: str = "parrot", fail_after: int | None = None) -> None:
        self.templates = load_templates()
        self.origin = Origin(name, "1", self.templates.version, "{}")
        self.asked: list[tuple[str, int]] = []
        self.fail_after = fail_after

    def think(self, inputs, task_family, *, answers=None):
        if self.fail_after is not None and len(self.asked) >= self.fail_after:
            raise ConnectionError("gone")
        assert answers is None or len(answers) == len(inputs)
        self.asked.append((task_family, len(inputs)))
        words = [content_digest(as_messages(item))[:6] for item in inputs]
        return [Trace(f"<think> {task_family} </think> {word}", "stop", 7, answers is not None) for word in words]


@pytest.fixture
def parrot() -> Parrot:
    return Parrot()


@pytest.fixture(scope="session")
def some_pairs() -> Dataset:
    return make_pairs(6)


@pytest.fixture(scope="session")
def text_pairs() -> Dataset:
    return read_pairs(Dataset.from_dict({"query": ["a disc", "a box", "a disc"], "positive": ["red", "blue", "red"]}))
