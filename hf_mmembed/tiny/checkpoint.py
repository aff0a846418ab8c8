"""Where the shipped model lies.

One set of weights serves both: the generative checkpoint is part of the package, and its embedder is converted from it
into the assets cache of huggingface_hub on first use, by the same `convert` that serves every other model.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

__all__ = ["checkpoint_path", "generative_path"]

_PACKAGE = Path(__file__).parent.parent
_GENERATIVE = _PACKAGE / "tiny" / "generative"


def generative_path() -> Path:
    """Directory of the generative checkpoint (transformers layout, bfloat16 safetensors).

    Raises:
        FileNotFoundError: The package was installed without its weights.
    """
    if not (_GENERATIVE / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"{_GENERATIVE} holds no model.safetensors: reinstall hf-mmembed, or make the model with "
            "`hf-mmembed tiny train`"
        )
    return _GENERATIVE


def checkpoint_path() -> Path:
    """Directory of the embedder: what `AutoModel`, `SentenceTransformer` and `MMEmbedder` open.

    It is converted on first use (about a second) with the hierarchical prompt, and again whenever the weights or the
    model code have changed. `HF_ASSETS_CACHE` moves the cache it is kept in.

    Raises:
        FileNotFoundError: As in `generative_path`.
    """
    generative = generative_path()
    from huggingface_hub import cached_assets_path

    sources = [*sorted(generative.iterdir()), *sorted((_PACKAGE / "model").glob("*.py"))]
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.name.encode() + b"\0" + hashlib.sha256(source.read_bytes()).digest())
    cache = cached_assets_path("hf_mmembed", namespace="mmembed-tiny", subfolder=digest.hexdigest()[:16])
    embedder = cache / "embedder"
    if not (embedder / "config.json").is_file():
        from hf_mmembed.model.convert import convert

        try:
            convert(generative, embedder, dtype="float32")  # the fastest type on a CPU, where it mostly runs
        except OSError:
            if not (embedder / "config.json").is_file():  # unless another process was faster
                raise
    return embedder
