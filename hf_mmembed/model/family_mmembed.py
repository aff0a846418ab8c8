"""The backbone family's own processor: without its parts for videos and sounds, with Pillow's pixels, for threads, and
quicker about tokens.

In: the name of a processor class of transformers. Out: a subclass of it, which needs no torchvision. This file travels
with the checkpoint.
"""

from __future__ import annotations

import copy
import inspect
import threading
from types import FunctionType
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoImageProcessor, AutoTokenizer, BatchEncoding
from transformers.processing_utils import ProcessorMixin
from transformers.utils import TensorType

__all__ = ["for_threads", "image_only_processor", "load_with_pillow"]

# By what families call their parts for videos and for sounds.
LEFT_OUT = ("video_processor", "feature_extractor", "audio_processor")

_TOKENIZING = threading.Lock()


def image_only_processor(name: str) -> type[ProcessorMixin]:
    """The processor class `transformers.<name>` without its parts for videos, which would require torchvision, and sounds.

    Every argument of its `__init__` may be missing.

    Raises:
        ValueError: If this transformers has no such class.
    """
    family = getattr(transformers, name, None)
    if family is None:
        raise ValueError(f"transformers {transformers.__version__} has no processor class {name!r}; upgrade it.")
    whole = family.get_attributes()
    attributes = [attribute for attribute in whole if not any(part in attribute for part in LEFT_OUT)]

    class WithFewerParts(ProcessorMixin):
        """What the family's `__init__` calls to store its parts."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            given = {**dict(zip(whole, args, strict=False)), **kwargs}
            super().__init__(**{part: given[part] for part in given if part in attributes or part not in whole})

    body = {
        **{part: _Absent() for part in whole if part not in attributes},
        "__init__": _with_defaults(family.__init__),
        "get_attributes": classmethod(lambda cls: list(attributes)),
        "__module__": family.__module__,
    }
    if family.create_mm_token_type_ids is ProcessorMixin.create_mm_token_type_ids:
        body["create_mm_token_type_ids"] = types_of_tokens
    if "replace_image_token" in vars(family):
        body["replace_image_token"] = _counting_in_numpy(family.replace_image_token)
    return type(family.__name__, (family, WithFewerParts), body)


class _Absent:
    """A part that is left out. Some families read settings of it all the same, which are None."""

    def __getattr__(self, name: str) -> None:
        return None


def _with_defaults(init: Any) -> Any:
    """`init`, whose every argument may be missing and is None then; transformers reads their names from its code."""
    _, *parameters = inspect.signature(init, follow_wrapped=False).parameters.values()
    positional = (p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
    defaults = tuple(None if p.default is p.empty else p.default for p in positional)
    twin = FunctionType(init.__code__, init.__globals__, init.__name__, defaults, init.__closure__)
    twin.__kwdefaults__ = init.__kwdefaults__
    return twin


def _counting_in_numpy(replace: Any) -> Any:
    """`replace_image_token`, many times faster: families compute with the three numbers of each picture's grid."""

    def replace_image_token(self: Any, image_inputs: Any, image_idx: int, **kwargs: Any) -> str:
        if isinstance(grids := image_inputs.get("image_grid_thw"), torch.Tensor):
            image_inputs = {**image_inputs, "image_grid_thw": grids.numpy(force=True)}  # may be on a GPU
        return replace(self, image_inputs, image_idx, **kwargs)

    return replace_image_token


def load_with_pillow(processor_class: type[ProcessorMixin], path: Any, **kwargs: Any) -> Any:
    """`processor_class.from_pretrained(path, **kwargs)` with Pillow's image backend, which needs no torchvision."""
    shared = {name: value for name, value in kwargs.items() if name not in ("backend", "allow_urls")}
    image_processor = AutoImageProcessor.from_pretrained(path, backend=kwargs.get("backend", "pil"), **shared)
    tokenizer = AutoTokenizer.from_pretrained(path, **shared)
    fields, options = processor_class.get_processor_dict(path, **kwargs)
    options |= {"image_processor": image_processor, "tokenizer": tokenizer}
    return processor_class.from_args_and_dict([], fields, **options)


def for_threads(processor: ProcessorMixin) -> ProcessorMixin:
    """`processor` for one call among those of other threads: its pictures at any time, its texts one call at a time.

    A fast tokenizer keeps its settings of padding and truncation as state, which two threads would mix up.

    Returns:
        `ProcessorMixin`: A shallow copy. The parts are those of `processor`, so what they are set to meanwhile holds.
    """
    own = copy.copy(processor)
    own.tokenizer = _InTurn(own.tokenizer)
    return own


class _InTurn:
    """A tokenizer, which one thread at a time can call."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __call__(self, text: Any, *args: Any, return_tensors: Any = None, **kwargs: Any) -> Any:
        later = return_tensors == TensorType.PYTORCH and isinstance(text, list)  # one text gets an axis, too
        with _TOKENIZING:
            encoded = self._tokenizer(text, *args, return_tensors=None if later else return_tensors, **kwargs)
        return _in_torch(encoded) if later else encoded

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def _in_torch(encoded: BatchEncoding) -> BatchEncoding:
    """`encoded.convert_to_tensors("pt")`, which looks at every token in Python to see whether there is one."""
    for name, rows in encoded.items():
        if isinstance(rows[0], list) and rows[0] and len({len(row) for row in rows}) == 1:
            encoded[name] = torch.tensor(rows)
    return encoded.convert_to_tensors("pt")


def types_of_tokens(processor: Any, input_ids: list[Any]) -> list[list[int]]:
    """`ProcessorMixin.create_mm_token_type_ids` for all rows at once, which is many times faster.

    Args:
        processor (`ProcessorMixin`): Of the family.
        input_ids (`list[list[int]]`): Rows, of any length each.

    Returns:
        `list[list[int]]`: For every token 1 where it is of an image, 2 of a video, 3 of a sound, otherwise 0.
    """
    rows = [np.asarray(row) for row in input_ids]
    tokens = np.concatenate(rows)
    types = np.zeros_like(tokens)
    for kind, ids in enumerate((processor.image_token_ids, processor.video_token_ids, processor.audio_token_ids), 1):
        types[np.isin(tokens, ids)] = kind
    return [part.tolist() for part in np.split(types, np.cumsum([len(row) for row in rows])[:-1])]
