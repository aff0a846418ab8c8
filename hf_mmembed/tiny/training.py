"""Trains `mmembed-tiny` from nothing: first its eyes, then its language.

Out: a directory with a generative Qwen2-VL checkpoint and a log. Six stages, each moving on when the model has learned
what the next one needs, not when time has passed:

1. *vision*: the tower alone learns, with the language model's own head, to say what each cell of a picture shows;
   difficulty grows with its accuracy. Then the tower is frozen but for the merger.
2. *naming*: next-token loss on answers about single shapes.
3. *binding*: the same on pictures of several shapes: whose attribute is whose.
4. *mix*: everything the model shall be able to talk about, with a cosine decay of the learning rate.
5. *relations*: where each of two shapes is, in tables as in *binding*, with a fresh optimizer.
6. *review*: the mix, and how two shapes stand to each other, with a cosine decay once more.

Every batch is a function of (seed, stage, step), and the state is saved atomically, so a killed run goes on where it was,
on whatever device: what decides the result is the recipe, to the rounding of the device.
"""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen2VLForConditionalGeneration

from hf_mmembed.data.questions import TOPICS
from hf_mmembed.lock import only_writer
from hf_mmembed.model.product_mmembed import quicken_products
from hf_mmembed.tiny.architecture import build_image_processor, build_model, build_tokenizer
from hf_mmembed.tiny.batches import (
    ATTRIBUTE_WORDS,
    IGNORE,
    PictureBatch,
    TextBatch,
    picture_batch,
    text_batch,
)
from hf_mmembed.tiny.fast_forward import hidden_states, merge_patches, to_patches, vision_features, vision_tokens
from hf_mmembed.tiny.probe import probe

__all__ = ["Recipe", "train"]

logger = logging.getLogger(__name__)

Stage = Literal["vision", "naming", "binding", "mix", "relations", "review"]
STAGES: tuple[Stage, ...] = get_args(Stage)
_WARMED_UP: tuple[Stage, ...] = ("vision", "naming", "relations")  # begun with a fresh optimizer
_STEPS: dict[Stage, int] = {
    "vision": 2000,
    "naming": 200,
    "binding": 1500,
    "mix": 3000,
    "relations": 600,
    "review": 1200,
}
_BLOCK = 20  # steps between two looks at the vision accuracy
_AHEAD = 4  # batches made ahead of the step that needs them


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result. The model card says in what the shipped model's recipe differed.

    `steps` are upper limits; a stage of `gates` ends once its probe on the val split passes that many percent.
    """

    seed: int = 0
    steps: dict[Stage, int] = field(default_factory=_STEPS.copy)
    gates: dict[Stage, float] = field(default_factory=lambda: {"naming": 95.0, "binding": 88.0, "relations": 88.0})
    pictures: int = 64
    rows: int = 40
    images: int = 44
    learning_rate: float = 1e-3
    visual_loss: float = 0.3
    probe_every: int = 100
    save_every: int = 100


@dataclass
class _Progress:
    stage: int = 0
    step: int = 0
    difficulty: float = 0.0
    next_difficulty: float = 0.0
    seconds: float = 0.0


def train(
    out: Path,
    recipe: Recipe | None = None,
    *,
    threads: int | None = None,
    device: str | torch.device | None = None,
) -> Path:
    """Runs or resumes the recipe in `out` and writes the checkpoint to `out/model`; returns that path.

    Args:
        out: Gets the state, and in `log.jsonl` one line per twenty steps and one per probe; made if missing.
        recipe: Defaults to that of the shipped model.
        threads: Of the CPU. Defaults to the number of cores.
        device: Defaults to the best there is. A run may go on on another device than it was begun on.

    Raises:
        ValueError: `out` holds the state of another recipe, or another process trains there.
        FloatingPointError: The loss is not finite.
    """
    recipe = recipe or Recipe()
    out.mkdir(parents=True, exist_ok=True)
    with only_writer(out):
        _check_recipe(out, recipe)
        torch.set_num_threads(threads or os.cpu_count() or 1)
        torch.set_flush_denormal(True)
        tokenizer = _tokenizer(out, recipe.seed)
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        model = build_model(tokenizer, seed=recipe.seed).to(device)
        quicken_products(model)
        run = _Run(out, recipe, tokenizer, model)
        run.resume()
        run.finish()
        run.model.generation_config.max_new_tokens = 32
        for part in (run.model.to(torch.bfloat16), tokenizer, build_image_processor()):
            part.save_pretrained(out / "model")
    return out / "model"


class _Run:
    """The state of one training: model, optimizer, progress, log."""

    def __init__(
        self, out: Path, recipe: Recipe, tokenizer: PreTrainedTokenizerFast, model: Qwen2VLForConditionalGeneration
    ) -> None:
        self.out, self.recipe, self.tokenizer, self.model = out, recipe, tokenizer, model
        self.words = [words.to(model.device) for words in _attribute_tokens(tokenizer)]
        self.progress = _Progress()
        self.optimizer = self._optimizer()

    @property
    def stage(self) -> Stage:
        return STAGES[self.progress.stage]

    def finish(self) -> None:
        """All that is left of all stages."""
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context, initializer=_end_with_parent) as pool:
            while self.progress.stage < len(STAGES):
                self._run_stage(pool)
                if self.stage == "vision":
                    _match_embedding_scale(self.model)
                self.progress = _Progress(stage=self.progress.stage + 1, seconds=self.progress.seconds)
                if self.progress.stage < len(STAGES):
                    if self.stage in _WARMED_UP:
                        self.optimizer = self._optimizer()
                    self.save()

    def _run_stage(self, pool: ProcessPoolExecutor) -> None:
        progress, recipe = self.progress, self.recipe
        steps = recipe.steps[self.stage]
        learn = self._learn_pictures if self.stage == "vision" else self._learn_text
        started, before = time.monotonic(), progress.seconds
        totals: dict[str, float] = {}
        with tqdm(total=steps, initial=progress.step, desc=self.stage, disable=None) as bar:
            for batch in self._batches(pool, steps):
                self._set_learning_rate()
                for name, value in learn(batch).items():
                    totals[name] = totals.get(name, 0.0) + value / _BLOCK
                progress.step += 1
                progress.seconds = before + time.monotonic() - started
                bar.update()
                if progress.step % _BLOCK == 0:
                    if not math.isfinite(sum(totals.values())):
                        raise FloatingPointError(f"loss is not finite at {self.stage} step {progress.step}: {totals}")
                    if self.stage == "vision":
                        self._adapt_difficulty(totals["shape"])
                        totals["difficulty"] = progress.difficulty
                    self._log(totals)
                    bar.set_postfix({name: f"{value:.3g}" for name, value in totals.items()})
                    totals = {}
                if progress.step % recipe.save_every == 0:
                    self.save()
                if self.stage != "vision" and progress.step % recipe.probe_every == 0 and self._passes():
                    break

    def _batches(self, pool: ProcessPoolExecutor, steps: int) -> Iterator[Any]:
        """The batches of the steps that are left, each made a few steps ahead by the worker process."""
        pending: list[Future[Any]] = []
        submitted = self.progress.step
        while submitted < steps or pending:
            while submitted < steps and len(pending) < _AHEAD:
                pending.append(pool.submit(self._make(submitted)))
                submitted += 1
            yield pending.pop(0).result()

    def _make(self, step: int) -> Callable[[], PictureBatch | TextBatch]:
        recipe = self.recipe
        if self.stage == "vision":
            # The difficulty of a block is settled one block before, so making ahead never changes a batch.
            block = self.progress.step // _BLOCK
            difficulty = self.progress.difficulty if step // _BLOCK == block else self.progress.next_difficulty
            return partial(picture_batch, recipe.seed, step, recipe.pictures, difficulty)
        return partial(text_batch, self.tokenizer, recipe.seed, step, self.stage, recipe.rows, recipe.images)

    def _adapt_difficulty(self, accuracy: float) -> None:
        progress = self.progress
        progress.difficulty = progress.next_difficulty
        if accuracy > 0.7:
            progress.next_difficulty = min(1.0, progress.next_difficulty + 0.05)

    def _learn_pictures(self, batch: PictureBatch) -> dict[str, float]:
        tokens = vision_tokens(self.model.model.visual, to_patches(self._tensor(batch.pixels)))
        loss, accuracy = self._visual_loss(tokens, batch.labels)
        self._step(loss)
        return {"loss": loss.item(), **accuracy}

    def _learn_text(self, batch: TextBatch) -> dict[str, float]:
        visual = self.model.model.visual
        with torch.no_grad():
            features = vision_features(visual, to_patches(self._tensor(batch.pictures.pixels)))
        tokens = merge_patches(visual, features)
        states = hidden_states(self.model, batch, tokens)
        logits = self.model.lm_head(states.view(-1, states.shape[-1])[self._tensor(batch.supervised)])
        logs = logits.log_softmax(-1)[self._tensor(batch.target_of), self._tensor(batch.targets)]
        text_loss = -(logs * self._tensor(batch.weights)).sum() / len(batch.supervised)
        visual_loss, accuracy = self._visual_loss(tokens, batch.pictures.labels)
        self._step(text_loss + self.recipe.visual_loss * visual_loss)
        return {"loss": text_loss.item(), "visual": visual_loss.item(), "shape": accuracy["shape"]}

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.model.device)

    def _visual_loss(self, tokens: Tensor, labels: NDArray[np.int64]) -> tuple[Tensor, dict[str, float]]:
        """What the model's own final norm and head read off the visual tokens, one choice per group of words."""
        normed, head = self.model.model.language_model.norm(tokens), self.model.lm_head.weight
        losses, accuracy = [], {}
        for group, words in enumerate(self.words):
            of_group = labels[..., group].reshape(-1)
            known = np.flatnonzero(of_group != IGNORE)
            if not len(known):  # no pair of shapes in a batch of easy pictures, so no relation to name
                continue
            logits, wanted = normed[self._tensor(known)] @ (head[words].sum(1)).T, self._tensor(of_group[known])
            losses.append(F.cross_entropy(logits, wanted))
            accuracy[_GROUPS[group]] = (logits.argmax(-1) == wanted).float().mean().item()
        return torch.stack(losses).sum(), accuracy

    def _step(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._trained(), 1.0)
        self.optimizer.step()

    def _set_learning_rate(self) -> None:
        step, steps = self.progress.step, self.recipe.steps[self.stage]
        scale = min(1.0, (step + 1) / 60) if self.stage in _WARMED_UP else 1.0
        if self.stage == "vision":
            scale *= min(1.0, max(0.05, (steps - step) / (0.3 * steps)))
        elif self.stage in ("mix", "review"):
            scale *= 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * scale

    def _passes(self) -> bool:
        """Logs a probe on the val split; True when it opens the gate of this stage."""
        kinds: tuple[Literal["one", "two"], ...] = ("one",) if self.stage == "naming" else ("one", "two")
        topics = tuple(topic for topic in TOPICS if topic not in ("background", "related_color"))
        found = [a for kind in kinds for a in probe(self.model, self.tokenizer, kind, topics=topics, questions=96)]
        self._log({f"{a.kind}/{a.topic}": round(a.right, 1) for a in found})
        decisive = ("side",) if self.stage == "relations" else ("color", "shape")
        right = min(a.right for a in found if a.kind == kinds[-1] and a.topic in decisive)
        return right >= self.recipe.gates.get(self.stage, math.inf)

    def _trained(self) -> list[torch.nn.Parameter]:
        """The tower and the embeddings in the vision stage; afterwards everything but the tower below its merger."""
        language, visual = self.model.model.language_model, self.model.model.visual
        if self.stage == "vision":
            return [*visual.parameters(), language.embed_tokens.weight, language.norm.weight]
        return [*language.parameters(), *visual.merger.parameters()]

    def _optimizer(self) -> torch.optim.AdamW:
        return torch.optim.AdamW(
            self._trained(), lr=self.recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.02, fused=True
        )

    def _log(self, values: dict[str, float]) -> None:
        progress = self.progress
        line: dict[str, Any] = {"stage": self.stage, "step": progress.step, "seconds": round(progress.seconds)}
        line |= {name: round(value, 4) for name, value in values.items()}
        logger.info("%s", line)
        with (self.out / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")

    def save(self) -> None:
        """One file, written aside and renamed: weights, optimizer moments and progress always belong together."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.named_parameters()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
        aside = self.out / "state.safetensors.tmp"
        metadata = {"progress": json.dumps(asdict(self.progress))}
        save_file({name: t.detach().contiguous() for name, t in tensors.items()}, aside, metadata)
        os.replace(aside, self.out / "state.safetensors")

    def resume(self) -> None:
        """Takes up the saved state, if there is one."""
        path = self.out / "state.safetensors"
        if not path.exists():
            return
        with safe_open(path, "pt") as saved:
            self.progress = _Progress(**json.loads(saved.metadata()["progress"]))
            self.optimizer = self._optimizer()
            state: dict[int, dict[str, Tensor]] = {}
            for name in saved.keys():  # noqa: SIM118 (safe_open is no mapping)
                kind, _, rest = name.partition(".")
                if kind == "model":
                    self.model.get_parameter(rest).data.copy_(saved.get_tensor(name))
                else:
                    index, _, moment = rest.partition(".")
                    state.setdefault(int(index), {})[moment] = saved.get_tensor(name)
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        logger.info("resumed at %s step %d", self.stage, self.progress.step)


_GROUPS = ("shape", "color", "size", "fill", "relation", "background", "count")


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _check_recipe(out: Path, recipe: Recipe) -> None:
    path = out / "recipe.json"
    wanted = json.loads(json.dumps(asdict(recipe)))
    if path.exists():
        found = json.loads(path.read_text())
        if found != wanted:
            different = sorted(name for name in wanted if found.get(name) != wanted[name])
            raise ValueError(
                f"{out} holds a run with other values of {different}: resume with the same or choose another"
            )
    else:
        aside = path.with_suffix(".tmp")
        aside.write_text(json.dumps(wanted, indent=2) + "\n")
        os.replace(aside, path)


def _tokenizer(out: Path, seed: int) -> PreTrainedTokenizerFast:
    path = out / "tokenizer"
    if not (path / "tokenizer_config.json").exists():
        build_tokenizer(seed=seed).save_pretrained(path)
    return PreTrainedTokenizerFast.from_pretrained(path)


@cache
def _attribute_tokens(tokenizer: PreTrainedTokenizerFast) -> list[Tensor]:
    """Per group (words, forms): the token of a word at the start of an answer and inside a sentence."""
    groups = []
    for words in ATTRIBUTE_WORDS:
        rows = []
        for word in words:
            forms = [tokenizer(form, add_special_tokens=False)["input_ids"] for form in (word, f" {word}")]
            single = [form[0] for form in forms if len(form) == 1]
            if not single:
                raise ValueError(f"the tokenizer cuts the attribute word {word!r} to pieces: {forms}")
            rows.append([single[0], single[-1]])
        groups.append(torch.tensor(rows))
    return groups


@torch.no_grad()
def _match_embedding_scale(model: Qwen2VLForConditionalGeneration) -> None:
    """Scales the merger's output to twice the size of a word embedding; the norm in front of the head hides its scale."""
    pixels = torch.from_numpy(picture_batch(0, 0, 64, 1.0).pixels).to(model.device)
    size = vision_tokens(model.model.visual, to_patches(pixels)).square().mean().sqrt()
    words = model.model.language_model.embed_tokens.weight.square().mean().sqrt()
    last = model.model.visual.merger.mlp[2]
    last.weight.mul_(2 * words / size)
    last.bias.mul_(2 * words / size)
