"""A deterministic embedder without a model: what it gives depends on the pixels and words alone, and it is instant."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from hf_mmembed.index import ModelIdentity

__all__ = ["DIM", "FakeEmbedder", "identity"]

DIM = 24


def identity(name: str = "fake", **changes) -> ModelIdentity:
    fields = {
        "name": name,
        "revision": None,
        "fingerprint": f"weights of {name}",
        "files": {"model.safetensors": name},
        "prompt_hash": "prompt",
        "dimension": DIM,
    }
    return ModelIdentity(**{**fields, **changes})


class FakeEmbedder:
    """Pictures by their mean colour on a 2 x 2 grid, texts by a digest of their words."""

    def __init__(self, prompt: str = "prompt", device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.calls: list[list[dict]] = []
        self.prompts = {"query": "", "document": ""}
        self.processor = SimpleNamespace(
            apply_chat_template=lambda chat, tokenize, task: (
                f"{prompt} {task} {[c['type'] for c in chat[0]['content']]}"
            )
        )

    def parameters(self):
        yield torch.zeros(1, dtype=torch.bfloat16)

    def get_embedding_dimension(self) -> int:
        return DIM

    def encode_document(self, inputs, **options) -> np.ndarray:
        return self._encode(inputs, "document")

    def encode_query(self, inputs, **options) -> np.ndarray:
        return self._encode(inputs, "query")

    @property
    def embedded(self) -> int:
        return sum(len(call) for call in self.calls)

    def _encode(self, inputs, task) -> np.ndarray:
        if any(item.get("text") == "refuse me" for item in inputs):
            raise ValueError("an input is refused")
        self.calls.append(inputs)
        return np.stack([self._vector(item, task) for item in inputs])

    @staticmethod
    def _vector(item: dict, task: str) -> np.ndarray:
        vector = np.full(DIM, 0.01, np.float32)
        if "image" in item:
            assert isinstance(item["image"], Image.Image) and item["image"].mode == "RGB"
            vector[:12] = np.asarray(item["image"].resize((2, 2), Image.Resampling.BOX), np.float32).ravel() / 255
        if "text" in item:
            words = f"{item['text']} {item.get('instruction', '')}"
            vector[12:] = np.frombuffer(hashlib.sha256(words.encode()).digest()[:12], np.uint8) / 255
        return vector / np.linalg.norm(vector)
