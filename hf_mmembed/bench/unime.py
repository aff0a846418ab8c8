"""What the arms of UniME need in the ablation, made once per seed and kept.

In: the embedder of the drawn world, pairs, a teacher and a judge. Out: the embedder after stage 1 (`first_stage`), and
pairs with hard negatives and the scores of the judge (`judged`): the shipped model itself, or the scene graphs
(`SceneJudge`), which show what the method is worth where the judge knows the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from hf_mmembed.bench.distillation import DistillationPlan, train_once
from hf_mmembed.data.pairs import document_of, query_of
from hf_mmembed.distillation.teacher import open_teacher
from hf_mmembed.judging import Judge, judge_pairs
from hf_mmembed.judging.candidates import Pool, mined
from hf_mmembed.sentence_transformer import MMEmbedder
from hf_mmembed.tiny.pairs import DrawnPairs
from hf_mmembed.tiny.truth import Meaning, disagreements

__all__ = ["SceneJudge", "first_stage", "judged"]

# A judge of three million weights is slow enough on a CPU: few candidates, and as in the paper every fifth of the nearest,
# or all would be near misses, and nothing would keep the rest of the world apart.
CANDIDATES = 4
STRIDE = 5


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


class SceneJudge:
    """A judge that knows what every query and document means: a score of 1, halved by every fact on which they disagree.

    Args:
        drawn: The pairs that it is asked about.
    """

    identity = "scene graphs"

    def __init__(self, drawn: DrawnPairs) -> None:
        self._meanings: dict[tuple[str | None, bytes | None], Meaning] = {}
        for row, query, document in zip(drawn.pairs, drawn.queries, drawn.documents, strict=True):
            self._meanings |= {_content(query_of(row)): query, _content(document_of(row)): document}

    def __call__(self, queries: Sequence[dict[str, Any]], candidates: Sequence[dict[str, Any]]) -> NDArray[np.float64]:
        """Scores, ``(pairs,)``."""
        asked, said = (np.stack([self._meanings[_content(item)] for item in items]) for items in (queries, candidates))
        return np.exp2(-disagreements(asked, said).astype(np.float64))


def _content(item: Mapping[str, Any]) -> tuple[str | None, bytes | None]:
    return item.get("text"), item.get("image")


def judged(
    pairs: Dataset,
    judge: Judge | SceneJudge,
    embedder: MMEmbedder,
    folder: Path,
    *,
    model: Mapping[str, Any],
    rows: int,
    seed: int,
) -> tuple[Dataset, NDArray[np.int64]]:
    """Pairs with hard negatives, mined by the embedder and scored by the judge; and which of all pairs they are.

    Args:
        pairs: What to train on.
        judge: Who scores.
        embedder: The miner.
        folder: Keeps embeddings and scores.
        model: What decides the embeddings; see `hf_mmembed.mining.mine_pairs`.
        rows: So many of the pairs, chosen at random: no more than are trained on.
        seed: Chooses them.
    """
    chosen = np.sort(np.random.default_rng(seed).permutation(len(pairs))[:rows])
    depth = CANDIDATES * STRIDE
    pool = mined(pairs, embedder, folder / "embeddings", model=model, depth=depth, device=embedder.device)
    few = pairs.select(chosen.tolist())
    asked = Pool(pool.items, pool.places[chosen, ::STRIDE])
    result = judge_pairs(few, judge, asked, folder / "judged", keep=CANDIDATES, stride=1)
    return result.pairs, chosen
