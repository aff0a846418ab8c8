"""Measures a model on the field's benchmarks, from local folders, with the protocol written down beside the score.

In: a model and the folder of a benchmark (MMEB V1 and V2, SugarCrepe, SugarCrepe++, image-text retrieval). Out:
`Results`, in the leaderboard's layout: scores by data set, and averages that say what they average.
"""

from __future__ import annotations

from .compare import compare
from .encoder import Encoder, SentenceEncoder, load_encoder
from .plot import plot
from .references import Reference, references
from .run import Results, evaluate
from .scoreboard import MACRO, OVERALL, Mean, aggregate, read_results, subsets_of
from .subsets import BENCHMARKS, MMEB_V1, MMEB_V2, SUGARCREPE, SUGARCREPE_PP, Subset

__all__ = [
    "BENCHMARKS",
    "MACRO",
    "MMEB_V1",
    "MMEB_V2",
    "OVERALL",
    "SUGARCREPE",
    "SUGARCREPE_PP",
    "Encoder",
    "Mean",
    "Reference",
    "Results",
    "SentenceEncoder",
    "Subset",
    "aggregate",
    "compare",
    "evaluate",
    "load_encoder",
    "plot",
    "read_results",
    "references",
    "subsets_of",
]
