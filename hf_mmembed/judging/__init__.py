"""UniME-V2 (https://arxiv.org/abs/2510.13515): a multimodal LLM judges which hard negatives are answers after all.

In: pairs, and an embedder that mines candidates for them, or hard negatives that they bring along. Out: the same pairs
with hard negatives, ``pos_score`` and ``neg_score``: what the loss ``soft-labels`` trains on.
"""

from __future__ import annotations

from .judge import Judge
from .pairs import Judged, judge_pairs
from .sampling import sampled

__all__ = ["Judge", "Judged", "judge_pairs", "sampled"]
