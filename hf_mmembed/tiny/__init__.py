"""`mmembed-tiny`: the small multimodal LLM that ships in the package, its world and its recipe.

In: nothing. Out: `generative_path()`, a Qwen2-VL checkpoint that captions and answers questions on drawn pictures,
`checkpoint_path()`, the embedder made of it, and `saha_path()`, that embedder after SaHa. For learning and testing; for
photographs convert a real model.
"""

from __future__ import annotations

from .checkpoint import checkpoint_path, generative_path, saha_path

__all__ = ["checkpoint_path", "generative_path", "saha_path"]
