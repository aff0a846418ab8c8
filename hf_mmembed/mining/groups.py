"""Which contents are the same thing, as far as the pairs of all subsets tell.

In: `ContentIds`. Out: a group number for every query and document. A caption and its picture are one thing, whichever
subset or direction links them. So two captions of one picture, or two pictures of one caption, are never negatives of one
another, unless more than `LARGEST_GROUP` contents hang together in that way.
"""

from __future__ import annotations

import logging

import numpy as np
from scipy.sparse import coo_array  # type: ignore[import-untyped]
from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

from .ids import ContentIds

__all__ = ["LARGEST_GROUP", "same_things"]

logger = logging.getLogger(__name__)

LARGEST_GROUP = 128
"""Groups of more contents are taken apart: a chain of that length is held together by something too common to tell."""


def same_things(ids: ContentIds, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Groups of queries and documents: the connected components of the graph whose edges are pairs.

    A query is the same node as the document with the same content.

    Args:
        ids: Of all pairs.
        rows: ``(n,)``: those that make edges; rows whose document is a label are to be left out, as a label does not
            make one thing of all that it applies to.

    Returns:
        Group numbers ``(queries,)`` and ``(documents,)``; equal numbers on either side mean the same thing.

    Example:
        >>> from datasets import Dataset
        >>> from hf_mmembed.data.pairs import read_pairs
        >>> from hf_mmembed.mining.ids import content_ids
        >>> rows = {"query": ["a disc", "round", "a box"], "positive": ["round", "circular", "square"]}
        >>> same_things(content_ids(read_pairs(Dataset.from_dict(rows))), np.arange(3))
        (array([0, 0, 1]), array([0, 0, 1]))
    """
    contents = 1 + max(ids.query_contents.max(initial=-1), ids.document_ids.max(initial=-1))
    edges = ids.query_contents[ids.query_ids[rows]], ids.document_ids[rows]
    graph = coo_array((np.ones(len(rows), bool), edges), shape=(contents, contents))
    number, groups = connected_components(graph, directed=False)
    sizes = np.bincount(groups, minlength=number)
    scattered = np.flatnonzero(sizes[groups] > LARGEST_GROUP)
    if len(scattered):
        logger.info(
            "%d contents hang together in groups of up to %d: too many to be the same thing",
            len(scattered),
            sizes.max(),
        )
        groups[scattered] = number + np.arange(len(scattered))
    _, numbered = np.unique(groups, return_inverse=True)
    return numbered[ids.query_contents], numbered[: ids.document_ids.max(initial=-1) + 1]
