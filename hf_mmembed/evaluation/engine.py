"""Embeds the items of a data set: each distinct content once, in as many processes as there are, resumably.

In: items and an `Encoder`. Out: unit vectors ``(contents, dim)`` and which of them belongs to each item ``(items,)``.
Work is cut into batches by content alone, so it is the same work in any order of the items and any number of processes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from hf_mmembed.processes import world

from .cache import EmbeddingCache
from .encoder import Encoder
from .items import Item, digest

__all__ = ["embed_items"]

_SHARDS = 32  # some for each of many processes
_SIZES = 64, 256  # of a shard: a model that begins anew with each wants several batches in it


def embed_items(
    items: Sequence[Item], encoder: Encoder, cache: EmbeddingCache, *, name: str, shard: int | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Embeddings of items, from the cache or from the model.

    Args:
        items: What to embed.
        encoder: The model.
        cache: Its embeddings so far; what is new is added.
        name: What to call the work in the progress bar.
        shard: Contents per file of the cache: what a killed process loses at most. Defaults to between 64 and 256, so
            that there are 32 files where that goes.

    Returns:
        Vectors of unit length, float32, ``(contents, dim)``, and places ``(items,)``, int64, among them.

    Raises:
        ValueError: An item cannot be embedded, or its embedding is not finite or has no direction.
    """
    here = world()
    digests: list[bytes] = []
    failure = None
    try:
        digests += map(digest, tqdm(items, desc=f"{name}: reading", delay=2, disable=None, leave=False))
    except ValueError as error:
        failure = str(error)
    if (failure := here.agree(failure)) is not None:
        raise ValueError(failure)
    item_of = dict(zip(reversed(digests), reversed(items), strict=True))
    if shard is None:
        # By all contents, not by what is missing: a run that goes on then makes the batches that it would have made.
        shard = min(max(-(-len(item_of) // _SHARDS), _SIZES[0]), _SIZES[1])
    # The main process decides: another may be ahead, with files that not every process has seen yet.
    missing = here.share(sorted(one for one in item_of if one not in cache))
    shards = [missing[start : start + shard] for start in range(0, len(missing), shard)]
    with tqdm(total=len(item_of), initial=len(item_of) - len(missing), desc=name, unit=" inputs", disable=None) as bar:
        bar.disable = bar.disable or not here.main
        try:
            for own in shards[here.rank :: here.size]:
                vectors = _unit([item_of[one] for one in own], encoder)
                cache.add(own, vectors)
                bar.update(min(len(own) * here.size, bar.total - bar.n))
        except ValueError as error:
            failure = str(error)
    if (failure := here.agree(failure)) is not None:
        raise ValueError(failure)
    cache.refresh()
    contents = list(item_of)
    place_of = {one: place for place, one in enumerate(contents)}
    return cache.take(contents), np.array([place_of[one] for one in digests], np.int64)


def _unit(items: list[Item], encoder: Encoder) -> NDArray[np.float32]:
    vectors = np.asarray(encoder(items), np.float32)
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    for item, length in zip(items, lengths, strict=True):
        if not np.isfinite(length) or length == 0:
            raise ValueError(
                f"the model gave an embedding of length {length} for {item}; a ranking by NaN scores would count as right"
            )
    return (vectors / lengths[:, None]).astype(np.float32)
