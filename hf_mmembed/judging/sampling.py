"""Which candidates become hard negatives: not those the judge takes for answers, and not all of one kind.

In: the judge's scores ``(candidates,)`` of one query, in the order of the retrieval. Out: places among them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["sampled"]


def sampled(
    scores: NDArray[np.float64], positive: float, *, margin: float = 0.1, keep: int = 8, stride: int = 5
) -> NDArray[np.int64]:
    """Filters false negatives and takes a spread of the rest (UniME-V2, section 3.2).

    A candidate that the judge scores above the document's own score less `margin` may be an answer: it goes. Of those
    that are left every `stride`-th is taken, then those beside them, until there are enough. Where fewer are left, there
    are fewer; the paper repeats them, and takes random ones where none is left.

    Args:
        scores: ``(candidates,)``, NaN where there is none.
        positive: The score of the query's own document.
        margin: β, which the paper does not give. Defaults to 0.1.
        keep: How many, at most. Defaults to 8.
        stride: Defaults to 5.

    Example:
        >>> sampled(np.array([0.9, 0.2, 0.1, 0.3, np.nan]), 0.8, keep=3, stride=2)
        array([1, 3, 2])
    """
    left = np.flatnonzero(np.isfinite(scores) & (np.nan_to_num(scores, nan=np.inf) <= positive - margin))
    order = np.concatenate([left[start::stride] for start in range(stride)])
    return order[:keep]
