"""The card that sentence-transformers writes with a fine-tuned embedder opens it, and says of what it was made."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from hf_mmembed import MMEmbedder

CARD = "---\nlicense: {license}\nlibrary_name: sentence-transformers\n---\n"


@pytest.fixture
def card_of(embedder, tmp_path):
    def write(base: str, revision: str | None, licence: str, **changes: Any) -> ModelCard:
        folder = Path(shutil.copytree(embedder("qwen2_vl"), tmp_path / "folder"))
        (folder / "README.md").write_text(CARD.format(license=licence))
        model = MMEmbedder(folder, device="cpu")
        config = model.transformers_model.config
        config.base_model, config.base_revision = base, revision
        model.model_card_data.add_tags("generated_from_trainer")  # as the trainer does
        model.model_card_data.generate_widget_examples = False
        for name, value in changes.items():
            setattr(model.model_card_data, name, value)
        model._create_model_card(str(tmp_path))
        return ModelCard.load(tmp_path / "README.md")

    return write


@pytest.mark.parametrize("ir_model", [False, True])
def test_the_snippet_opens_the_model(card_of, ir_model):
    card = card_of("owner/base", "abc", "mit", ir_model=ir_model)
    code = ast.parse(card.text.partition("```python")[2].partition("```")[0])
    calls = [node for node in ast.walk(code) if isinstance(node, ast.Call)]
    [opening] = [call for call in calls if getattr(call.func, "id", "") == "SentenceTransformer"]
    options = {keyword.arg: ast.literal_eval(keyword.value) for keyword in opening.keywords}
    assert options == {"trust_remote_code": True}


def test_base_and_licence_are_those_of_the_checkpoint(card_of):
    card = card_of("owner/base", "abc", "mit")
    assert card.data.base_model == "owner/base" and card.data.license == "mit"
    assert "at revision abc" in card.text


@pytest.mark.parametrize("licence", ["other", "[broken: :"])
def test_a_local_base_and_a_licence_without_a_name_are_not_claimed(card_of, licence):
    card = card_of("some-folder", None, licence)
    assert card.data.base_model is None and card.data.license is None


def test_a_licence_that_the_caller_names_stays(card_of):
    assert card_of("owner/base", "abc", "mit", license="apache-2.0").data.license == "apache-2.0"
