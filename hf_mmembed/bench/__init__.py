"""Experiments on the drawn world: what SaHa, a text teacher and thinking bring, each against what else there is.

In: `mmembed-tiny` or another embedder. Out: tables and plots, by ``hf-mmembed bench``; finished runs are kept.
"""

from __future__ import annotations

__all__: list[str] = []
