"""The trainer of sentence-transformers, for pairs in clusters.

In: an embedder, pairs (`hf_mmembed.data.pairs`) and clusters of them. Out: the trained embedder, complete checkpoints on
the way, a log of loss, hardness and pairs per second, and a plot of it.

How batches are made (`clusters`) and what is done with them (`loss`) are independent choices.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from datasets import Dataset
from huggingface_hub import CommitInfo
from numpy.typing import ArrayLike
from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator
from sentence_transformers.util.distributed import all_gather
from torch import Tensor, nn
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from hf_mmembed.data.pairs import require_pairs
from hf_mmembed.files import saving, write_atomically
from hf_mmembed.mining import Clusters, ContentIds, content_ids
from hf_mmembed.only_run import only_run
from hf_mmembed.processes import world
from hf_mmembed.sentence_transformer import MMEmbedder

from .arguments import SaHaTrainingArguments
from .callbacks import BeginEpoch, Epochs, FrozenStaysFrozen, LogWhatIsSaved, Progress, Values
from .checkpoints import STAGING, load_best, load_trained, put_in_place, take_up_finished, to_resume
from .choices import make_loss
from .chunks import NonFiniteLossError
from .collator import PairCollator, numbered
from .gather import any_process
from .models import open_for_training, save_embedder, save_result
from .plot import plot_training
from .publishing import publish_result, require_public_base
from .random_state import random_state, set_random_state
from .record import record_of
from .run_file import begin_or_go_on
from .sampler import SaHaBatchSampler

__all__ = ["SaHaTrainer"]

logger = logging.getLogger(__name__)


class SaHaTrainer(SentenceTransformerTrainer):
    """Trains an embedder on pairs, in batches of whole clusters.

    Args:
        model: An embedder, as it is; or what `open_for_training` takes, opened as `args` say.
        args: Defaults to the defaults, in ``tmp_trainer``.
        train_dataset: Pairs, as `hf_mmembed.data.pairs.read_pairs` returns them.
        clusters: What mining returns, or row numbers ``(n_clusters, size)``, -1 where a cluster is shorter. None, which
            is the default, and no cluster at all give random batches.
        ids: `content_ids` of the pairs, where they are known already. Defaults to computing them.
        loss: A `ChunkedLoss` or a function that makes one of the model. Defaults to the one that `args` name.
        mine: For ``remine_every_epoch``: called with the current model on every process, it saves new `Clusters` in the
            directory that it is given.
        recipe: What was asked for, as it is kept beside the result. Defaults to the arguments that are not defaults.
        evaluator: Of sentence-transformers, called as ``eval_strategy`` says.
        callbacks: More callbacks.
        optimizers: An optimizer and a scheduler. Default to AdamW with linear decay, as `args` say.

    Attributes:
        depends_on: What else decides the numbers, by name, as JSON holds it: a run goes on only where it is the same.
        facts: All that the run depends on, from the beginning of `train`, on the main process.
        best_step: The step whose weights ``load_best_model_at_end`` loaded; None where it loaded none.

    Raises:
        ValueError: The clusters belong to other data, an argument is missing, or the result could not be published.

    Example:
        ::

            pairs = read_pairs("photos-with-captions")
            trainer = SaHaTrainer("qwen2-vl-2b", SaHaTrainingArguments("run", global_batch_size=256), pairs, clusters)
            trainer.train()
            trainer.save_result("qwen2-vl-2b-photos")
    """

    training_args_class = SaHaTrainingArguments

    def __init__(
        self,
        model: MMEmbedder | str | os.PathLike[str],
        args: SaHaTrainingArguments | None = None,
        train_dataset: Dataset | None = None,
        clusters: Clusters | ArrayLike | None = None,
        *,
        ids: ContentIds | None = None,
        loss: nn.Module | Callable[[MMEmbedder], nn.Module] | None = None,
        mine: Callable[[MMEmbedder, Path], object] | None = None,
        recipe: Mapping[str, Any] | None = None,
        evaluator: SentenceEvaluator | list[SentenceEvaluator] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        args = SaHaTrainingArguments("tmp_trainer") if args is None else args
        if train_dataset is None:
            raise ValueError("there is nothing to train on: give train_dataset, as read_pairs returns it.")
        require_pairs(train_dataset, "train_dataset")
        if args.remine_every_epoch and mine is None:
            raise ValueError("remine_every_epoch needs `mine`, which saves new clusters of a model in a directory.")
        self.ids = world().once(lambda: content_ids(train_dataset)) if ids is None else ids
        if len(self.ids.query_ids) != len(train_dataset):
            raise ValueError(f"ids are of {len(self.ids.query_ids)} rows, but there are {len(train_dataset)} pairs.")
        if isinstance(clusters, Clusters):
            clusters.require_made_of(self.ids)
        self.clusters = None if clusters is None else np.asarray(getattr(clusters, "rows", clusters))
        self.mined = clusters if isinstance(clusters, Clusters) else None
        self.mine, self.recipe = mine, recipe
        self.depends_on: dict[str, Any] = {}
        self.facts: dict[str, Any] | None = None
        self.best_step: int | None = None
        model = model if isinstance(model, MMEmbedder) else open_for_training(model, args)
        if args.push_to_hub:
            require_public_base(model, args)
        self._sampler: SaHaBatchSampler | None = None
        self._staging: Path | None = None
        self._values: dict[str, list[Tensor]] = {}
        self._rows_of_step: list[int] = []
        self._pairs_seen, self._since = 0, time.monotonic()
        super().__init__(
            model=model,
            args=args,
            train_dataset=numbered(train_dataset),
            loss=loss,
            evaluator=evaluator,
            data_collator=PairCollator(self.ids),
            callbacks=callbacks,
            optimizers=optimizers,
        )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "FSDP and DeepSpeed split the weights, which SaHaTrainer can neither cache gradients through nor save: "
                "launch with DistributedDataParallel (`accelerate launch --multi_gpu`); LoRA in bfloat16 makes room."
            )
        self.remove_callback(PrinterCallback if args.disable_tqdm else ProgressCallback)
        for callback in (
            BeginEpoch(self._begin_epoch),
            Epochs(),
            FrozenStaysFrozen(),
            LogWhatIsSaved(),
            Values() if args.disable_tqdm else Progress(),
        ):
            self.add_callback(callback)

    def summary(self) -> dict[str, Any]:
        """What is about to be done, in numbers."""
        steps = len(self.get_train_dataloader())
        assert self._sampler is not None
        trainable = [p.numel() for p in self.model.parameters() if p.requires_grad]
        return {
            "pairs": f"{len(self.train_dataset):,} in {len(self.ids.subsets)} subsets",
            "clusters": "none: random batches"
            if self.clusters is None or not len(self.clusters)
            else " x ".join(map(str, self.clusters.shape)),
            "pairs per step": self._sampler.most_pairs * self.args.gradient_accumulation_steps,
            "processes": self.args.world_size,
            "batches per epoch": steps,
            "steps": self.args.max_steps if self.args.max_steps > 0 else f"{self.args.num_train_epochs:g} epochs",
            "trainable weights": f"{sum(trainable):,} of {sum(p.numel() for p in self.model.parameters()):,}",
        }

    # Batches

    def get_default_loss(self, model: MMEmbedder) -> nn.Module:
        """The loss that the arguments name."""
        return make_loss(model, self.args, self.train_dataset)

    def get_batch_sampler(self, dataset: Dataset, batch_size: int, drop_last: bool, **kwargs: Any) -> SaHaBatchSampler:
        """Whole clusters, dealt out evenly; steps that are not full come too, unless `drop_last`."""
        self._sampler = SaHaBatchSampler(
            dataset,
            batch_size,
            drop_last,
            seed=self.args.seed,
            clusters=self.clusters,
            world_size=self.args.world_size,
            subset_ids=self.ids.subset_ids,
            subsets_per_batch=self.args.subsets_per_batch,
        )
        if self._sampler.left_out:
            logger.info(
                "%d clusters sit out each epoch, since they cannot be dealt out evenly to %d processes",
                self._sampler.left_out, self.args.world_size,
            )  # fmt: skip
        return self._sampler

    def collect_features(self, inputs: dict[str, Any]) -> tuple[Any, Any]:
        """What `PairCollator` made, in the order in which a `ChunkedLoss` takes it."""
        return inputs["sides"], inputs["facts"]

    def _begin_epoch(self, epoch: int, within: bool) -> None:
        """Called before the first batch of an epoch, or `within` it, before what is left of it after resuming."""
        assert self._sampler is not None
        self._sampler.set_epoch(epoch)
        if self.args.remine_every_epoch and epoch > 0 and self.mine is not None:
            directory = Path(self.args.output_dir, "clusters", f"epoch-{epoch}")
            if not (within and directory.is_dir()):
                logger.info("mining anew for epoch %d", epoch + 1)
                self.mine(self.model, directory)
                world().wait()
            self._sampler.set_clusters(Clusters.load(directory).rows)

    # Steps

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One forward and backward pass; again with smaller chunks where memory runs out.

        Raises:
            NonFiniteLossError: Also written to ``non-finite-rows.json`` in the output directory.
            RuntimeError: Memory runs out with a single input in a chunk.
        """
        rows = inputs["facts"].rows.tolist()
        gradients = {p: p.grad.clone() for p in model.parameters() if p.grad is not None}  # while they accumulate
        state = random_state()
        try:
            while (loss := self._attempt(model, inputs, num_items_in_batch)) is None:
                self.loss.halve_chunks()
                for parameter in model.parameters():
                    kept = gradients.get(parameter)
                    parameter.grad = None if kept is None else kept.clone()
                set_random_state(state)
        except NonFiniteLossError as error:
            self._report_rows(error)
            raise
        self._rows_of_step = [*(self._rows_of_step if gradients else []), *rows]
        for name, value in self.loss.metrics.items():
            self._values.setdefault(name, []).append(value.detach())
        self._pairs_seen += len(rows) * self.args.world_size
        return loss

    def _attempt(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any) -> Tensor | None:
        """The loss of a step, or None if memory ran out on any process; they all come to the same conclusion."""
        loss: Tensor | None = None
        averages = getattr(model, "require_backward_grad_sync", False)
        try:
            with self.accelerator.no_sync(model):  # what fails while processes average cannot be tried again
                loss = super().training_step(model, inputs, num_items_in_batch)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
        # Out here, where the traceback no longer holds the tensors of the failed pass.
        if loss is None:
            gc.collect()
            clear_device_cache()
        if not self.loss.gathered or any_process(loss is None, self.args.device):
            return None
        if averages:
            self.loss.average_gradients()
        return loss

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = super()._clip_grad_norm(model)
        # With float16 a gradient may overflow: the scaler then skips the step.
        if not self.args.fp16 and not bool(torch.isfinite(torch.as_tensor(float(norm)))):
            error = NonFiniteLossError("the gradient", gather_object(self._rows_of_step))
            self._report_rows(error)
            raise error
        return norm

    def _report_rows(self, error: NonFiniteLossError) -> None:
        report = {"step": self.state.global_step + 1, "error": str(error), "rows": error.rows}
        directory = Path(self.args.output_dir)
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(directory / "non-finite-rows.json", f"{json.dumps(report, indent=2)}\n".encode())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in transformers, with the loss's metrics, pairs per second and seconds since the last time."""
        if "loss" in logs and self._values:
            names = sorted(self._values)
            # What a batch has nothing of, such as the hardness of a single pair, is NaN there and does not count.
            means = torch.stack([torch.stack(self._values[name]).float().nanmean() for name in names])
            if self.args.world_size > 1:
                means = all_gather(means[None]).nanmean(dim=0)
            now = time.monotonic()
            logs = {
                **logs,
                **{name: round(value, 4) for name, value in zip(names, means.tolist(), strict=True)},
                "pairs_per_second": round(self._pairs_seen / (now - self._since), 2),
                "seconds": round(now - self._since, 3),
            }
            self._values, self._pairs_seen, self._since = {}, 0, now
        super().log(logs, start_time)

    # Runs

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train, and draw ``training.png`` at the end.

        Args:
            resume_from_checkpoint: A checkpoint, or True for the last complete one of the output directory; where
                there is none, the run begins at the beginning. Defaults to None: begin anew.
            **kwargs: As in transformers.

        Raises:
            ValueError: The checkpoint is not complete or of a run with other data, base or settings, or the output
                directory holds another run; or the best checkpoint is wanted and gone.
        """
        self.best_step = None
        with only_run(self.args.output_dir):
            checkpoint = to_resume(self.args.output_dir, resume_from_checkpoint)
            begin_or_go_on(self, checkpoint)
            self._since = time.monotonic()
            done = take_up_finished(self, checkpoint)
            result = done or super().train(checkpoint, **kwargs)
            if self.is_world_process_zero():
                plot_training(self.state.log_history, Path(self.args.output_dir, "training.png"))
        return result

    def save_result(self, directory: str | os.PathLike[str]) -> Path:
        """Write the trained embedder as ``args.save_as`` says, with a record of the run; publish it if ``args.push_to_hub``.

        See `hf_mmembed.training.models.save_result` and `hf_mmembed.hub.push`.
        """
        directory = self._write_result(directory)
        if self.args.push_to_hub:
            publish_result(self, directory, "End of training")
        return directory

    def push_to_hub(self, commit_message: str = "End of training", **options: Any) -> CommitInfo:
        """Save the result in ``model`` of the output directory and publish that: no checkpoint, no pickle, no log.

        Args:
            commit_message: Of the commit.
            **options: Of `hf_mmembed.hub.push`, in place of the ``hub_*`` arguments.

        Returns:
            The commit.

        Raises:
            PublishError: Something must not be published; nothing was sent.
            PushError: The Hub refused or broke off; nothing was committed.
        """
        return publish_result(self, self._write_result(f"{self.args.output_dir}/model"), commit_message, **options)

    def _write_result(self, directory: str | os.PathLike[str]) -> Path:
        merged = self.args.save_as == "merged"
        world().once(lambda: save_result(self.model, directory, merged=merged, record=record_of(self)))
        return Path(directory)

    # Checkpoints

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        output_dir = Path(self._get_output_dir(trial))
        staging, name = output_dir / STAGING, f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._staging = staging
        try:
            with saving(output_dir / name):
                super()._save_checkpoint(model, trial)
        finally:
            self._staging = None
        self.accelerator.wait_for_everyone()
        put_in_place(self, staging / name, output_dir / name)
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: Mapping[str, Any] | None = None) -> None:
        if not self.args.should_save:  # transformers calls this on every process
            return
        directory = Path(output_dir or self.args.output_dir)
        directory.mkdir(parents=True, exist_ok=True)
        save_embedder(self.model, directory)
        (directory / "training_args.json").write_text(self.args.to_json_string() + "\n", encoding="utf-8")

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:
        load_trained(self.model, checkpoint_path)

    def _load_best_model(self) -> None:  # that of sentence-transformers goes on with the last weights where it fails
        load_best(self)

    def add_model_card_callback(self, default_args_dict: Mapping[str, Any]) -> None:
        """None: that callback reads the training data for examples to publish."""
