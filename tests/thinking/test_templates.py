from __future__ import annotations

import hashlib
from importlib import resources

import pytest
import yaml

from hf_mmembed.inputs import as_messages
from hf_mmembed.thinking.templates import FAMILIES, guess_family, load_templates

FILE = resources.files("hf_mmembed.thinking") / "templates-v1.yaml"


def test_a_published_version_never_changes():
    """Traces are kept under its number; to change a word, add a version."""
    assert (
        hashlib.sha256(FILE.read_bytes()).hexdigest()
        == "dd35bd66efcef902b61bcc0d89bd9bdb7d05479e83e431beed3622bd77b8f4f9"
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_its_own_prompt_that_asks_for_the_form(family):
    prompt = load_templates().prompt(family)
    assert prompt.represent_text == prompt.ending("document", has_image=True)
    assert "<think>" in prompt.represent_text and "</think>" in prompt.represent_text
    others = {load_templates().prompt(other).represent_text for other in FAMILIES if other != family}
    assert len(others) == len(FAMILIES) - 1 and prompt.represent_text not in others


def test_thinking_is_off_by_default_where_content_is_looked_for_as_it_is():
    assert [family for family, think in load_templates().think.items() if not think] == ["content"]


def test_unknown_family_and_version():
    with pytest.raises(ValueError, match="no task family 'video'.*'qa'"):
        load_templates().prompt("video")
    with pytest.raises(ValueError, match="version '99'; the latest is '1'"):
        load_templates("99")


def test_templates_of_the_users_own(tmp_path):
    fields = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    fields["version"] = "mine"
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(fields))
    assert load_templates(path).version.startswith("mine-")
    del fields["families"]["qa"]
    path.write_text(yaml.safe_dump(fields))
    with pytest.raises(ValueError, match="holds no templates.*'qa'"):
        load_templates(path)


def test_templates_of_the_users_own_are_told_apart_by_their_words(tmp_path):
    fields = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    versions = {load_templates().version}
    for number, system in enumerate(["Look.", "Look!", "Look."]):
        path = tmp_path / f"{number}.yaml"
        path.write_text(yaml.safe_dump(fields | {"system": system}))
        versions.add(load_templates(path).version)
    assert len(versions) == 3


@pytest.mark.parametrize(
    ("item", "task", "family"),
    [
        ({"image": "a.png", "text": "How many? "}, "query", "qa"),
        ({"image": "a.png", "text": "make it blue"}, "query", "composed"),
        ({"image": "a.png"}, "query", "content"),
        ({"image": "a.png", "instruction": "Find it?"}, "query", "content"),
        ({"text": "How many?"}, "query", "content"),
        ({"image": "a.png", "text": "How many?"}, "document", "content"),
        ({"image": "a.png", "text": "How many?"}, None, "content"),
    ],
)
def test_guess(item, task, family):
    assert guess_family(as_messages(item), task) == family
