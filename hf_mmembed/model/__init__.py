"""The embedder itself: configuration, model, processor, prompts, and conversion from a generative checkpoint.

In: texts and images. Out: unit vectors `(batch, dim)`. The `*_mmembed.py` files are copied into every checkpoint, so
that it opens where this package is not installed; the other files stay here. Every name below is imported on first
use: reading images alone needs neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .configuration_mmembed import MMEmbedConfig
    from .images_mmembed import ImageError, open_image
    from .modeling_mmembed import MMEmbedModel, MMEmbedOutput
    from .presets import PRESETS, load_prompt
    from .processing_mmembed import MMEmbedProcessor
    from .rows_mmembed import HierarchicalPrompt, Row

# `convert`, the function, is `hf_mmembed.convert`: here the name is the module's.
__all__ = [
    "PRESETS",
    "HierarchicalPrompt",
    "ImageError",
    "MMEmbedConfig",
    "MMEmbedModel",
    "MMEmbedOutput",
    "MMEmbedProcessor",
    "Row",
    "load_prompt",
    "open_image",
]

_HOME = {
    "PRESETS": "presets",
    "HierarchicalPrompt": "rows_mmembed",
    "ImageError": "images_mmembed",
    "MMEmbedConfig": "registration",
    "MMEmbedModel": "registration",
    "MMEmbedOutput": "modeling_mmembed",
    "MMEmbedProcessor": "registration",
    "Row": "rows_mmembed",
    "load_prompt": "presets",
    "open_image": "images_mmembed",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
