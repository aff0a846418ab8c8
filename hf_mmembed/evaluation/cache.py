"""Embeddings on the disk by the digest of what was embedded, so that nothing is embedded twice, in any run.

In: digests ``(n, 16)`` and vectors ``(n, dim)``. Out: the same, later. Each finished batch of work is one safetensors
file, written aside and renamed: a run that is killed loses at most the batches it was in, and processes that share the
directory never write the same file with other content. Another model, or another prompt, has another directory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hf_mmembed.files import write_atomically
from hf_mmembed.visible import visible

__all__ = ["EmbeddingCache"]


class EmbeddingCache:
    """The embeddings that one model has made.

    Args:
        directory: Where they lie; created if needed.

    Raises:
        ValueError: A file in it is broken.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._place_of: dict[bytes, tuple[Path, int]] = {}
        self._known: set[Path] = set()
        self.refresh()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._place_of

    def refresh(self) -> None:
        """Takes in what other processes have added."""
        for file in sorted(set(visible(self.directory, "*.safetensors")) - self._known):
            self._known.add(file)
            rows = _load(file, "digests").reshape(-1, 16)
            self._place_of |= {row.tobytes(): (file, place) for place, row in enumerate(rows)}

    def add(self, digests: Sequence[bytes], vectors: NDArray[np.float32]) -> None:
        """Keeps a batch for good. `vectors` has shape ``(len(digests), dim)``."""
        from safetensors.numpy import save

        name = hashlib.sha256(b"".join(digests)).hexdigest()[:32]
        rows = np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), 16)
        data = save({"digests": np.ascontiguousarray(rows), "vectors": np.ascontiguousarray(vectors, np.float32)})
        write_atomically(self.directory / f"{name}.safetensors", data)

    def take(self, digests: Sequence[bytes]) -> NDArray[np.float32]:
        """The vectors of some digests, ``(len(digests), dim)``, in their order.

        Raises:
            KeyError: One is not there.
        """
        wanted: dict[Path, list[tuple[int, int]]] = {}
        for place, digest in enumerate(digests):
            file, row = self._place_of[digest]
            wanted.setdefault(file, []).append((place, row))
        vectors: NDArray[np.float32] | None = None
        for file, places in wanted.items():
            found = _load(file, "vectors")
            if vectors is None:
                vectors = np.empty((len(digests), found.shape[1]), np.float32)
            into, rows = np.array(places).T
            vectors[into] = found[rows]
        return np.empty((0, 0), np.float32) if vectors is None else vectors


def _load(file: Path, name: str) -> NDArray[np.generic]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as tensors:
            return tensors.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"cannot read {file}: {error}; delete it, and what it held is embedded again") from error
