"""The embedder for daily use: a `SentenceTransformer` that takes instructions and never takes a text for a picture.

In: texts, pictures, both, or chat messages. Out: embeddings of shape ``(inputs, dim)``, unit L2 norm, in input order.

Loading, saving, prompts, precision, process pools, similarity, training and evaluation are sentence-transformers' own.
What is replaced is its inner loop: identical inputs are embedded once, a batch holds a bounded number of tokens, and
pictures are decoded in threads while the model runs.
"""

from __future__ import annotations

import copy
import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import batch_to_device, truncate_embeddings
from sentence_transformers.util.decorators import deprecated_kwargs
from sentence_transformers.util.quantization import quantize_embeddings
from torch import Tensor
from torch.nn.functional import normalize
from tqdm.auto import tqdm

from .adapters import base_of_adapter, naming_a_lost_base
from .batching import TOKEN_BUDGET
from .card_data import EmbedderCardData
from .duplicates import unique_inputs
from .inputs import as_messages, with_trace
from .memory import TokenBudget, run_batches
from .model import registration  # noqa: F401 - from here on, checkpoints open with the installed classes
from .model.prefix_mmembed import PrefixMemory
from .opening import has_modules, invalid_json, no_embedder
from .preparation import Conversation, allows_urls, estimate_tokens, lookahead_beside, prepare

__all__ = ["MMEmbedder"]

# In tokens: a GPU needs larger batches before padding costs more than launching the kernels again. On a CPU the blocks
# leave out most of the padding, so that it costs less here than where all of it is computed.
BATCH_COST_ON_CPU, BATCH_COST_ELSEWHERE = 256, 2_048


class MMEmbedder(SentenceTransformer):
    """Embed texts, pictures and both with a converted multimodal LLM.

    Takes the arguments of `SentenceTransformer` and opens the same directories with the same numbers: a checkpoint
    written by ``hf-mmembed convert``, a repository of one on the Hub, or a PEFT adapter over one. These open with the
    installed classes of ``hf_mmembed`` and need no ``trust_remote_code``; with it, other code that a repository names
    runs as it does in `SentenceTransformer`.

    Beyond `SentenceTransformer`:

    - strings are always text, never opened as a path or fetched as a URL, and control tokens in them are words;
    - ``{"text": ..., "image": ..., "instruction": ...}`` gives one input its own instruction;
    - identical inputs are embedded once;
    - embeddings have unit L2 norm, also with ``truncate_dim`` (behind a module of your own, such as `Dense`, ask for it);
    - an input can be embedded together with what a reasoner wrote about it: ``traces``, or ``think`` and `thinker`.

    Attributes:
        thinker: A `hf_mmembed.thinking.Thinker`, asked where ``think`` says so. Defaults to None.

    Args:
        model_name_or_path: Directory or Hub id.
        **kwargs: See `sentence_transformers.SentenceTransformer`.

    Raises:
        OSError: There is no such directory, or none of an adapter's base, and the Hub does not give it.
        ValueError: The checkpoint is no embedder (it was never converted), or cannot read chat messages.

    Example:
        >>> from PIL import Image
        >>> from hf_mmembed import MMEmbedder, tiny
        >>> model = MMEmbedder(tiny.checkpoint_path(), device="cpu")
        >>> red, blue = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
        >>> queries = model.encode_query(["a red circle", {"image": red, "text": "the same in blue"}])
        >>> documents = model.encode_document([red, {"image": blue, "instruction": "Name the colour."}, "a blue circle"])
        >>> model.similarity(queries, documents).shape
        torch.Size([2, 3])
    """

    thinker: Any = None
    model_card_data_class = EmbedderCardData

    def __init__(self, model_name_or_path: str | os.PathLike[str] | None = None, **kwargs: Any) -> None:
        # sentence-transformers takes strings alone.
        name = None if model_name_or_path is None else os.fspath(model_name_or_path)
        try:
            with naming_a_lost_base(name):
                super().__init__(name, **kwargs)
        except json.JSONDecodeError as error:  # of which file, it does not say
            raise invalid_json(Path(name or ""), error) from error

    def _post_init(self) -> None:
        super()._post_init()
        self._budgets: dict[int, TokenBudget] = {}  # as low as they had to become
        if "message" not in self.modalities:
            raise ValueError(
                f"this checkpoint takes the inputs {self.modalities} and no chat messages, so it is no embedder of "
                "hf_mmembed. Open it with SentenceTransformer, or convert a multimodal LLM: `hf-mmembed convert BASE "
                "OUT`."
            )

    def _load_default_modules(self, model_name_or_path: str, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Called for a directory without ``modules.json``: a PEFT adapter over an embedder, or no embedder at all."""
        where = {name: kwargs[name] for name in ("token", "revision", "local_files_only")}
        where["cache_dir"] = kwargs["cache_folder"]
        if (found := base_of_adapter(model_name_or_path, **where)) is None:
            raise no_embedder(model_name_or_path, **where)
        base, revision = found
        if not has_modules(base, **{**where, "revision": revision}):
            raise no_embedder(base, **{**where, "revision": revision})
        modules, module_kwargs = self._load_config_modules(base, **{**kwargs, "revision": revision})
        transformer = next(iter(modules.values()))
        transformer.model.load_adapter(model_name_or_path, adapter_kwargs=where)
        return modules, module_kwargs

    def is_singular_input(self, inputs: Any) -> bool:
        """Whether this is one input; a generator, a `pandas.Series`, a column of a dataset and the like are many."""
        one = (str, bytes, Mapping, np.ndarray, Tensor, list, tuple)  # the last two by what is in them
        many = isinstance(inputs, Iterable) and not isinstance(inputs, one)
        return not many and super().is_singular_input(inputs)

    def get_model_kwargs(self) -> list[str]:
        """Names of the further keyword arguments of `encode`, as in `SentenceTransformer`."""
        return [*super().get_model_kwargs(), "token_budget"]

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Features of a batch, as in `SentenceTransformer`, from anything that `encode` takes."""
        messages = [as_messages(item, index=index, instruction=prompt) for index, item in enumerate(inputs)]
        return super().preprocess(messages, **kwargs)

    @torch.inference_mode()
    @deprecated_kwargs(sentences="inputs")
    def encode(
        self,
        inputs: Any,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: Literal["sentence_embedding", "token_embeddings"] | None = "sentence_embedding",
        precision: Literal["float32", "int8", "uint8", "binary", "ubinary"] = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: str | list[str | torch.device] | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        pool: dict[Literal["input", "output", "processes"], Any] | None = None,
        chunk_size: int | None = None,
        *,
        task: Literal["query", "document"] | None = None,
        instruction: str | None = None,
        think: Literal["never", "always", "auto"] = "never",
        task_family: str | None = None,
        traces: Any = None,
        return_traces: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Embed one input or a list of inputs.

        Everything that `SentenceTransformer.encode` takes means the same here, and `encode_query` and
        `encode_document` pass on what they are given.

        Args:
            inputs: A string (always text), a picture (PIL image, array, tensor), a dict with some of the keys
                ``text``, ``image`` (a picture, a local path, or a list) and ``instruction``, or chat messages; or a
                list, or anything else to go through, that mixes them. An empty string is embedded as the prompt with
                nothing in it.
            prompt_name: Name of a prompt stored in the checkpoint, used as the instruction. `encode_query` takes
                ``"query"``, `encode_document` ``"document"``. Defaults to ``default_prompt_name``, usually none.
            prompt: The instruction, as sentence-transformers calls it.
            batch_size: At most this many inputs in a batch. Defaults to 32.
            output_value: ``"sentence_embedding"``; ``"token_embeddings"`` for the last hidden states of the real
                tokens, one ``(tokens, hidden)`` tensor per input; or None for a dict of all features per input.
            truncate_dim: Keep this many leading dimensions, renormalised to unit length.
            device: A device, or a list of them to encode in one process each.
            task: ``"query"`` or ``"document"``: which representation prompt ends the input. Defaults to a document's.
            instruction: What to do with the inputs, for instance "Find a picture of the same scene."; takes the
                place of a stored prompt. An input with an ``instruction`` of its own, or a system message, keeps it.
            think: Whether `thinker` writes a trace of each input first, which the model reads behind the input
                (Think-Then-Embed, https://arxiv.org/abs/2510.05014): ``"never"``, ``"always"``, or ``"auto"``, about
                queries where it pays by the family of the task.
            task_family: ``"classification"``, ``"qa"``, ``"content"``, ``"grounding"`` or ``"composed"``: what the
                thinker is asked. Defaults to a guess from the form of each input.
            traces: Traces that are there already, one per input: strings, `hf_mmembed.thinking.Trace`, or None.
            return_traces: Return the embeddings and the traces, None where there is none.
            **kwargs: ``token_budget``, the most tokens in a batch, text and visual, padding included (an estimate;
                an input larger than that is a batch of its own; defaults to 16,384, and is lowered where a GPU runs
                out of memory), and ``processing_kwargs``.

        Returns:
            An array of shape ``(inputs, dim)``, or ``(dim,)`` for one input; a tensor with ``convert_to_tensor``, a
            list of tensors without ``convert_to_numpy``. No input gives shape ``(0, dim)``. With ``return_traces``,
            a pair of that and the traces.

        Raises:
            ValueError: An input cannot be embedded (the message says which and why), both ``prompt`` and
                ``instruction`` are given, an option has a value that sentence-transformers does not know, or there is
                no thinker, or not one trace per input.
        """
        if instruction is not None and prompt is not None:
            raise ValueError("`prompt` and `instruction` are two names of the same thing; give one of them.")
        if output_value not in ("sentence_embedding", "token_embeddings", None):
            raise ValueError(
                f"output_value is {output_value!r}; use 'sentence_embedding', 'token_embeddings' or None."
            )
        if truncate_dim is not None and truncate_dim < 1:
            raise ValueError(f"truncate_dim is {truncate_dim}; it is how many dimensions to keep, at least 1.")
        if instruction is None:
            instruction = self._resolve_prompt(prompt, prompt_name)
        if instruction is not None and not isinstance(instruction, str):
            raise ValueError(
                f"the instruction is a {type(instruction).__name__}; give one string for all inputs, or each its own: "
                '{"text": ..., "instruction": ...}.'
            )
        singular = self.is_singular_input(inputs)
        items = [inputs] if singular else inputs.tolist() if isinstance(inputs, np.ndarray) else list(inputs)
        messages = [as_messages(item, index=index, instruction=instruction) for index, item in enumerate(items)]
        given = [traces] if singular and traces is not None else traces
        found = self._traces(messages, think=think, given=given, task=task, task_family=task_family)
        messages = [
            with_trace(turns, trace, index=i) for i, (turns, trace) in enumerate(zip(messages, found, strict=True))
        ]
        firsts, places = unique_inputs(messages)
        if precision in ("int8", "uint8") and len(firsts) == 1 < len(places):
            firsts *= 2  # the range of the numbers is not told from one row
        embeddings = super().encode(
            [Conversation(index, messages[index]) for index in firsts],
            prompt="",
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
            output_value=output_value,
            precision=precision,
            convert_to_numpy=convert_to_numpy,
            convert_to_tensor=convert_to_tensor,
            device=device,
            normalize_embeddings=normalize_embeddings or truncate_dim is not None or self.truncate_dim is not None,
            truncate_dim=truncate_dim,
            pool=pool,
            chunk_size=chunk_size,
            **({} if task is None else {"task": task}),
            **kwargs,
        )
        if singular:
            embeddings = embeddings[0]
        elif not items and not isinstance(embeddings, list):
            embeddings = self._empty(embeddings, precision, truncate_dim)
        elif len(firsts) < len(places):
            repeated = isinstance(embeddings, list)
            embeddings = [copy.deepcopy(embeddings[i]) for i in places] if repeated else embeddings[places]
        if return_traces:
            return embeddings, found[0] if singular else found
        return embeddings

    def _traces(
        self,
        messages: list[list[dict[str, Any]]],
        *,
        think: str,
        given: Any,
        task: str | None,
        task_family: str | None,
    ) -> list[Any]:
        """A trace or None for each conversation."""
        if think not in ("never", "always", "auto"):
            raise ValueError(f"think is {think!r}; use 'never', 'always' or 'auto'.")
        if given is not None:
            if think != "never":
                raise ValueError("`traces` are there already: leave `think` at 'never', or `traces` out.")
            found = [given] if isinstance(given, str) else list(given)
            if isinstance(given, str) or len(found) != len(messages):
                raise ValueError(
                    f"there must be one trace, or None, per input: {len(messages)} in a list, not {len(found)}."
                )
            return found
        if think == "never":
            return [None] * len(messages)
        if self.thinker is None:
            raise ValueError(
                f"think={think!r} needs a reasoner: set `model.thinker = Thinker(LocalReasoner(...))`, both from "
                "hf_mmembed.thinking."
            )
        return self.thinker(messages, think=think, task=task, task_family=task_family)

    def _empty(self, like: Any, precision: str, truncate_dim: int | None) -> Any:
        """No embeddings, in the type and with the width that some would have."""
        dim = min(filter(None, (self.get_embedding_dimension(), truncate_dim)))
        empty = quantize_embeddings(np.empty((0, dim), dtype=np.float32), precision)
        return torch.from_numpy(empty).to(like.device) if isinstance(like, Tensor) else empty

    @torch.inference_mode()
    def _inference(
        self,
        inputs: list[Conversation],
        *,
        prompt: str | None,
        batch_size: int,
        show_progress_bar: bool,
        output_value: str | None,
        save_to_cpu: bool,
        normalize_embeddings: bool,
        truncate_dim: int | None,
        device: str | torch.device | None = None,
        token_budget: int = TOKEN_BUDGET,
        **kwargs: Any,
    ) -> Any:
        """Embed conversations in this process; sentence-transformers calls it here and in every worker of a pool."""
        device = self._resolve_inference_device(device)
        if any(module.training for module in self.modules()):  # to ask costs a fifth of setting it anew
            self.eval()
        of_type = torch.device(device).type
        rows: list[Any] = [None] * len(inputs)
        with (
            self._last_hidden_states(wanted=output_value == "token_embeddings") as hidden_states,
            tqdm(total=len(inputs), desc="Embedding", unit="input", disable=not show_progress_bar) as progress,
        ):
            steering: dict[str, Any] = {}
            if hidden_states is not None:
                steering["share_prefix"] = False  # the backbone has to read whole rows for its states to be whole
            elif hasattr(self.transformers_model, "backbone"):
                steering = {"prefix_memory": PrefixMemory(), "whole_states": False}

            def embed(features: dict[str, Any]) -> Iterable[Any]:
                features = batch_to_device(features, device)
                features = self({**features, **steering}, **kwargs)
                features = {name: value for name, value in features.items() if name not in steering}
                if hidden_states:
                    features["token_embeddings"] = hidden_states.pop()
                embeddings = truncate_embeddings(features["sentence_embedding"], truncate_dim)
                features["sentence_embedding"] = normalize(embeddings, dim=1) if normalize_embeddings else embeddings
                return _read_out(features, output_value, save_to_cpu)

            embedded = run_batches(
                estimate_tokens(self, inputs, kwargs),
                partial(prepare, self, inputs, kwargs),
                embed,
                batch_size=batch_size,
                budget=self._budgets.setdefault(token_budget, TokenBudget(token_budget)),
                batch_cost=BATCH_COST_ON_CPU if of_type == "cpu" else BATCH_COST_ELSEWHERE,
                lookahead=lookahead_beside(of_type, downloads=allows_urls(self)),
            )
            for batch, of_batch in embedded:
                for index, row in zip(batch, of_batch, strict=True):
                    rows[index] = row
                progress.update(len(batch))
        if output_value == "sentence_embedding":
            return torch.stack(rows) if rows else torch.empty(0, device=device)
        return rows

    @contextmanager
    def _last_hidden_states(self, *, wanted: bool) -> Iterator[list[Tensor] | None]:
        """A list that receives the backbone's last hidden states ``(batch, seq_len, hidden)`` in every forward pass."""
        states: list[Tensor] = []
        # A checkpoint exported without remote code has no `backbone`, and writes token embeddings by itself.
        backbone = getattr(self.transformers_model, "backbone", None)
        if not wanted or backbone is None:
            yield None
            return
        thread = threading.get_ident()

        def keep(module: Any, arguments: Any, output: Any) -> None:
            # Another thread may be encoding with the same model.
            if threading.get_ident() == thread:
                states[:] = [output.last_hidden_state]

        hook = backbone.register_forward_hook(keep)
        try:
            yield states
        finally:
            hook.remove()


def _read_out(features: dict[str, Any], output_value: str | None, to_cpu: bool) -> Iterable[Any]:
    """What `encode` returns for each input of a batch."""
    embeddings = features["sentence_embedding"]
    if output_value == "sentence_embedding":
        return embeddings.cpu() if to_cpu else embeddings
    if output_value == "token_embeddings":
        if "token_embeddings" not in features:
            raise ValueError(
                "this checkpoint has no token embeddings, as its head makes one vector of all states; use "
                "output_value='sentence_embedding'."
            )
        states, masks = features["token_embeddings"], features["attention_mask"].bool()
        return [of_row[mask] for of_row, mask in zip(states, masks.to(states.device), strict=True)]
    count = len(embeddings)
    return [
        {
            name: value[row] if isinstance(value, Tensor) and value.ndim > 0 and len(value) == count else value
            for name, value in features.items()
        }
        for row in range(count)
    ]
