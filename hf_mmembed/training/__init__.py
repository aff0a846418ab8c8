"""Fine-tuning an embedder on pairs, in batches of clusters.

In: an embedder (or the multimodal LLM it is made of), pairs, and clusters of pairs. Out: a checkpoint, merged or adapter.
"""

from __future__ import annotations

__all__: list[str] = []
