"""From texts and images to what the model reads: the hierarchical prompt, rendered by the backbone's own template.

In: `text` and `images` (lists of equal length), or chat conversations. Out: `input_ids` and `attention_mask`, both
`(batch, seq_len)`, and the image tensors of the backbone's family.

Every way in (`processor(...)`, `apply_chat_template`, sentence-transformers, `hf-mmembed prompt show`) makes the same
rows and renders them here, so the same input is always the same string. One class serves every family: it rewrites
the conversation, and leaves the template, the image tokens and the tensors to the family's own processor. This file
travels with the checkpoint.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
from jinja2 import TemplateError
from transformers import BatchFeature
from transformers.processing_utils import ProcessorMixin

from .family_mmembed import for_threads, image_only_processor, load_with_pillow
from .images_mmembed import ImageError, open_image
from .pixels_mmembed import quicken
from .rows_mmembed import HierarchicalPrompt, Row, refuse_unread, row_of_conversation, rows_of_lists

__all__ = ["HierarchicalPrompt", "MMEmbedProcessor"]

# Their `pixel_values` are one stack of tiles. sentence-transformers, which cuts a batch into mini-batches where gradients
# are cached, learns from `image_grid_thw` which of them belong together; the model does not read it.
TILED_WITHOUT_GRID = frozenset({"InternVLProcessor"})
SIZE_OPTIONS = ("truncation", "max_length", "padding", "return_tensors")
THINK_TAGS = re.compile(r"(</?think>)")
# sentence-transformers passes `task` only to templates that use the variable; this renders nothing.
TASK_DECLARATION = "{% if task is defined %}{% endif %}"


class MMEmbedProcessor(ProcessorMixin):
    """Renders the hierarchical prompt and prepares tensors, for every backbone family.

    Args:
        image_processor: The family's image processor.
        tokenizer: The backbone's tokenizer.
        chat_template (`str`, *optional*): The backbone's own template. Defaults to the tokenizer's.
        backbone_processor_class (`str`): Name of the family's processor class, such as `"Qwen2VLProcessor"`.
        backbone_processor_kwargs (`dict`, *optional*): What that class needs besides (patch size, image length ...).
        prompt ([`HierarchicalPrompt`] or `dict`): The words around every input.
        allow_urls (`bool`, defaults to `False`): Fetch images given as `http(s)` strings. Never stored.

    Example:

    ```python
    batch = processor(text=["a red circle", None], images=[None, picture], task="query", return_tensors="pt")
    ```
    """

    # Positional-or-keyword throughout: `ProcessorMixin` reads the argument names back from the code object.
    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | dict[str, str] | None = None,
        backbone_processor_class: str | None = None,
        backbone_processor_kwargs: dict[str, Any] | None = None,
        prompt: HierarchicalPrompt | dict[str, Any] | None = None,
        allow_urls: bool = False,
    ) -> None:
        if backbone_processor_class is None or prompt is None:
            raise ValueError(
                "an MMEmbedProcessor needs `backbone_processor_class` and `prompt`; make one with convert."
            )
        native = chat_template or tokenizer.chat_template
        if isinstance(native, dict):
            native = native["default"]
        if native is None:
            raise ValueError("the backbone has no chat template; set `tokenizer.chat_template` before converting.")
        native = native.removeprefix(TASK_DECLARATION)
        quicken(image_processor)
        super().__init__(image_processor, tokenizer, chat_template=TASK_DECLARATION + native)
        self.backbone_processor_class = backbone_processor_class
        self.backbone_processor_kwargs = backbone_processor_kwargs or {}
        self.prompt = HierarchicalPrompt(**prompt) if isinstance(prompt, dict) else prompt
        self.allow_urls = allow_urls
        self.backbone_processor = self._family_processor()
        self._control_tokens: tuple[int, re.Pattern[str]] = (0, re.compile(""))

    def _family_processor(self) -> ProcessorMixin:
        return image_only_processor(self.backbone_processor_class)(
            image_processor=self.image_processor,
            tokenizer=self.tokenizer,
            chat_template=self.chat_template.removeprefix(TASK_DECLARATION),
            **self.backbone_processor_kwargs,
        )

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the family's processor, whose class exists only in this process and cannot be pickled."""
        return {name: value for name, value in self.__dict__.items() if name != "backbone_processor"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.backbone_processor = self._family_processor()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As `ProcessorMixin.from_pretrained`, with Pillow's image backend: the same pixels on every machine."""
        return load_with_pillow(cls, pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_args_and_dict(cls, args: Any, processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in `ProcessorMixin`; a checkpoint cannot switch `allow_urls` on, only the caller can."""
        processor_dict = {name: value for name, value in processor_dict.items() if name != "allow_urls"}
        return super().from_args_and_dict(args, processor_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """What `processor_config.json` holds."""
        stored = copy.copy(self)
        for name in ("backbone_processor", "_control_tokens", "allow_urls"):
            del stored.__dict__[name]
        return {**super(MMEmbedProcessor, stored).to_dict(), "prompt": asdict(self.prompt)}

    def __call__(
        self,
        images: Sequence[Any] | Any | None = None,
        text: Sequence[str | None] | str | None = None,
        task: str | None = None,
        instruction: Sequence[str | None] | str | None = None,
        trace: Sequence[str | None] | str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepare a batch.

        Args:
            images (*optional*): Per input None, one image or a list of images (PIL, array, tensor or local path).
            text (`list[str | None]`, *optional*): Per input a text or None. Always taken as text, never as a path.
            task (`str`, *optional*): `"query"` or `"document"`, for the whole batch. Defaults to a document.
            instruction (`str` or `list[str | None]`, *optional*): One for all inputs, or one per input.
            trace (`list[str | None]`, *optional*): Per input what a reasoner wrote about it, or None. It is read last,
                in the assistant's turn, and the end of that turn is pooled.
            **kwargs: For the family's processor, such as `return_tensors="pt"`, `padding`, `max_length` (defaults to
                the tokenizer's `model_max_length`) or `truncation` (defaults to True: the text is cut at its end).

        Returns:
            `BatchFeature`: `input_ids` and `attention_mask` `(batch, seq_len)`, and the image tensors.

        Raises:
            ValueError: If the batch is empty, the lists differ in length, a row has neither text nor image, or does
                not fit into `max_length` even without its text, or something is given that no embedder reads, such as
                `text_pair`; an [`ImageError`] if an image cannot be used.
        """
        return self._encode(rows_of_lists(text, images, instruction, trace), task, kwargs)

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        chat_template: str | None = None,
        *,
        task: str | None = None,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: Any = None,
        processor_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Rewrite conversations to the hierarchical prompt and render them with the backbone's own template.

        A `system` message is the instruction, `user` messages are the content. The generation prompt is always added:
        its last token is the one that is pooled, unless a last `assistant` message, a trace, follows it.

        Args:
            conversation: One conversation (a list of messages) or a list of them.
            chat_template (`str`, *optional*): Not accepted: the template belongs to the backbone.
            task (`str`, *optional*): `"query"` or `"document"`. Defaults to a document.
            tokenize (`bool`, defaults to `False`): Return tensors rather than strings.
            return_dict (`bool`, defaults to `False`): With `tokenize`, return everything rather than `input_ids`.
            return_tensors (*optional*): Such as `"pt"`.
            processor_kwargs (`dict`, *optional*): As for [`~MMEmbedProcessor.__call__`].
            **kwargs: The same; what `apply_chat_template` of transformers takes besides is fixed here and ignored.

        Returns:
            `str`, `list[str]`, `BatchFeature` or `input_ids`.

        Raises:
            ValueError: If a message has another role than `system` or `user` or holds something but text and images.
        """
        if chat_template is not None and chat_template not in (self.chat_template, "default"):
            raise ValueError("an embedder renders the backbone's own chat template; `chat_template` cannot be given.")
        for fixed in ("add_generation_prompt", "sanitize_control_tokens", "continue_final_message", "tools",
                      "documents", "return_assistant_tokens_mask", "load_audio_from_video"):  # fmt: skip
            kwargs.pop(fixed, None)
        if not conversation:
            raise ValueError("there is nothing to embed: the list of conversations is empty.")
        batched = not isinstance(conversation[0], Mapping)
        rows = [row_of_conversation(c, i) for i, c in enumerate(conversation if batched else [conversation])]
        if not tokenize:
            rendered = self.render(rows, task)
            return rendered if batched else rendered[0]
        options = {**(processor_kwargs or {}), **kwargs}
        if return_tensors not in (None, "auto"):
            options["return_tensors"] = return_tensors
        batch = self._encode(rows, task, options)
        return batch if return_dict else batch["input_ids"]

    def render(self, rows: Sequence[Row], task: str | None = None) -> list[str]:
        """The string of every row, one placeholder per image, before images are expanded to their tokens.

        Args:
            rows (`Sequence[Row]`): Inputs.
            task (`str`, *optional*): `"query"` or `"document"`. Defaults to a document.

        Returns:
            `list[str]`: One string per row.

        Raises:
            ValueError: If `task` is unknown or a row renders to nothing at all.
        """
        contents = [self._content(row, task) for row in rows]
        if self.prompt.chat:
            # Pictures without words are all rendered alike.
            kinds = [(content, len(row.images)) for row, content in zip(rows, contents, strict=True)]
            conversations = {kind: self._messages(*kind) for kind in kinds}
            rendered = self.backbone_processor.apply_chat_template(
                list(conversations.values()), tokenize=False, add_generation_prompt=True
            )
            string_of = dict(zip(conversations, rendered, strict=True))
            contents = [string_of[kind] for kind in kinds]
        elif "" in contents:
            raise ValueError(f"input {contents.index('')} is empty, and its prompt has no words: nothing to embed.")
        return [content + self.turn_of_trace(row.trace) for content, row in zip(contents, rows, strict=True)]

    def turn_of_trace(self, trace: str | None) -> str:
        """The assistant's turn as `generate` leaves it: the trace, and the token that ends the turn; or nothing."""
        if not trace:
            return ""
        # The tags are the reasoner's to write; any other control token in a trace is words.
        parts = THINK_TAGS.split(trace)
        words = "".join(part if THINK_TAGS.fullmatch(part) else self._neutralised(part) for part in parts)
        return words + self.tokenizer.eos_token

    def _content(self, row: Row, task: str | None) -> str:
        """Everything in the user turn that is text: inline images, instruction, text, representation prompt."""
        instruction, text = (self._neutralised(part or "") for part in (row.instruction, row.text))
        between = "" if not (instruction and text) or instruction[-1].isspace() else self.prompt.separator
        words = instruction + between + text
        if row.images and self.prompt.image_style != "template":
            token = self.backbone_processor.image_token
            if token == "<|image_pad|>" and self.prompt.image_style == "inline":
                token = f"<|vision_start|>{token}<|vision_end|>"
            # Qwen's positions take neighbouring image tokens for one image, so bare ones are kept apart.
            gap = self.prompt.separator if self.prompt.image_style == "bare" else ""
            space = "" if not words or words[0].isspace() else self.prompt.separator
            words = gap.join([token] * len(row.images)) + space + words
        ending = self.prompt.ending(task, has_image=bool(row.images))
        return words if ending.isspace() and words.endswith(ending) else words + ending

    def _messages(self, content: str, count: int) -> list[dict[str, Any]]:
        system = self.prompt.system
        if system and not self.takes_system_role:
            system, content = "", f"{system}\n{content}"
        images = [{"type": "image"} for _ in range(count)] if self.prompt.image_style == "template" else []
        text = [{"type": "text", "text": content}] if content or not images else []
        user = {"role": "user", "content": [*images, *text]}
        return [{"role": "system", "content": [{"type": "text", "text": system}]}, user] if system else [user]

    def control_tokens(self) -> list[str]:
        """What only the template may write, longest first: special tokens, other added tokens that it uses, turn marks."""
        template = self.backbone_processor.chat_template
        added = self.tokenizer.added_tokens_decoder.values()
        tokens = {t.content for t in added if t.special or (t.content in template and not t.content.isspace())}
        tokens.update(self.backbone_processor.all_special_multimodal_tokens)
        return sorted(tokens | self._turn_marks(tokens), key=lambda token: (-len(token), token))

    def _turn_marks(self, tokens: set[str]) -> set[str]:
        """The words around a user turn, where no control token ends it: LLaVA's `USER:`, `ASSISTANT:`, `[INST]` ..."""
        if not self.prompt.chat:
            return set()
        words = "THE words"
        turn = [{"role": "user", "content": [{"type": "text", "text": words}]}]
        rendered = self.backbone_processor.apply_chat_template(turn, add_generation_prompt=True)
        before, _, after = rendered.partition(words)
        if any(token in after for token in tokens):
            return set()
        marks = {*before.split()[-1:], *after.split()[:1]}
        return {mark for mark in marks if re.search(r"[^\W\d]", mark) and not any(token in mark for token in tokens)}

    @cached_property
    def takes_system_role(self) -> bool:
        """Whether the backbone's template writes a system message; if not, the system prompt opens the user turn."""
        probe = [{"role": role, "content": [{"type": "text", "text": f"THE {role}"}]} for role in ("system", "user")]
        try:
            return "THE system" in self.backbone_processor.apply_chat_template(probe, add_generation_prompt=True)
        except TemplateError:
            return False

    def _neutralised(self, text: str) -> str:
        """`text` with a space inside every control token, so that it is read as words and never obeyed."""
        size, pattern = self._control_tokens
        if size != len(self.tokenizer):
            # A token added since then is read as words before the checkpoint is saved as it is afterwards.
            tokens = (re.escape(token) for token in self.control_tokens())
            size, pattern = len(self.tokenizer), re.compile("|".join(tokens) or r"(?!)")
            self._control_tokens = size, pattern
        return pattern.sub(lambda match: f"{match[0][:1]} {match[0][1:]}", text)

    def _encode(self, rows: list[Row], task: str | None, options: dict[str, Any]) -> BatchFeature:
        refuse_unread(options)
        rows = [self._with_open_images(row, index) for index, row in enumerate(rows)]
        options, limit = self._without_truncation(options)
        batch = self._tokenize(rows, task, options)
        while over := _longer_than(limit, batch):
            for index, length in over.items():
                rows[index] = self._shortened(rows[index], index, length, limit)
            batch = self._tokenize(rows, task, options)
        return batch

    def _with_open_images(self, row: Row, index: int) -> Row:
        opened = []
        for position, image in enumerate(row.images):
            try:
                opened.append(open_image(image, allow_urls=self.allow_urls))
            except ImageError as error:
                which = f"image {position} of input {index}" if len(row.images) > 1 else f"the image of input {index}"
                raise ImageError(f"{which}: {error}") from error
        return replace(row, images=tuple(opened))

    def _without_truncation(self, options: dict[str, Any]) -> tuple[dict[str, Any], float]:
        """Take truncation out of the options: the family's processor would cut wherever the limit falls."""
        options = {name: dict(value) if name.endswith("_kwargs") else value for name, value in options.items()}
        buckets = (options.pop("common_kwargs", {}), options.pop("text_kwargs", {}), options)
        found = {name: bucket.pop(name) for name in SIZE_OPTIONS for bucket in buckets if name in bucket}
        common, text_options, options = buckets
        found.setdefault("padding", True)
        wanted = found.pop("truncation", True) not in (False, None, "do_not_truncate")
        limit = found.pop("max_length", None) or self.tokenizer.model_max_length
        # What will be cut is nothing to warn of; what is too long and will not be, is.
        text_options = {"verbose": not wanted, **text_options, "padding": found["padding"], "truncation": False}
        if found["padding"] == "max_length":
            text_options["max_length"] = limit
        if "return_tensors" in found:
            options["return_tensors"] = found["return_tensors"]
        return {**common, **options, "text_kwargs": text_options}, limit if wanted else math.inf

    def _tokenize(self, rows: list[Row], task: str | None, options: dict[str, Any]) -> BatchFeature:
        strings = self.render(rows, task)
        bos = self.tokenizer.bos_token
        if bos is not None and strings[0].startswith(bos):
            options = {**options, "text_kwargs": {**options["text_kwargs"], "add_special_tokens": False}}
        images = [list(row.images) for row in rows] if any(row.images for row in rows) else None
        batch = for_threads(self.backbone_processor)(images=images, text=strings, **options)
        if images and self.backbone_processor_class in TILED_WITHOUT_GRID:
            grids = {"image_grid_thw": [[tiles, 1, 1] for tiles in self._tiles(batch["input_ids"])]}
            batch.update(BatchFeature(grids, tensor_type=options.get("return_tensors")))
        return batch

    def _tiles(self, input_ids: Any) -> list[int]:
        """How many tiles each image was cut into, in reading order, from the tokens that stand for it."""
        token, each = self.backbone_processor.image_token_id, self.backbone_processor.image_seq_length
        runs = (run for row in input_ids for is_image, run in groupby(row, lambda one: int(one) == token) if is_image)
        return [len(list(run)) // each for run in runs]

    def _shortened(self, row: Row, index: int, length: int, limit: float) -> Row:
        """`row` with its trace cut at the start, or without one its text at the end, by about `length - limit` tokens."""
        if row.trace:
            # The end of a trace is its conclusion.
            offsets = self._tokens_of(row.trace)["offset_mapping"]
            over = int(length - limit)
            return replace(row, trace=row.trace[max(1, offsets[over][0]) :] if over < len(offsets) else None)
        text = self._neutralised(row.text or "")
        if not text:
            raise ValueError(
                f"input {index} takes {length} tokens without its text (prompt, instruction and {len(row.images)} "
                f"images), but the limit is {limit:g}. Use fewer or smaller images, a shorter instruction or a higher "
                "max_length."
            )
        tokens = self._tokens_of(text)
        keep = len(tokens["input_ids"]) - int(length - limit)
        end = tokens["offset_mapping"][keep - 1][1] if keep > 0 else 0
        return replace(row, text=text[: min(end, len(text) - 1)])

    def _tokens_of(self, words: str) -> Any:
        tokenizer = for_threads(self.backbone_processor).tokenizer
        return tokenizer(words, add_special_tokens=False, return_offsets_mapping=True, verbose=False)


def _longer_than(limit: float, batch: BatchFeature) -> dict[int, int]:
    """The rows of a batch that have more real tokens than `limit`, with their number of tokens."""
    lengths = [int(np.sum(np.asarray(mask))) for mask in batch["attention_mask"]]
    return {index: length for index, length in enumerate(lengths) if length > limit}


MMEmbedProcessor.register_for_auto_class()
