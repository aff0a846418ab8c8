"""The embedder itself: configuration, model, processor, prompts, and conversion from a generative checkpoint.

In: texts and images. Out: unit vectors `(batch, dim)`. The `*_mmembed.py` files are copied into every checkpoint, so
that it opens where this package is not installed; `presets` and `convert` stay here.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoProcessor

from .configuration_mmembed import MMEmbedConfig
from .convert import convert
from .images_mmembed import ImageError, open_image
from .modeling_mmembed import MMEmbedModel, MMEmbedOutput
from .presets import PRESETS, load_prompt
from .processing_mmembed import MMEmbedProcessor
from .rows_mmembed import HierarchicalPrompt, Row

__all__ = [
    "PRESETS",
    "HierarchicalPrompt",
    "ImageError",
    "MMEmbedConfig",
    "MMEmbedModel",
    "MMEmbedOutput",
    "MMEmbedProcessor",
    "Row",
    "convert",
    "load_prompt",
    "open_image",
]

# With the package installed, checkpoints open without `trust_remote_code`, by this code rather than their copy.
AutoConfig.register(MMEmbedConfig.model_type, MMEmbedConfig)
AutoModel.register(MMEmbedConfig, MMEmbedModel)
AutoProcessor.register(MMEmbedConfig, MMEmbedProcessor)
