"""Teach a small reasoner to think like a large one: supervised fine-tuning on the teacher's traces.

In: a generative checkpoint, pairs, and a store with the teacher's traces of them. Out: a generative checkpoint. The
loss is on the tokens of the trace alone; the vision tower is frozen (Think-Then-Embed, arXiv 2510.05014, TTE_s). The
loop, checkpoints, precision and distribution are those of transformers' `Trainer`.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from torch.nn.functional import pad
from transformers import AutoConfig, PrinterCallback, ProgressCallback, Trainer, TrainingArguments
from transformers.modeling_utils import get_state_dict_dtype, load_state_dict

from hf_mmembed.data.pairs import document_of, query_of
from hf_mmembed.identity import local_checkpoint, settings_digest, weights_digest
from hf_mmembed.inputs import as_messages
from hf_mmembed.processes import world
from hf_mmembed.staging import replaced
from hf_mmembed.training.arguments import on_one_device
from hf_mmembed.training.callbacks import Epochs, FrozenStaysFrozen, Progress, Values
from hf_mmembed.training.checkpoints import require_no_run, take_up_finished
from hf_mmembed.training.run_file import keep_to, settings_of
from hf_mmembed.visible import visible

from .filling import thoughts_of_pairs
from .parallel import keep_gradients_once, require_whole_weights
from .reasoner import open_generative, row_of
from .templates import FAMILIES, Templates, load_templates
from .traces import Origin, Side, TraceStore, content_digest

__all__ = ["IGNORED", "NOT_PUSHED", "Lesson", "LessonCollator", "fine_tune", "lessons"]

logger = logging.getLogger(__name__)

IGNORED = -100
"""Label of a token that is no part of a trace."""
# Arguments that decide the numbers of transformers' `Trainer`, and have no say in ours.
_OF_TRANSFORMERS = ("data_seed", "label_smoothing_factor", "train_sampling_strategy")

NOT_PUSHED = (
    "push_to_hub is set, but transformers would upload all that lies in the directory of the run, pickles and logs too, "
    "and not the result, which is written after training: leave it out, and upload the result afterwards: "
    "hf upload ORG/NAME {}"
)
"""Refusal of ``push_to_hub``, to be filled with where the result goes."""


@dataclass(frozen=True)
class Lesson:
    """A trace to learn, and where its input is: a row and a side of the pairs; `key` tells the input by its content."""

    row: int
    side: Side
    family: str
    trace: str
    key: str = ""


def lessons(
    pairs: Dataset,
    store: TraceStore,
    *,
    origin: Origin | None = None,
    sides: Sequence[Side] = ("query", "document"),
    families: str | Mapping[str, str] | None = None,
    allow_gold: bool = False,
) -> list[Lesson]:
    """The complete traces of pairs; others, and those of inputs that occurred before, are left out and counted.

    A warning tells which queries are left out because their traces were made as of another family.

    Args:
        pairs: What the teacher thought about.
        store: Its traces.
        origin: The teacher. Defaults to the only one in the store.
        sides: As when the traces were made.
        families: The same.
        allow_gold: Take the traces of queries that were written in sight of the answer, and no others. The student is
            not shown it. Defaults to False.

    Raises:
        ValueError: The store holds several teachers and `origin` is not given, or no complete trace of these pairs.
    """
    origin = origin or store.only_origin()
    if origin is None:
        raise ValueError(f"{store.path} holds no traces; make them with `hf-mmembed think`")
    keys: dict[str, Lesson] = {}
    queries: dict[str, tuple[str, str | None]] = {}
    thoughts = thoughts_of_pairs(pairs, sides=sides, families=families, show_answers=allow_gold, negatives=False)
    for number, thought in enumerate(thoughts):
        content = content_digest(as_messages(thought.input))
        key = origin.key(content, thought.side, thought.family, answer=thought.answer)
        keys.setdefault(key, Lesson(number % len(pairs), thought.side, thought.family, ""))
        if thought.side == "query":
            queries[key] = content, thought.answer
    found = store.get(list(keys))
    statuses = Counter(found[key].status if key in found else "missing" for key in keys)
    missing = [(keys[key], *query) for key, query in queries.items() if key not in found]
    elsewhere = _of_other_families(pairs, store, origin, missing)
    chosen = [
        Lesson(lesson.row, lesson.side, lesson.family, found[key].text, key)
        for key, lesson in keys.items()
        if key in found and found[key].status == "complete"
    ]
    if not chosen:
        gold = not allow_gold and any(record.trace.gold_visible for record in store.records(origin))
        raise ValueError(
            f"{store.path} holds no complete trace of these pairs by {origin.reasoner} ({dict(statuses)}); make them "
            "with `hf-mmembed think`, with the same families"
            + (f"; {elsewhere}" if elsewhere else "")
            + (", or say allow_gold=True to take those that were written in sight of the answer" if gold else "")
        )
    if elsewhere:
        logger.warning("queries are left out: %s", elsewhere)
    logger.info("%d traces to learn from; of all inputs: %s", len(chosen), dict(statuses))
    return chosen


def _of_other_families(
    pairs: Dataset, store: TraceStore, origin: Origin, missing: Sequence[tuple[Lesson, str, str | None]]
) -> str:
    """Says which queries without a trace have one as of another family; ``""`` if none has.

    Each of `missing` is a lesson with the `content_digest` of its query and the answer that was to be shown.
    """
    others = {
        origin.key(content, "query", family, answer=answer): (lesson, family)
        for lesson, content, answer in missing
        for family in FAMILIES
    }
    subsets, found = pairs["subset"], [others[key] for key in store.get(list(others))]
    counts = Counter((subsets[lesson.row], family, lesson.family) for lesson, family in found)
    if not counts:
        return ""
    told = [
        f"{count} of {subset} are there as {there!r}, not {here!r}" for (subset, there, here), count in counts.items()
    ]
    subset, family, _ = next(iter(counts))
    return (
        f"{', '.join(told)}; give families as when they were made (--set families.{subset}={family}), or let them be "
        "thought about again, into another file"
    )


class LessonCollator:
    """Makes a batch of lessons: inputs, traces, and labels on the tokens of the traces.

    Args:
        pairs: Where the inputs are.
        processor: Of the student. A trace that is too long loses its start, an input nothing.
        templates: The prompts.
        known: Names of the tensors that the student takes.
    """

    def __init__(self, pairs: Dataset, processor: Any, templates: Templates, known: Sequence[str]) -> None:
        self.pairs = pairs.with_format(None)
        self.processor = processor
        self.templates = templates
        self.known = known

    def __call__(self, some: Sequence[Lesson]) -> dict[str, torch.Tensor]:
        """Tensors of a batch; ``labels`` is ``(batch, seq_len)``, `IGNORED` but for the traces."""
        # One family at a time, since each has its prompt.
        ordered = sorted(some, key=lambda lesson: lesson.family)
        groups = [self._batch(family, list(own)) for family, own in groupby(ordered, key=lambda lesson: lesson.family)]
        names = dict.fromkeys(name for group in groups for name in group)
        fill = {"input_ids": self.processor.tokenizer.pad_token_id, "labels": IGNORED}
        return {name: _stack([group[name] for group in groups if name in group], fill.get(name, 0)) for name in names}

    def _batch(self, family: str, some: list[Lesson]) -> dict[str, torch.Tensor]:
        rows = []
        for lesson in some:
            row = self.pairs[lesson.row]
            item = query_of(row) if lesson.side == "query" else document_of(row)
            rows.append(row_of(item, lesson.row, self.templates))
        self.processor.prompt = self.templates.prompt(family)
        batch = self.processor(
            text=[row.text for row in rows],
            images=[row.images or None for row in rows],
            instruction=[row.instruction for row in rows],
            trace=[lesson.trace for lesson in some],
            return_tensors="pt",
        )
        labels = torch.full_like(batch["input_ids"], IGNORED)
        for place, lesson in enumerate(some):
            real = batch["attention_mask"][place].nonzero().squeeze(1)
            wanted = self.processor.tokenizer(
                self.processor.turn_of_trace(lesson.trace), add_special_tokens=False, return_tensors="pt"
            )["input_ids"][0]
            # The end of the row is the trace, or what is left of it; a token that straddles its start is not counted.
            length = min(len(real), len(wanted))
            same = (batch["input_ids"][place, real[-length:]] == wanted[-length:]).flip(0)
            taught = real[len(real) - int(same.long().cumprod(0).sum()) :]
            labels[place, taught] = batch["input_ids"][place, taught]
        return {**{name: value for name, value in batch.items() if name in self.known}, "labels": labels}


def _stack(tensors: list[torch.Tensor], fill: float) -> torch.Tensor:
    """Tensors one below the other, each filled up at the end of every other axis to the largest."""
    shape = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    padded = []
    for tensor in tensors:
        missing = [size - own for size, own in zip(shape, tensor.shape[1:], strict=True)]
        padded.append(pad(tensor, [amount for one in reversed(missing) for amount in (0, one)], value=fill))
    return torch.cat(padded)


class _SftTrainer(Trainer):
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load the student as it was saved.

        Raises:
            ValueError: The checkpoint lacks weights.
        """
        # A saved student has the names of the Hub's weights, which `Trainer` would pass over as unknown.
        saved, info = type(self.model).from_pretrained(
            resume_from_checkpoint, dtype=self.model.dtype, use_safetensors=True, output_loading_info=True
        )
        if missing := sorted(info["missing_keys"]):
            raise ValueError(
                f"{resume_from_checkpoint} lacks {len(missing)} weights, the first is {missing[0]!r}; remove it, and "
                "resume from the checkpoint before"
            )
        self.model.load_state_dict(saved.state_dict())


def _last_complete(output_dir: str | None) -> str | None:
    """The checkpoint of the highest step; one without the file that the `Trainer` writes last is passed over."""
    complete = [path.parent for path in Path(output_dir or ".").glob("checkpoint-*/trainer_state.json")]
    return max(map(str, complete), key=lambda path: int(path.rpartition("-")[2]), default=None)


def _facts_of(trainer: _SftTrainer, processor: Any) -> dict[str, Any]:
    """What the numbers of a run depend on; the trainer has not begun."""
    args, lessons_in_order = trainer.args, hashlib.sha256()
    for lesson in trainer.train_dataset:
        lessons_in_order.update(json.dumps([lesson.key, lesson.trace]).encode())
    facts = {
        "student.weights": weights_digest(trainer.model),
        "student.settings": settings_digest(trainer.model),
        "student.image_size": str(processor.image_processor.size),
        "lessons": lessons_in_order.hexdigest(),
        "lessons_per_step": args.per_device_train_batch_size * args.world_size,
        **settings_of(args),
        **{f"training.{name}": getattr(args, name) for name in _OF_TRANSFORMERS},
    }
    return json.loads(json.dumps(facts, default=str))


def _with_traces(some: Sequence[Lesson], store: TraceStore) -> list[Lesson]:
    """The lessons with their traces, which each process reads: they are too many to be sent around.

    Raises:
        ValueError: The store of some process is not that of the first; on all processes.
    """
    found = store.get([lesson.key for lesson in some])
    failure = None
    if missing := len(some) - len(found):
        failure = (
            f"{store.path} lacks {missing} of {len(some)} traces that the first process found; give all processes the "
            "same file"
        )
    if (failure := world().agree(failure)) is not None:
        raise ValueError(failure)
    return [replace(lesson, trace=found[lesson.key].text) for lesson in some]


def _stored_dtype(directory: Path) -> torch.dtype:
    """What ``dtype="auto"`` of transformers takes: what the config says, or else the type of the first weight of floats."""
    stored: torch.dtype | None = AutoConfig.from_pretrained(directory).dtype
    if stored is None:
        first = visible(directory, "*.safetensors")[0]
        stored = get_state_dict_dtype(load_state_dict(str(first), map_location="meta"))
    return stored


def fine_tune(
    model: str | os.PathLike[str],
    pairs: Dataset,
    store: TraceStore,
    args: TrainingArguments,
    out: str | os.PathLike[str],
    *,
    origin: Origin | None = None,
    sides: Sequence[Side] = ("query", "document"),
    families: str | Mapping[str, str] | None = None,
    templates: Templates | None = None,
    allow_gold: bool = False,
    resume: bool = False,
) -> Path:
    """Fine-tune a reasoner.

    Args:
        model: Directory or Hub id of the student.
        pairs: What the teacher thought about.
        store: Its traces.
        args: Of transformers' `Trainer`. Published values: learning rate 2e-5, batch 128, one epoch.
        out: Where the result goes; what is there is replaced.
        origin: The teacher. Defaults to the only one in the store.
        sides: As when the traces were made.
        families: The same.
        templates: The same. Defaults to those of the package of the version that the teacher had.
        allow_gold: Take traces that were written in sight of the answer; see `lessons`.
        resume: Go on from the last complete checkpoint in ``args.output_dir``, if there is one.

    Returns:
        `out`: a generative checkpoint of the type of the student, for `LocalReasoner` and `make_unified`.

    Raises:
        OSError: The student cannot be read, or the result not be written.
        ValueError: There is nothing to learn, the teacher had other templates, ``args.output_dir`` holds checkpoints and
            `resume` is not given, the run to go on with began with something else, the checkpoint lacks weights, the
            launch splits the weights (FSDP, ZeRO-3), or ``args.push_to_hub`` is set.
    """
    if args.push_to_hub:
        raise ValueError(NOT_PUSHED.format(os.fspath(out)))
    if not resume:
        require_no_run(args.output_dir or ".")

    def chosen_here() -> list[Lesson]:  # which reads all pictures
        found = lessons(pairs, store, origin=origin, sides=sides, families=families, allow_gold=allow_gold)
        return [replace(lesson, trace="") for lesson in found]

    chosen = _with_traces(world().once(chosen_here), store)
    teacher = origin or store.origins()[0]
    templates = templates or load_templates(teacher.template_version)
    if templates.version != teacher.template_version:
        raise ValueError(
            f"these are templates {templates.version!r}, but {teacher.reasoner} had {teacher.template_version!r}; give "
            "the same ones"
        )
    directory, _ = local_checkpoint(os.fspath(model))
    # Trained in float32, whose small steps another type rounds away, and written in the type that it came in.
    student, processor = open_generative(directory, templates, dtype="float32")
    stored = _stored_dtype(directory)
    processor.tokenizer.padding_side = "right"
    student.requires_grad_(False)
    student.get_decoder().requires_grad_(True)
    if (head := student.get_output_embeddings()) is not None:
        head.requires_grad_(True)
    student.get_input_embeddings().requires_grad_(True)
    args.remove_unused_columns = False
    on_one_device(args)
    known = list(inspect.signature(student.forward).parameters)
    trainer = _SftTrainer(
        student,
        args,
        data_collator=LessonCollator(pairs, processor, templates, known),
        train_dataset=chosen,
        processing_class=processor.backbone_processor,
    )
    require_whole_weights(trainer)
    keep_gradients_once(trainer)
    trainer.remove_callback(PrinterCallback if args.disable_tqdm else ProgressCallback)
    trainer.add_callback(Epochs())
    trainer.add_callback(Values() if args.disable_tqdm else Progress())
    trainer.add_callback(FrozenStaysFrozen())
    checkpoint = _last_complete(args.output_dir) if resume else None
    keep_to(partial(_facts_of, trainer, processor), args.output_dir or ".", checkpoint)
    if take_up_finished(trainer, checkpoint) is None:
        trainer.train(resume_from_checkpoint=checkpoint)
    out = Path(out)

    def write() -> None:
        with replaced(out) as written:
            student.to(stored).save_pretrained(written)
            processor.backbone_processor.save_pretrained(written)

    world().once(write)
    return out
