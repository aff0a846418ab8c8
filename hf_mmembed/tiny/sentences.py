"""Sentences about the drawn world for a text teacher: captions that mean the same, in different words.

In: a seed. Out: a dataset of pairs of texts.
"""

from __future__ import annotations

from random import Random

from datasets import Dataset

from hf_mmembed.data.captions import caption
from hf_mmembed.data.scenes import random_scene
from hf_mmembed.distillation.sentences import as_sentence_pairs

__all__ = ["draw_sentences"]


def draw_sentences(seed: int, *, pairs: int = 1000) -> Dataset:
    """Pairs of captions of one scene each, in different words; the same arguments give the same pairs."""
    rng = Random(f"sentences/mine/{seed}")
    scenes = [random_scene(rng, "mine") for _ in range(pairs)]
    return as_sentence_pairs([caption(scene, rng) for scene in scenes for _ in range(2)])
