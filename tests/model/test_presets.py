"""Presets hold the words of their sources, and a prompt of one's own comes from a YAML file."""

from __future__ import annotations

import pytest
import yaml

from hf_mmembed.model import PRESETS, HierarchicalPrompt, load_prompt


def test_names():
    assert list(PRESETS) == ["saha", "saha-legacy", "unime", "e5v", "vlm2vec", "plain"]
    assert all(load_prompt(name) is prompt for name, prompt in PRESETS.items())


def test_a_yaml_file_is_a_prompt(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        yaml.safe_dump({"system": "s", "represent_text": "\nt", "represent_image": "\ni", "separator": " "})
    )
    assert load_prompt(path) == HierarchicalPrompt("s", "\nt", "\ni", separator=" ")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"no preset 'sahaa'; use one of e5v, plain, saha, .*or a \.yaml file"):
        load_prompt("sahaa")


@pytest.mark.parametrize("content", ["[1, 2]", "system: s", "sytem: s", "a: [", ""])
def test_a_file_that_is_no_prompt_says_what_it_needs(tmp_path, content):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match="is no prompt.*it needs system, represent_text and represent_image"):
        load_prompt(path)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("represent_text:", "mine.yaml is no prompt .represent_text is None, it must be a string"),
        ("system: 1", "system is 1, it must be a string"),
        ("chat: 'no'", "chat is 'no', it must be true or false"),
        ("represent_documents: 1", "represent_documents is 1, it must be true or false"),
        ("{image_style: bare, separator: ''}", "image_style 'bare' with an empty separator"),
    ],
)
def test_fields_of_a_wrong_type_or_at_odds_are_named(tmp_path, field, message):
    path = tmp_path / "mine.yaml"
    path.write_text(
        yaml.safe_dump({"system": "s", "represent_text": "t", "represent_image": "i", **yaml.safe_load(field)})
    )
    with pytest.raises(ValueError, match=message):
        load_prompt(path)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.yaml"):
        load_prompt(tmp_path / "absent.yaml")
