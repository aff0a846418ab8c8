"""Fine-tuning an embedder on pairs, in batches of whole clusters.

In: an embedder (or the multimodal LLM it is made of), pairs, and clusters of them: row numbers ``(n_clusters, size)``.
Out: one directory, merged or adapter, that `SentenceTransformer` opens. `SaHaTrainer` is the trainer, `train` a whole
recipe.
"""

from __future__ import annotations

from .arguments import SaHaTrainingArguments
from .chunks import ChunkedLoss, NonFiniteLossError
from .hard_negatives import InBatchHardNegativeLoss
from .losses import MaskedInfoNCELoss
from .models import open_for_training, save_result
from .recipes import Recipe, load_recipe, prepare, recipe_names, train
from .sampler import SaHaBatchSampler
from .soft_labels import SoftLabelLoss
from .trainer import SaHaTrainer

__all__ = [
    "ChunkedLoss",
    "InBatchHardNegativeLoss",
    "MaskedInfoNCELoss",
    "NonFiniteLossError",
    "Recipe",
    "SaHaBatchSampler",
    "SaHaTrainer",
    "SaHaTrainingArguments",
    "SoftLabelLoss",
    "load_recipe",
    "open_for_training",
    "prepare",
    "recipe_names",
    "save_result",
    "train",
]
