"""Makes transformers' Auto classes know the embedder and the unified model, wherever this package is installed.

In: nothing. Out: checkpoints open without `trust_remote_code`, by this code rather than by their copy of it.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoProcessor

from .configuration_mmembed import MMEmbedConfig
from .modeling_mmembed import MMEmbedModel
from .processing_mmembed import MMEmbedProcessor
from .unified_mmembed import UnifiedConfig, UnifiedModel

__all__ = ["MMEmbedConfig", "MMEmbedModel", "MMEmbedProcessor", "UnifiedConfig", "UnifiedModel"]

AutoConfig.register(MMEmbedConfig.model_type, MMEmbedConfig)
AutoModel.register(MMEmbedConfig, MMEmbedModel)
AutoProcessor.register(MMEmbedConfig, MMEmbedProcessor)
AutoConfig.register(UnifiedConfig.model_type, UnifiedConfig)
AutoModel.register(UnifiedConfig, UnifiedModel)
