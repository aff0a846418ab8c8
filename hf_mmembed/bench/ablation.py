"""Does the way batches are made matter? Every mining strategy, trained alike on the drawn world, measured alike.

In: an embedder of the drawn world and a `Plan`. Out: for every strategy and seed a JSON file with scores on the test
split, false negatives per batch (known from the scene graphs), and seconds. Runs that are done are not done again, so a
killed ablation goes on where it was. `ablation_report` makes the table and the plot.

All runs of a seed have the same pairs, number of steps, pairs per step, initial adapter and order of random draws; what
differs is which pairs meet in a batch, and in one run the prompt.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PrinterCallback, set_seed

from hf_mmembed.bench.runs import ALL_LINEAR, check_plan
from hf_mmembed.bench.told import ToldInfoNCELoss
from hf_mmembed.bench.unime import SceneJudge, first_stage, judged
from hf_mmembed.files import write_atomically
from hf_mmembed.identity import identify, local_checkpoint
from hf_mmembed.judging import Judge
from hf_mmembed.mining import Clusters, ContentIds, Mined, Strategy, content_ids, mine_pairs
from hf_mmembed.model.presets import PRESETS
from hf_mmembed.sentence_transformer import MMEmbedder
from hf_mmembed.tiny.checkpoint import generative_path
from hf_mmembed.tiny.evaluate import zero_shot
from hf_mmembed.tiny.lean_training import make_lean_loss, remember_pictures
from hf_mmembed.tiny.pairs import DrawnPairs, draw_pairs
from hf_mmembed.tiny.testset import CHANGES, TestSet, build_testset
from hf_mmembed.training.arguments import Loss, SaHaTrainingArguments
from hf_mmembed.training.chunks import ChunkedLoss
from hf_mmembed.training.models import open_for_training
from hf_mmembed.training.sampler import SaHaBatchSampler
from hf_mmembed.training.trainer import SaHaTrainer

__all__ = ["ARMS", "Arm", "Plan", "false_negatives", "mean_score", "run_ablation"]

logger = logging.getLogger(__name__)

TEST_SEED = 0
TEACHER = "sentence-transformers/all-MiniLM-L6-v2"


@dataclass(frozen=True)
class Arm:
    """One line of the table.

    Attributes:
        name: What it is called.
        strategy: Of `hf_mmembed.mining`; None for no training at all.
        prompt: Of `hf_mmembed.model.PRESETS`.
        remine: Mine anew with the current model at the start of every epoch.
        loss: Of `SaHaTrainingArguments`; ``"soft-labels"`` trains on pairs that the shipped model has judged.
        distilled: Start after UniME's first stage.
        told: Ask the scene graphs which negatives of a batch are false (`ToldInfoNCELoss`), or for the soft labels
            (`SceneJudge`).
    """

    name: str
    strategy: Strategy | None
    prompt: str = "saha"
    remine: bool = False
    loss: Loss = "infonce"
    distilled: bool = False
    told: bool = False


ARMS = {
    arm.name: arm
    for arm in (
        Arm("zero-shot", None),
        Arm("random", "random"),
        Arm("random-no-prompt", "random", prompt="plain"),
        Arm("same-subset", "same-subset"),
        Arm("top-k", "top-k"),
        Arm("top-k-told", "top-k", told=True),
        Arm("margin", "margin"),
        Arm("mutual", "mutual"),
        Arm("saha-paper", "saha-paper"),
        Arm("saha", "saha"),
        Arm("saha-mined-anew", "saha", remine=True),
        Arm("unime-stage1", None, distilled=True),
        Arm("unime-stage2", "random", loss="in-batch-hard-negatives"),
        Arm("unime-both", "random", loss="in-batch-hard-negatives", distilled=True),
        Arm("saha+unime-loss", "saha", loss="in-batch-hard-negatives"),
        Arm("unime-v2", "random", loss="soft-labels"),
        Arm("unime-v2-told", "random", loss="soft-labels", told=True),
    )
}


@dataclass(frozen=True)
class Plan:
    """What all runs share; a directory holds the runs of one plan.

    Attributes:
        model: Directory or Hub id of the embedder.
        steps: Optimizer steps.
        batch: Pairs per step.
        k: Members of a cluster beside its anchor.
        families: Groups of near-duplicate scenes that the pairs are drawn from, some 33 pairs each.
        pictures: Of every scene; more of them make more false negatives, see `draw_pairs`.
        candidates: Pictures and captions to retrieve from in the test.
        learning_rate: Peak of the schedule: linear, after a tenth of the steps of warm-up.
        temperature: Of InfoNCE.
        lora_rank: Of the adapter on all linear layers of the language model, scaled by 2.
    """

    model: str
    steps: int = 300
    batch: int = 16
    k: int = 7
    families: int = 300
    pictures: int = 2
    candidates: int = 500
    learning_rate: float = 1e-3
    temperature: float = 0.03
    lora_rank: int = 8


def run_ablation(
    out: Path, plan: Plan, *, arms: Sequence[Arm], seeds: Sequence[int], teacher: str = TEACHER
) -> list[dict[str, Any]]:
    """Runs what is not done yet, seed by seed, and returns the results of all runs asked for.

    Args:
        out: Directory of this plan: ``plan.json``, ``runs/`` and the embeddings that mining made.
        plan: What all runs share.
        arms: What differs.
        seeds: Of pairs, adapter and order; each arm is run with each.
        teacher: Of the first stage, for the arms that have one. Defaults to all-MiniLM-L6-v2.

    Raises:
        ValueError: `out` holds the runs of another plan.
    """
    (out / "runs").mkdir(parents=True, exist_ok=True)
    check_plan(out, plan)
    done = {(arm.name, seed): out / "runs" / f"{arm.name}-{seed}.json" for seed in seeds for arm in arms}
    test: TestSet | None = None
    memory: dict[bytes, Tensor] = {}
    for seed in seeds:
        missing = [arm for arm in arms if not done[arm.name, seed].is_file()]
        if not missing:
            continue
        test = test or build_testset(TEST_SEED, candidates=plan.candidates)
        bench = _Bench(out / f"mining-{seed}", plan, seed, test, memory, teacher)
        for arm in missing:
            result = bench.run(arm)
            write_atomically(done[arm.name, seed], (json.dumps(result, indent=1) + "\n").encode())
            logger.info("%s, seed %d: mean %.1f", arm.name, seed, result["mean"])
    return [json.loads(path.read_text(encoding="utf-8")) for path in done.values()]


def mean_score(scores: Mapping[str, float]) -> float:
    """Mean of text→image R@1, image→text R@1, composed R@1 and the mean of the five kinds of compositional pairs."""
    compositional = np.mean([scores[change.replace("_", " ")] for change in CHANGES])
    return float(np.mean([scores["text→image R@1"], scores["image→text R@1"], scores["composed R@1"], compositional]))


def false_negatives(drawn: DrawnPairs, ids: ContentIds, batch: NDArray[np.integer]) -> int:
    """Documents that a batch counts as negatives of a query they truly answer, over all its queries.

    Pairs that the data itself names are no negatives: training masks them.
    """
    width = ids.document_ids.max() + 1
    asked = ids.query_ids[batch][:, None] * width + ids.document_ids[batch]
    named = np.isin(asked, ids.query_ids * width + ids.document_ids)
    return int((drawn.truth(batch, batch) & ~named).sum())


class _Bench:
    """What the runs of one seed have in common: pairs, who is who, the test."""

    def __init__(
        self, folder: Path, plan: Plan, seed: int, test: TestSet, memory: dict[bytes, Tensor], teacher: str = TEACHER
    ) -> None:
        self.folder, self.plan, self.seed, self.test, self.memory = folder, plan, seed, test, memory
        self.teacher = teacher
        self.drawn = draw_pairs(seed, families=plan.families, pictures=plan.pictures)
        self.ids = content_ids(self.drawn.pairs)

    def run(self, arm: Arm) -> dict[str, Any]:
        """Mines, trains and measures; see `ablation_report` for what the result holds."""
        with tempfile.TemporaryDirectory() as scratch:
            args = self._arguments(Path(scratch), arm)
            set_seed(self.seed)
            start = (
                first_stage(self.folder, self.plan.model, self.teacher, self.seed)
                if arm.distilled
                else self.plan.model
            )
            embedder = open_for_training(start, args)
            directory, revision = local_checkpoint(self.plan.model)
            embedder.processor.prompt = PRESETS[arm.prompt]
            self.identity = identify(self.plan.model, directory, revision, embedder).as_dict()
            remember_pictures(embedder, self.memory)
            result: dict[str, Any] = {"arm": arm.name, "seed": self.seed, "steps": 0, "seconds": {}}
            if arm.strategy is not None:
                result |= self._train(arm, arm.strategy, args, embedder)
        started = time.perf_counter()
        result["scores"] = zero_shot(embedder.eval(), self.test)
        result["seconds"]["evaluation"] = time.perf_counter() - started
        return result | {"mean": mean_score(result["scores"])}

    def _train(
        self, arm: Arm, strategy: Strategy, args: SaHaTrainingArguments, embedder: MMEmbedder
    ) -> dict[str, Any]:
        pairs, rows, ids = self.drawn.pairs, np.arange(len(self.drawn.pairs)), self.ids
        if arm.loss == "soft-labels":
            judge = SceneJudge(self.drawn) if arm.told else Judge(generative_path(), words=("yes", "no"), device="cpu")
            pairs, rows = judged(
                pairs, judge, embedder, self.folder, model=self.identity, rows=self.plan.steps * self.plan.batch,
                seed=self.seed,
            )  # fmt: skip
            ids = content_ids(pairs)
        clusters: list[NDArray[np.int64]] = []
        seconds = {"embedding": 0.0, "mining": 0.0}

        def mine(model: MMEmbedder, directory: Path) -> None:
            mined = self._mine(arm, strategy, model, seconds, epoch=len(clusters))
            mined.save(directory)
            clusters.append(mined.rows)

        if strategy == "random":  # needs no model's opinion
            clusters.append(np.arange(len(pairs))[:, None])
        else:
            mine(embedder, Path(args.output_dir, "clusters", "epoch-0"))
        if arm.told and arm.loss == "infonce":
            loss: ChunkedLoss = ToldInfoNCELoss(
                embedder, self.drawn, temperature=args.temperature, mini_batch_size=args.mini_batch_size
            )
        else:
            loss = make_lean_loss(embedder, args, pairs)
        trainer = SaHaTrainer(
            embedder, args, pairs, clusters[0], ids=ids, loss=loss, mine=mine if arm.remine else None
        )
        trainer.remove_callback(PrinterCallback)
        mined = sum(seconds.values())
        started = time.perf_counter()
        trainer.train()
        seconds["training"] = time.perf_counter() - started - (sum(seconds.values()) - mined)
        batches = list(self._batches(args, clusters))
        let_through = [0 if arm.told else false_negatives(self.drawn, self.ids, rows[batch]) for batch in batches]
        in_batch = arm.loss != "soft-labels"  # otherwise other rows' documents take no part
        return {
            "steps": trainer.state.global_step,
            "pairs": float(np.mean([len(batch) for batch in batches])),
            "false_negatives": float(np.mean(let_through)) if in_batch else None,
            "loss": [[log["step"], log["loss"]] for log in trainer.state.log_history if "loss" in log],
            "hardness": [[log["step"], log["hardness"]] for log in trainer.state.log_history if "hardness" in log],
            "seconds": seconds,
        }

    def _mine(
        self, arm: Arm, strategy: Strategy, model: MMEmbedder, seconds: dict[str, float], *, epoch: int
    ) -> Clusters:
        """Clusters by the model as it is; embeddings of the untrained one are shared by all strategies."""
        who = {**self.identity, "trained": [arm.name, epoch] if epoch else None}

        def mined(by: Strategy) -> Mined:
            return mine_pairs(
                self.drawn.pairs, model, self.folder, model=who, strategy=by, k=self.plan.k, seed=self.seed
            )

        training = model.training
        started = time.perf_counter()
        mined("random")  # embeds what is not embedded yet
        embedded = time.perf_counter()
        clusters = mined(strategy).clusters
        seconds["embedding"] += embedded - started
        seconds["mining"] += time.perf_counter() - embedded
        model.train(training)
        return clusters

    def _batches(self, args: SaHaTrainingArguments, clusters: list[NDArray[np.int64]]) -> Iterator[NDArray[np.int64]]:
        """The batches of the run, in its order."""
        sampler = SaHaBatchSampler(
            self.drawn.pairs, args.per_device_train_batch_size, seed=args.seed, clusters=clusters[0]
        )
        left = args.max_steps
        for epoch in range(args.max_steps):
            if 0 < epoch < len(clusters):
                sampler.set_clusters(clusters[epoch])
            sampler.set_epoch(epoch)
            for batch in sampler:
                if left == 0:
                    return
                yield np.array(batch)
                left -= 1

    def _arguments(self, folder: Path, arm: Arm) -> SaHaTrainingArguments:
        plan = self.plan
        return SaHaTrainingArguments(
            str(folder),
            max_steps=plan.steps,
            global_batch_size=plan.batch,
            mini_batch_size=plan.batch,
            learning_rate=plan.learning_rate,
            warmup_steps=0.1,
            temperature=plan.temperature,
            loss=arm.loss,
            lora_rank=plan.lora_rank,
            lora_alpha=2 * plan.lora_rank,
            lora_dropout=0.0,
            use_dora=False,
            lora_target_modules=ALL_LINEAR,
            remine_every_epoch=arm.remine,
            seed=self.seed,
            logging_steps=max(1, plan.steps // 30),
            save_strategy="no",
            report_to="none",
            use_cpu=True,
        )
