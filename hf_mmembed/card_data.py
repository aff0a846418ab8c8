"""What sentence-transformers' card says of an embedder, where its own guess would be wrong or nothing.

In: an embedder, when its card is written, as training does. Out: a snippet that opens it, and the base model and the
licence that the checkpoint names. The words of the card are sentence-transformers' own; the cards of this package are
made by `hf_mmembed.hub.card`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformerModelCardData
from yaml import YAMLError

__all__ = ["EmbedderCardData"]


@dataclass
class EmbedderCardData(SentenceTransformerModelCardData):
    """As `SentenceTransformerModelCardData`, whose arguments it takes."""

    license: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The variables of the card, among them the licence, which a fine-tuned model inherits."""
        if self.license is None and (card := self.model._model_card_text):
            try:
                inherited = ModelCard(card, ignore_metadata_errors=True).data.get("license")
            except (ValueError, YAMLError):  # a card without readable metadata names none
                inherited = None
            # One called "other" has its name in a field that these cards lack.
            self.license = inherited if isinstance(inherited, str) and inherited != "other" else None
        return super().to_dict()

    def try_to_set_base_model(self) -> None:
        """Called for an embedder that is no repository of the Hub: its config says of which one it was made."""
        config = getattr(self.model.transformers_model, "config", None)
        base, revision = getattr(config, "base_model", None), getattr(config, "base_revision", None)
        if base is None or revision is None:  # a directory has no revision
            super().try_to_set_base_model()
        else:
            self.base_model, self.base_model_revision = base, revision

    def generate_usage_snippet(self) -> str:
        """The snippet, which has to allow the code that an embedder carries."""
        return re.sub(
            r'^(model = \w+\(".*")\)$', r"\1, trust_remote_code=True)", super().generate_usage_snippet(), flags=re.M
        )
