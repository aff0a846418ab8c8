"""What the arms of UniME need in the ablation, made once per seed and kept.

In: the embedder of the drawn world, its generative parent, pairs and a teacher. Out: the embedder after stage 1
(`first_stage`), and pairs with hard negatives that the model has judged itself (`judged_by_itself`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from hf_mmembed.distillation.teacher import open_teacher
from hf_mmembed.judging import Judge, judge_pairs
from hf_mmembed.judging.candidates import Pool, mined
from hf_mmembed.sentence_transformer import MMEmbedder
from hf_mmembed.tiny.distillation import DistillationPlan, train_once

__all__ = ["first_stage", "judged_by_itself"]

# A judge of three million weights is slow enough on a CPU: a few of the nearest candidates, all of them used.
CANDIDATES = 4


def first_stage(folder: Path, model: str, teacher: str, seed: int, **plan: Any) -> Path:
    """The embedder after stage 1.

    Args:
        folder: Keeps it.
        model: Where stage 1 starts.
        teacher: From whom it learns.
        seed: Of sentences, adapter and order.
        **plan: More of `DistillationPlan`, such as ``steps``.
    """
    made = folder / "stage-1" / "model"
    if not (made / "modules.json").is_file():
        made.parent.mkdir(parents=True, exist_ok=True)
        learned = open_teacher(teacher, device="cpu")
        train_once(DistillationPlan(model, teacher, **plan), seed, learned, made.parent / "teacher", made.parent)
    return made


def judged_by_itself(
    pairs: Dataset,
    generative: Path,
    embedder: MMEmbedder,
    folder: Path,
    *,
    model: Mapping[str, Any],
    rows: int,
    seed: int,
) -> tuple[Dataset, NDArray[np.int64]]:
    """Pairs with hard negatives, mined by the embedder and scored by the model that it was made of; and which they are.

    Args:
        pairs: What to train on.
        generative: The judge.
        embedder: The miner.
        folder: Keeps embeddings and scores.
        model: What decides the embeddings; see `hf_mmembed.mining.mine_pairs`.
        rows: So many of the pairs, chosen at random: no more than are trained on.
        seed: Chooses them.
    """
    chosen = np.sort(np.random.default_rng(seed).permutation(len(pairs))[:rows])
    pool = mined(pairs, embedder, folder / "embeddings", model=model, depth=CANDIDATES)
    places = pool.places[chosen]
    judge = Judge(generative, words=("yes", "no"), device="cpu")
    few = pairs.select(chosen.tolist())
    judged = judge_pairs(few, judge, Pool(pool.items, places), folder / "judged", keep=CANDIDATES, stride=1)
    return judged.pairs, chosen
