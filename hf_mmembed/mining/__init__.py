"""From pairs and a model's own embeddings to clusters of pairs that are hard for each other.

In: a dataset of pairs and an embedder, or ids of shape ``(rows,)`` with embeddings of shape ``(queries, dim)`` and
``(documents, dim)``. Out: `Clusters`, row numbers of shape ``(clusters, k + 1)``.
"""

from __future__ import annotations

from .clusters import Clusters
from .ids import ContentIds, canonical_instructions, content_ids

__all__ = ["Clusters", "ContentIds", "canonical_instructions", "content_ids"]
