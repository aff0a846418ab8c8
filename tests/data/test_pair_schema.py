"""What is said about columns that were taken for something by their name."""

from __future__ import annotations

import pytest
from datasets import Dataset

from hf_mmembed.data.pairs import read_pairs

PATHS = ["a.png", "photos/B.JPG", "round"]


@pytest.mark.parametrize(("query", "positive"), [("text", "image"), ("image", "text"), ("image", "image")])
def test_names_of_pictures_read_as_text_are_told(query, positive, caplog):
    table = {"query": ["a disc", "a box.", "c.png"], "positive": ["round", "square", "long"]}
    table |= {name: PATHS for name, kind in (("query", query), ("positive", positive)) if kind == "image"}
    pairs = read_pairs(Dataset.from_dict(table))
    [said] = [record.getMessage() for record in caplog.records]
    chosen = f"{{query_{query}: query, pos_{positive}: positive}}"
    assert f'--set "data.columns={chosen}"' in said
    options = f"--column query_{query}=query --column pos_{positive}=positive"
    assert f"{options} for `hf-mmembed mine`, `judge` and `think`" in said
    assert f"columns={{'query_{query}': 'query', 'pos_{positive}': 'positive'}}" in said
    assert "'a.png'" in said and pairs["pos_text"][0] == table["positive"][0]


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        ({"query": ["a", "b", "c"], "positive": ["a.png", "no", "neither"]}, None),
        ({"query": ["a", "b", "c"], "positive": PATHS}, {"query_text": "query", "pos_text": "positive"}),
        ({"query_text": ["a", "b", "c"], "pos_text": PATHS}, None),
    ],
)
def test_texts_and_columns_that_were_named_are_not(table, columns, caplog):
    read_pairs(Dataset.from_dict(table), columns=columns)
    assert not caplog.records


def test_columns_that_cannot_be_told_are_named_in_python_in_a_recipe_and_for_commands():
    with pytest.raises(ValueError, match="cannot tell queries and documents among 'a'") as raised:
        read_pairs(Dataset.from_dict({"a": ["x"], "b": ["y"]}))
    said = str(raised.value)
    assert 'columns={"query_text": "question", "pos_image": "photo"} in Python'.replace('"', "'") in said
    assert '--set "data.columns={query_text: question, pos_image: photo}" for a recipe' in said
    assert "--column query_text=question --column pos_image=photo for `hf-mmembed mine`, `judge` and `think`" in said
