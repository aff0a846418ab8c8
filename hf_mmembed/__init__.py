"""Universal embeddings of text, images and both from any generative multimodal LLM.

In: texts and pictures. Out: unit vectors of shape ``(batch, dim)`` that live in one space.
Every name below is imported on first use, so that ``import hf_mmembed`` is quick and loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import tiny
    from .model.configuration_mmembed import MMEmbedConfig
    from .model.convert import convert
    from .model.modeling_mmembed import MMEmbedModel, MMEmbedOutput
    from .model.presets import PRESETS, load_prompt
    from .model.processing_mmembed import MMEmbedProcessor
    from .model.rows_mmembed import HierarchicalPrompt
    from .sentence_transformer import MMEmbedder

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "HierarchicalPrompt",
    "MMEmbedConfig",
    "MMEmbedModel",
    "MMEmbedOutput",
    "MMEmbedProcessor",
    "MMEmbedder",
    "__version__",
    "convert",
    "load_prompt",
    "tiny",
]

_HOME = {
    "PRESETS": "hf_mmembed.model.presets",
    "HierarchicalPrompt": "hf_mmembed.model.rows_mmembed",
    "MMEmbedConfig": "hf_mmembed.model.registration",
    "MMEmbedModel": "hf_mmembed.model.registration",
    "MMEmbedOutput": "hf_mmembed.model.modeling_mmembed",
    "MMEmbedProcessor": "hf_mmembed.model.registration",
    "MMEmbedder": "hf_mmembed.sentence_transformer",
    "convert": "hf_mmembed.model.convert",
    "load_prompt": "hf_mmembed.model.presets",
}


def __getattr__(name: str) -> Any:
    if name == "tiny":
        return import_module("hf_mmembed.tiny")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(_HOME[name]), name)
    except ImportError as error:
        error.add_note("`hf-mmembed doctor` shows what is broken and the pip command that fixes it.")
        raise
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
