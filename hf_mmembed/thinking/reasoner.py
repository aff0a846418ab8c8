"""Models that think about an input before it is embedded.

In: whatever `MMEmbedder.encode` takes, and the family of the task. Out: one `Trace` per input, in order. Backends: any
multimodal LLM on this machine (`LocalReasoner`), a server (`hf_mmembed.thinking.endpoint`), and traces that were made
before (`PrecomputedReasoner`).
"""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from sentence_transformers.util import get_device_name
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    GenerationConfig,
    StoppingCriteriaList,
    StopStringCriteria,
)

from hf_mmembed.batching import Lookahead
from hf_mmembed.identity import local_checkpoint
from hf_mmembed.inputs import as_messages, check_unicode
from hf_mmembed.memory import TokenBudget, run_batches
from hf_mmembed.model.base_processor import wrap_processor
from hf_mmembed.model.checkpoint_mmembed import require_safetensors
from hf_mmembed.model.picture_size import limit_pictures
from hf_mmembed.model.product_mmembed import quicken_products
from hf_mmembed.model.registration import MMEmbedProcessor, UnifiedConfig
from hf_mmembed.model.rows_mmembed import Row, row_of_conversation
from hf_mmembed.preparation import Conversation, estimate_tokens
from hf_mmembed.visible import visible

from .templates import Templates, load_templates
from .traces import Origin, Trace, TraceStore, content_digest

__all__ = ["LocalReasoner", "PrecomputedReasoner", "Reasoner", "Settings", "fingerprint", "open_generative", "row_of"]


@dataclass(frozen=True)
class Settings:
    """How a trace is generated; part of its key.

    Attributes:
        max_new_tokens: The hard limit: a trace that has not ended by then is cut. Defaults to 512.
        temperature: 0, the default, takes the most probable token each time.
        top_p: Sample from the most probable tokens that together have this probability. Defaults to 1.
        seed: Of the sampling.
        stop: Words that end a trace beside the model's own end-of-turn token, and are not part of it.

    Raises:
        ValueError: A value is out of range.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ("<emb>",)

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; a trace needs at least one token")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"temperature is {self.temperature} and top_p {self.top_p}; use >= 0 and (0, 1]")

    def as_json(self) -> str:
        """For `Origin`. What has no effect without sampling is left out."""
        fields = asdict(self)
        if self.temperature == 0:
            fields = {"max_new_tokens": self.max_new_tokens, "temperature": 0, "stop": self.stop}
        return json.dumps(fields, sort_keys=True)


class Reasoner(Protocol):
    """Anything that writes traces.

    Attributes:
        origin: Who it is, for the keys of the traces.
        templates: What it asks.
        batch_size: How many inputs it takes at once with profit.
    """

    origin: Origin
    templates: Templates
    batch_size: int

    def think(self, inputs: Sequence[Any], task_family: str, *, answers: Sequence[str] | None = None) -> list[Trace]:
        """One trace per input, in order.

        Args:
            inputs: As for `MMEmbedder.encode`.
            task_family: One of `FAMILIES`.
            answers: The right answers, to be shown to the reasoner. Such traces are marked `Trace.gold_visible`.

        Raises:
            ValueError: An input cannot be used; the message says which.
        """
        ...


class LocalReasoner:
    """A multimodal LLM of transformers.

    Inputs go through the same checks as those of the embedder: pictures are opened under the same limits, control
    tokens in texts are words, and a text that is too long is cut, so that the trace has room.

    Args:
        model: Directory or Hub id of a generative checkpoint, or of a unified one.
        revision: Branch, tag or commit on the Hub.
        settings: Defaults to greedy decoding of up to 512 tokens.
        templates: Defaults to the latest.
        batch_size: Inputs per call of ``generate``, at most: fewer where they would have more than 16,384 tokens (an
            estimate), or where memory runs out. Defaults to 16.
        longest_edge: To what pictures are scaled down; see `limit_pictures`. Part of the origin of the traces. Defaults to
            what the checkpoint says.
        dtype: Defaults to that of the checkpoint; float32 on a CPU.
        device: Defaults to the best there is.

    Attributes:
        max_seq_length: Tokens that an input may have; a longer one loses the end of its text.

    Raises:
        OSError: The checkpoint cannot be read or has no safetensors weights.
        ValueError: It is no multimodal LLM with a chat template, `settings` leave no room for the input, or the model
            does not scale pictures by `longest_edge`.

    Example:
        ::

            reasoner = LocalReasoner("Qwen/Qwen2.5-VL-7B-Instruct")
            [trace] = reasoner.think([{"image": "shelf.jpg", "text": "Which book is the thickest?"}], "qa")
            trace.final
    """

    def __init__(
        self,
        model: str | Path,
        *,
        revision: str | None = None,
        settings: Settings | None = None,
        templates: Templates | None = None,
        batch_size: int = 16,
        longest_edge: int | None = None,
        dtype: torch.dtype | str | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self.templates = templates or load_templates()
        self.batch_size = batch_size
        self._turn = threading.Lock()
        self._budget = TokenBudget()
        device = torch.device(device or get_device_name())
        directory, commit = local_checkpoint(model, revision)
        self.model, self.processor = open_generative(
            directory, self.templates, dtype=dtype or ("float32" if device.type == "cpu" else "auto")
        )
        self.model.to(device).eval()
        written_by = self.settings.as_json()
        if longest_edge is not None:
            limit_pictures(self.processor, longest_edge, model)
            written_by = json.dumps({**json.loads(written_by), "longest_edge": longest_edge}, sort_keys=True)
        self.processor.tokenizer.padding_side = "left"
        self.max_seq_length = self.processor.tokenizer.model_max_length - self.settings.max_new_tokens
        if self.max_seq_length <= 0:
            raise ValueError(
                f"max_new_tokens is {self.settings.max_new_tokens}, but {model} reads only "
                f"{self.processor.tokenizer.model_max_length} tokens in all; lower it"
            )
        name = directory.name if Path(model).is_dir() else str(model)
        self.origin = Origin(name, commit or fingerprint(directory), self.templates.version, written_by)
        stored = self.model.generation_config
        ends = stored.eos_token_id
        self._ends = {self.processor.tokenizer.eos_token_id, *([ends] if isinstance(ends, int) else ends or [])}
        sampling = (
            {"do_sample": True, "temperature": self.settings.temperature, "top_p": self.settings.top_p, "top_k": 0}
            if self.settings.temperature > 0
            else {"do_sample": False}
        )
        # In place of the checkpoint's own, whose temperature and penalties would not be in the trace's key: `generate`
        # takes from there what it is not given.
        self.model.generation_config = GenerationConfig(
            max_new_tokens=self.settings.max_new_tokens,
            eos_token_id=sorted(self._ends),
            pad_token_id=self.processor.tokenizer.pad_token_id,
            **sampling,
        )
        # Once: `generate` would go through the whole vocabulary anew at each call.
        words = list(self.settings.stop)
        self._stopping = StoppingCriteriaList([StopStringCriteria(self.processor.tokenizer, words)] if words else [])

    def think(self, inputs: Sequence[Any], task_family: str, *, answers: Sequence[str] | None = None) -> list[Trace]:
        """See `Reasoner.think`. Threads take turns: the processor holds the prompt of one family at a time."""
        prompt = self.templates.prompt(task_family)
        rows = [row_of(item, index, self.templates, answers) for index, item in enumerate(inputs)]
        conversations = [
            # The answer is shown behind the input, so its tokens count too.
            Conversation(index, as_messages(item, index=index) + as_messages(answers[index] if answers else ""))
            for index, item in enumerate(inputs)
        ]
        traces: dict[int, Trace] = {}
        with self._turn:
            self.processor.prompt = prompt
            written = run_batches(
                estimate_tokens(self, conversations, {}),
                partial(self._batch, rows),
                partial(self._generate, gold_visible=answers is not None),
                batch_size=self.batch_size,
                budget=self._budget,
                # One more batch is up to `max_new_tokens` more steps, dearer than all padding that the budget admits.
                batch_cost=sys.maxsize,
                lookahead=Lookahead(threads=0, items=0),  # the tokenizer takes traces apart meanwhile
            )
            for batch, made in written:
                traces.update(zip(batch, made, strict=True))
        return [traces[index] for index in range(len(rows))]

    @torch.inference_mode()
    def _generate(self, batch: Any, *, gold_visible: bool) -> list[Trace]:
        batch = batch.to(self.model.device)
        known = inspect.signature(self.model.forward).parameters
        sampling = self.settings.temperature > 0
        with torch.random.fork_rng(enabled=sampling):
            if sampling:
                torch.manual_seed(self.settings.seed)
            output = self.model.generate(
                **{name: value for name, value in batch.items() if name in known},
                stopping_criteria=self._stopping,
            )
        return [self._trace(ids, gold_visible) for ids in output[:, batch["input_ids"].shape[1] :].tolist()]

    def _batch(self, rows: list[Row], places: list[int]) -> Any:
        try:
            return self._tensors([rows[place] for place in places])
        except ValueError:
            # The processor counts inputs from the start of the batch; find the culprit to name it properly.
            for place in places:
                try:
                    self._tensors([rows[place]])
                except ValueError as error:
                    raise ValueError(f"inputs[{place}]: {error}") from error
            raise

    def _tensors(self, rows: list[Row]) -> Any:
        return self.processor(
            text=[row.text for row in rows],
            images=[row.images or None for row in rows],
            instruction=[row.instruction for row in rows],
            max_length=self.max_seq_length,
            return_tensors="pt",
        )

    def _trace(self, ids: list[int], gold_visible: bool) -> Trace:
        end = next((place for place, token in enumerate(ids) if token in self._ends), None)
        raw = self.processor.tokenizer.decode(ids[:end], skip_special_tokens=False)
        stops = [raw.index(word) for word in self.settings.stop if word in raw]
        if stops:
            # What follows the stop word is padding, or its last token's tail.
            words = self.processor.tokenizer(raw[: min(stops)], add_special_tokens=False)["input_ids"]
            return Trace(raw[: min(stops)], "stop", len(words), gold_visible)
        if end is None:
            return Trace(raw, "length", len(ids), gold_visible)
        return Trace(raw, "stop", end + 1, gold_visible)


class PrecomputedReasoner:
    """Traces that were made before; an input that has none is an error.

    Args:
        traces: A store, or traces by `content_digest`.
        origin: Whose traces to take from the store. Defaults to the only ones there are.
        side: Which side's. Defaults to ``"query"``.

    Raises:
        ValueError: The store holds traces of several origins and `origin` is not given.
    """

    batch_size = 1024

    def __init__(
        self, traces: TraceStore | Mapping[str, Trace], *, origin: Origin | None = None, side: str = "query"
    ) -> None:
        self.templates = load_templates()
        if isinstance(traces, TraceStore):
            found = traces.by_content(origin)
            self._traces: Mapping[str, Trace] = {
                content: trace for (of, content), trace in found.items() if of == side
            }
            origin = origin or next(iter(traces.origins()), None)
        else:
            self._traces = traces
        self.origin = origin or Origin("precomputed", "", self.templates.version, "{}")

    def think(self, inputs: Sequence[Any], task_family: str, *, answers: Sequence[str] | None = None) -> list[Trace]:
        """See `Reasoner.think`; `task_family` and `answers` were decided when the traces were made."""
        digests = [content_digest(as_messages(item, index=index)) for index, item in enumerate(inputs)]
        missing = [index for index, digest in enumerate(digests) if digest not in self._traces]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(digests)} inputs have no trace, the first is inputs[{missing[0]}]; make them "
                "with `hf-mmembed think`, from the same texts and picture files"
            )
        return [self._traces[digest] for digest in digests]


def open_generative(
    directory: Path, templates: Templates, *, dtype: torch.dtype | str = "auto", **kwargs: Any
) -> tuple[Any, Any]:
    """A generative checkpoint with all its weights, and its processor under the prompt of ``content``.

    Args:
        directory: A checkpoint; of a unified one, the reasoner inside.
        templates: Give the prompt.
        dtype: Of the weights.
        **kwargs: For ``from_pretrained`` of the model.

    Raises:
        OSError: There are no safetensors weights.
        ValueError: It is no multimodal LLM with a chat template, or weights are missing.
    """
    require_safetensors(directory)
    config = AutoConfig.from_pretrained(directory)
    prompt = templates.prompt("content")
    unified = isinstance(config, UnifiedConfig)
    if unified:
        processor = MMEmbedProcessor.from_pretrained(directory)
        processor.prompt = prompt
    else:
        processor = wrap_processor(directory, config, prompt)
    text_config = (config.backbone_config if unified else config).get_text_config()
    positions = getattr(text_config, "max_position_embeddings", None)
    if positions is not None:
        processor.tokenizer.model_max_length = min(processor.tokenizer.model_max_length, positions)
    model, info = (AutoModel if unified else AutoModelForImageTextToText).from_pretrained(
        directory, dtype=dtype, use_safetensors=True, output_loading_info=True, **kwargs
    )
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{directory} lacks {len(missing)} weights, the first is {missing[0]!r}; download it again")
    quicken_products(model)
    if unified:
        model = model.reasoner
        model.generation_config = GenerationConfig(eos_token_id=[config.end_token_id, *config.other_end_token_ids])
    return model, processor


def row_of(item: Any, index: int, templates: Templates, answers: Sequence[str] | None = None) -> Row:
    """An input as a row of the processor, with its answer if that is to be shown."""
    row = row_of_conversation(as_messages(item, index=index), index)
    if answers is None:
        return row
    if not answers[index]:
        raise ValueError(f"inputs[{index}] has no answer in words that could be shown")
    check_unicode(answers[index], f"the answer of inputs[{index}]")
    return replace(row, text=(row.text or "") + templates.answer.format(answer=answers[index]))


def fingerprint(directory: Path) -> str:
    """Digest of the files of a generative checkpoint that decide what it writes (about a second per gigabyte)."""
    names = ("*.safetensors", "*config.json", "tokenizer.json", "chat_template.*")
    digest = hashlib.sha256()
    for path in sorted({path for name in names for path in visible(directory, name)}):
        with path.open("rb") as file:
            digest.update(path.name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:32]
