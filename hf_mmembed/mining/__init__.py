"""From pairs and a model's own embeddings to clusters of pairs that are hard for one another.

In: a dataset of pairs and an embedder (`mine_pairs`), or ids of shape ``(rows,)`` with embeddings of shape
``(queries, dim)`` and ``(documents, dim)`` (`mine`). Out: `Clusters`, row numbers of shape ``(clusters, k + 1)``.
"""

from __future__ import annotations

from .clusters import Clusters
from .dataset import Mined, mine_pairs
from .filters import FilterRules
from .ids import ContentIds, canonical_instructions, content_ids
from .saha import DEFAULT_RULES, changed_rules
from .strategies import STRATEGIES, Strategy, mine

__all__ = [
    "DEFAULT_RULES",
    "STRATEGIES",
    "Clusters",
    "ContentIds",
    "FilterRules",
    "Mined",
    "Strategy",
    "canonical_instructions",
    "changed_rules",
    "content_ids",
    "mine",
    "mine_pairs",
]
