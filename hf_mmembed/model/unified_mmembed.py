"""One model that thinks and embeds: a frozen reasoner, and a head on the hidden states of the pass that wrote the trace.

In: what a processor returns for a prompt, or for a prompt with its trace. Out: the trace's tokens and unit embeddings
`(batch, hidden)`, in one call. Nothing is computed twice: a hook on one decoder layer collects its input while
`generate` runs with its key-value cache. The third variant of Think-Then-Embed (arXiv 2510.05014). This file travels
with the checkpoint, so it imports nothing but torch, transformers and its neighbours.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    GenerationConfig,
    LogitsProcessor,
    PretrainedConfig,
    PreTrainedModel,
    StoppingCriteria,
)
from transformers.utils import ModelOutput

from .checkpoint_mmembed import EmbeddingModel
from .configuration_mmembed import MMEmbedConfig
from .heads_mmembed import HEADS, States, default_layer, join_masks, make_head

__all__ = ["UnifiedConfig", "UnifiedModel", "UnifiedOutput"]


class UnifiedConfig(MMEmbedConfig):
    """Configuration of [`UnifiedModel`].

    Args:
        backbone_config (`PretrainedConfig` or `dict`, *optional*, defaults to a default Qwen2-VL config): Of the
            generative multimodal LLM that thinks.
        head (`str`, *optional*, defaults to `"self_init"`): `"last_token"`, `"mlp"`, `"attention_pool"`,
            `"latent_pool"`, `"qformer"` or `"self_init"`.
        head_options (`dict`, *optional*): Such as `{"layers": 8}` for `self_init`; see `make_head`.
        end_token_id (`int`, *optional*): The token that ends a trace and is pooled.
        other_end_token_ids (`list[int]`, *optional*): Tokens that the reasoner may end with instead; read as the former.
        **kwargs: Of [`MMEmbedConfig`], but for `pooling` and `readout`: the head is both.

    Raises:
        ValueError: If there is no such head, or a field of [`MMEmbedConfig`] has a wrong value.
    """

    model_type = "mmembed_unified"

    def __init__(
        self,
        backbone_config: PretrainedConfig | dict[str, Any] | None = None,
        head: str = "self_init",
        head_options: dict[str, Any] | None = None,
        end_token_id: int | None = None,
        other_end_token_ids: list[int] | None = None,
        **kwargs: Any,
    ) -> None:
        self.head = head
        self.head_options = head_options or {}
        self.end_token_id = end_token_id
        self.other_end_token_ids = other_end_token_ids or []
        super().__init__(backbone_config, **kwargs)

    def check_choices(self) -> None:
        """As in [`MMEmbedConfig`], and the head."""
        super().check_choices()
        if self.head not in HEADS:
            raise ValueError(f"head is {self.head!r}; use one of {', '.join(map(repr, HEADS))}.")
        if (self.pooling, self.readout) != ("last", "final"):
            raise ValueError("a unified model is read out by its head; leave `pooling` and `readout` out.")
        if shared := getattr(self.backbone_config.get_text_config(), "num_kv_shared_layers", 0):
            raise ValueError(
                f"the last {shared} layers of the {self.backbone_config.model_type!r} reasoner share keys and values, and "
                "`generate` computes only the last token there: a head lacks the states of the others. Use a reasoner "
                "without shared layers."
            )


@dataclass
class UnifiedOutput(ModelOutput):
    """What [`UnifiedModel`] returns.

    Args:
        embeddings (`torch.FloatTensor` of shape `(batch, hidden)`): Unit L2 norm, float32.
        pooler_output (`torch.FloatTensor` of shape `(batch, hidden)`): The same tensor.
        trace_ids (`torch.LongTensor` of shape `(batch, new_tokens)`): What was written, the end token included and
            repeated up to the longest; only from `think_and_embed`.
        cut (`torch.BoolTensor` of shape `(batch,)`): Whether the limit ended a trace; only from `think_and_embed`.
    """

    embeddings: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    trace_ids: torch.Tensor | None = None
    cut: torch.Tensor | None = None


class UnifiedModel(EmbeddingModel):
    """A reasoner that embeds what it has just thought about.

    Args:
        config ([`UnifiedConfig`]): Holds the reasoner's config and the kind of head.

    Example:

    ```python
    model = AutoModel.from_pretrained(path, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)
    output = model.think_and_embed(**processor(text=["two discs"], return_tensors="pt"), max_new_tokens=256)
    output.embeddings, processor.tokenizer.batch_decode(output.trace_ids, skip_special_tokens=True)
    ```
    """

    config_class = UnifiedConfig

    def __init__(self, config: UnifiedConfig) -> None:
        config.check_choices()
        super().__init__(config)
        self.reasoner = AutoModelForImageTextToText.from_config(config.backbone_config)
        self.head = self._new_head()
        self._take_reasoner(self.reasoner)
        self.post_init()

    @classmethod
    def from_reasoner(cls, reasoner: PreTrainedModel, **config_fields: Any) -> UnifiedModel:
        """Put a new head on a reasoner in memory, whose tensors are shared.

        Args:
            reasoner (`PreTrainedModel`): What `AutoModelForImageTextToText.from_pretrained` returns.
            **config_fields: Fields of [`UnifiedConfig`].

        Raises:
            ValueError: If the reasoner is quantised, or a field has a wrong value.
        """
        config = UnifiedConfig(reasoner.config, dtype=reasoner.dtype, **config_fields)
        with torch.device("meta"):
            model = cls(config)
        model._take_reasoner(reasoner)
        model.head = model._new_head().to(device=reasoner.device, dtype=reasoner.dtype).requires_grad_(True)
        return model.eval()

    def _take_reasoner(self, reasoner: PreTrainedModel) -> None:
        self.reasoner = reasoner.requires_grad_(False)
        # `generate` fills in what is None from here, and an end token of its own would stop it one step too soon.
        self.reasoner.generation_config = GenerationConfig()

    def _new_head(self) -> nn.Module:
        return make_head(
            self.config.head, self._decoder, self.layer, self.config.hidden_size, self.config.head_options
        )

    @property
    def _decoder(self) -> Any:
        return self.reasoner.get_decoder()

    @property
    def layer(self) -> int:
        """Which decoder layer's input the head reads; the number of layers stands for the states after the norm."""
        return default_layer(self.config.head, len(self._decoder.layers), self.config.head_options)

    def get_input_embeddings(self) -> nn.Module:
        """The reasoner's token embedding."""
        return self.reasoner.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the reasoner's token embedding."""
        self.reasoner.set_input_embeddings(value)

    def train(self, mode: bool = True) -> UnifiedModel:
        """Only the head is ever trained."""
        super().train(mode)
        self.reasoner.eval()
        return self

    def forward(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> UnifiedOutput:
        """Embed prompts that their traces follow already, as `MMEmbedProcessor(..., trace=...)` writes them.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, seq_len)`): Padded on either side.
            attention_mask (`torch.Tensor` of shape `(batch, seq_len)`): 1 for real tokens.
            **kwargs: The reasoner's image tensors; what it does not know is ignored.

        Returns:
            [`UnifiedOutput`]: Gradients reach the head alone.
        """
        return self.embed(self.states(input_ids, attention_mask, **kwargs))

    @torch.no_grad()
    def states(self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> States:
        """What the head is given in `forward`; heads that read the same layer can share it."""
        inner = self.reasoner.base_model
        known = inspect.signature(inner.forward).parameters
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        with self._recording() as record:
            inner(
                input_ids=input_ids,
                attention_mask=mask,
                use_cache=False,
                **{name: value for name, value in kwargs.items() if name in known and name != "use_cache"},
            )
        return self._states(record, mask)

    def embed(self, states: States) -> UnifiedOutput:
        """Run the head.

        Args:
            states ([`States`]): Of `states`, or of that of a model whose head reads the same layer.
        """
        pooled = self.head(states)[:, : self.config.embedding_dim]
        embeddings = F.normalize(pooled.float(), dim=-1)
        return UnifiedOutput(embeddings=embeddings, pooler_output=embeddings)

    @torch.no_grad()
    def think_and_embed(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        **kwargs: Any,
    ) -> UnifiedOutput:
        """Write a trace behind each prompt and embed both in the same pass.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, seq_len)`): Prompts, padded on the left.
            attention_mask (`torch.Tensor` of shape `(batch, seq_len)`): 1 for real tokens.
            max_new_tokens (`int`, defaults to 512): The hard limit; a trace that has not ended by then, or at the end of
                what the reasoner reads, is ended.
            temperature (`float`, defaults to 0): 0 takes the most probable token each time.
            **kwargs: The reasoner's image tensors; what it does not know is ignored.

        Raises:
            ValueError: If the padding is on the right, `max_new_tokens` is not positive, or the prompts leave no room.
        """
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}; a trace needs at least one token.")
        if not bool(attention_mask[:, -1].all()):
            raise ValueError("prompts are padded on the right; set `processor.tokenizer.padding_side = 'left'`.")
        end, start = self.config.end_token_id, input_ids.shape[1]
        reads = getattr(self.config.backbone_config.get_text_config(), "max_position_embeddings", None)
        limit = max_new_tokens if reads is None else min(max_new_tokens, reads - start - 1)
        if limit < 1:
            raise ValueError(
                f"the prompts take {start} of the {reads} tokens that the reasoner reads, which leaves no room for a "
                "trace; give the processor a lower max_length."
            )
        known = inspect.signature(self.reasoner.forward).parameters
        # Two more: the end token where the limit was met, and a token that is drawn when the end token is run.
        generation = GenerationConfig(
            max_new_tokens=limit + 2,
            pad_token_id=end,
            do_sample=temperature > 0,
            **({"temperature": temperature, "top_k": 0} if temperature > 0 else {}),
        )
        with self._recording() as record:
            sequences = self.reasoner.generate(
                input_ids=input_ids,
                attention_mask=attention_mask,
                generation_config=generation,
                logits_processor=[_EndOnce(start, limit, end, self.config.other_end_token_ids)],
                stopping_criteria=[_EndWasRun(start, end)],
                **{name: value for name, value in kwargs.items() if name in known},
            )
        written = sequences[:, start:-1]
        ended = (written == end).long()
        up_to_end = (ended.cumsum(dim=1) - ended == 0).to(attention_mask.dtype)
        output = self.embed(self._states(record, torch.cat([attention_mask, up_to_end], dim=1)))
        output.trace_ids = written
        output.cut = up_to_end.sum(dim=1) > limit
        return output

    def _states(self, record: list[list[dict[str, Any]]], mask: torch.Tensor) -> States:
        """What the hooks have recorded, all steps in one."""
        first, *_ = record
        hidden = torch.cat([step["hidden"] for step in first], dim=1)
        dtype = next(self.head.parameters()).dtype
        calls = [_joined(steps, dtype) for steps in record] if self.config.head == "self_init" else []
        return States(hidden.to(dtype), mask, calls)

    @contextmanager
    def _recording(self) -> Iterator[list[list[dict[str, Any]]]]:
        """For the layer that the head reads, and for those after it if it copies them, what they are called with."""
        blocks: Any = self._decoder.layers
        watched: list[Any] = [self._decoder.norm] if self.layer == len(blocks) else list(blocks[self.layer :])
        record: list[list[dict[str, Any]]] = [[] for _ in watched]
        own = threading.get_ident()  # another thread may be running the same reasoner

        def note(place: int, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            if threading.get_ident() != own:
                return
            hidden = arguments[0] if arguments else named["hidden_states"]
            wanted: dict[str, Any] = {
                name: named[name] for name in ("attention_mask", "position_embeddings") if name in named
            }
            record[place].append({"hidden": hidden if place == 0 else None, "length": hidden.shape[1], **wanted})

        def note_normed(module: nn.Module, arguments: tuple[Any, ...], output: torch.Tensor) -> None:
            if threading.get_ident() == own:
                record[0].append({"hidden": output, "length": output.shape[1]})

        if self.layer == len(blocks):
            hooks = [watched[0].register_forward_hook(note_normed)]
        else:
            if self.config.head != "self_init":
                watched = watched[:1]
            hooks = [
                module.register_forward_pre_hook(
                    lambda _, arguments, named, place=place: note(place, arguments, named), with_kwargs=True
                )
                for place, module in enumerate(watched)
            ]
        try:
            yield record
        finally:
            for hook in hooks:
                hook.remove()


def _joined(steps: list[dict[str, Any]], dtype: torch.dtype) -> dict[str, Any]:
    """The arguments of one layer over the whole sequence, from those of each step."""
    call: dict[str, Any] = {}
    if "attention_mask" in steps[0]:
        mask = join_masks([step["attention_mask"] for step in steps], [step["length"] for step in steps])
        call["attention_mask"] = mask.to(dtype) if mask is not None and mask.is_floating_point() else mask
    if "position_embeddings" in steps[0]:
        cosines_and_sines = zip(*(step["position_embeddings"] for step in steps), strict=True)
        call["position_embeddings"] = tuple(torch.cat(parts, dim=-2).to(dtype) for parts in cosines_and_sines)
    return call


class _EndOnce(LogitsProcessor):
    """Makes each row end in the end token, at the limit at the latest, and repeat it from then on."""

    def __init__(self, start: int, limit: int, end: int, others: list[int]) -> None:
        self.start, self.limit, self.end, self.others = start, limit, end, others

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> Any:
        written = input_ids[:, self.start :]
        scores = scores.clone()
        scores[:, self.end] = scores[:, [self.end, *self.others]].amax(dim=1)
        scores[:, self.others] = -torch.inf
        over = (written == self.end).any(dim=1) | (written.shape[1] >= self.limit)
        only_end = torch.full_like(scores, -torch.inf)
        only_end[:, self.end] = 0
        return torch.where(over[:, None], only_end, scores)


class _EndWasRun(StoppingCriteria):
    """Stops a row when its end token has gone through the model, one step after it was drawn."""

    def __init__(self, start: int, end: int) -> None:
        self.start, self.end = start, end

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.Tensor:
        return (input_ids[:, self.start : -1] == self.end).any(dim=1)


UnifiedConfig.register_for_auto_class()
UnifiedModel.register_for_auto_class("AutoModel")
