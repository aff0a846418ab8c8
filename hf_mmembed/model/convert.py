"""From a generative multimodal LLM to an embedder checkpoint, without training.

In: a local directory or a Hub id of any checkpoint whose architecture is a multimodal LLM of transformers.
Out: one flat directory that transformers, sentence-transformers and PEFT open with the same numbers. The weights are
those of the inner model, unchanged; prompt, pooling and readout are written beside them.
"""

from __future__ import annotations

import logging
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ResolvedRevision, resolve_revision
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RevisionResolutionError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.utils import find_adapter_config_file
from transformers.utils import logging as transformers_logging

from hf_mmembed.staging import require_empty, staged

from .base_processor import wrap_processor
from .checkpoint_mmembed import require_safetensors
from .configuration_mmembed import quantization_of
from .picture_size import limit_pictures
from .presets import load_prompt
from .registration import MMEmbedConfig, MMEmbedModel
from .rows_mmembed import HierarchicalPrompt

__all__ = ["convert"]

logger = logging.getLogger(__name__)

# A card with this line is made anew by whoever publishes the directory.
MARKER = (
    "<!-- hf-mmembed: rendered from the files of this directory, again at each push; delete this line to keep what you "
    "change -->"
)

README = """---
{base_model}library_name: sentence-transformers
pipeline_tag: feature-extraction
tags: [mmembed, sentence-transformers, transformers, {family}]
---

{marker}

# {name}

`{origin}` as an embedding model for text, images and both: the same weights without the language-model head, read out
through a prompt. It was converted by hf-mmembed and not trained for embedding. The licence is that of `{origin}`.

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/directory", trust_remote_code=True)
queries = model.encode_query([{{"text": "a red circle"}}])
documents = model.encode_document([{{"text": "a circle that is red"}}])  # or {{"image": "picture.png"}}, or both
print(model.similarity(queries, documents))
```

| | |
|---|---|
| embedding | {dimension} dimensions, unit length, compared by cosine |
| readout, pooling | `{readout}`, `{pooling}` |
| system prompt | {system} |
| end of a query with text alone | {text} |
| end of a query with an image | {image} |
"""

# Beside weights that are quantised; some checkpoints hold them and say so in no config that transformers reads.
SCALES = re.compile(r"\b(weight_scale(_inv|_2)?|weight_packed|qweight|qzeros|absmax|SCB)$")

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")


def convert(
    base: str | Path,
    out: str | Path,
    *,
    prompt: str | Path | HierarchicalPrompt = "saha",
    readout: str = "final",
    pooling: str = "last",
    embedding_dim: int | None = None,
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
    longest_edge: int | None = None,
) -> Path:
    """Write the embedder made of the generative checkpoint `base` to the directory `out`.

    Args:
        base (`str` or `Path`): A local checkpoint directory or a Hub id, with safetensors weights.
        out (`str` or `Path`): The directory to write; it must not exist yet, or be empty.
        prompt (`str`, `Path` or [`HierarchicalPrompt`], defaults to `"saha"`): A preset, a YAML file or a prompt.
        readout (`str`, defaults to `"final"`): `"final"` or `"pre_mlp"`, see [`MMEmbedConfig`].
        pooling (`str`, defaults to `"last"`): `"last"` or `"mean"`.
        embedding_dim (`int`, *optional*): Keep this many dimensions. Defaults to all.
        dtype (`torch.dtype` or `str`, *optional*): Of the written weights. Defaults to that of the checkpoint.
        revision (`str`, *optional*): Branch, tag or commit of a Hub id; the commit is recorded in the config.
        longest_edge (`int`, *optional*): To what pictures are scaled down, as the model's image processor understands
            it: pixels in all for Qwen2-VL and its like, of the longer side for others. Stored with the processor.
            Defaults to what the checkpoint says.

    Returns:
        `Path`: `out`. It appears at once and complete, or not at all; an empty directory gets its `config.json` last.

    Raises:
        FileExistsError: If `out` holds something already.
        OSError: If `base` cannot be read or has no safetensors weights.
        ValueError: If a choice is unknown, `revision` is given for a directory, `base` is not a multimodal LLM with a
            chat template that reads both texts and pictures, does not scale pictures by `longest_edge`, or its weights are
            incomplete or quantised; or if another process is writing to `out`.
    """
    out = Path(out)
    require_empty(out)
    prompt = prompt if isinstance(prompt, HierarchicalPrompt) else load_prompt(prompt)
    if dtype is not None and str(dtype).removeprefix("torch.") not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; use one of {', '.join(map(repr, DTYPES))}.")
    commit = _resolved(base, revision)
    if find_adapter_config_file(str(base), revision=commit) is not None:
        raise ValueError(
            f"{base} is an adapter; merge it into its base first, with PEFT's merge_and_unload, and convert the result."
        )
    require_safetensors(base)
    config = AutoConfig.from_pretrained(base, revision=commit)
    if quantized := quantization_of(config) or quantization_of(config.get_text_config()):
        raise _quantized(base, repr(quantized))
    # A converted checkpoint may be published: of a local base, only the directory's name is recorded.
    origin = {
        "base_model": Path(base).resolve().name if Path(base).is_dir() else str(base),
        "base_revision": commit.resolved if commit else None,
    }
    processor = wrap_processor(base, config, prompt, revision=commit)
    if longest_edge is not None:
        limit_pictures(processor, longest_edge, base)
    backbone = _load_inner_model(base, dtype=dtype or "auto", revision=commit)
    backbone.config._name_or_path = origin["base_model"]
    # The text config says how far positions go; a tokenizer often says nothing or more.
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is not None:
        processor.tokenizer.model_max_length = min(processor.tokenizer.model_max_length, positions)
    model = MMEmbedModel.from_backbone(
        backbone, readout=readout, pooling=pooling, embedding_dim=embedding_dim, **origin
    )
    with staged(out) as written:
        # Of a group of processes the first alone would write the model, whoever converts.
        model.should_save_on_this_rank = lambda is_main_process: is_main_process
        model.save_pretrained(written)
        processor.save_pretrained(written)
        (written / "README.md").write_text(_readme(out.resolve().name, model.config, prompt, commit), encoding="utf-8")
    return out


def _readme(name: str, config: MMEmbedConfig, prompt: HierarchicalPrompt, commit: ResolvedRevision | None) -> str:
    """What the directory is and how to use it; the Hub links it to its base where that is a repository."""
    words = {key: f"`{value!r}`" if value else "none" for key, value in asdict(prompt).items()}
    return README.format(
        base_model=f"base_model: {config.base_model}\n" if commit else "",
        family=config.backbone_config.model_type,
        marker=MARKER,
        name=name,
        origin=config.base_model,
        dimension=config.projection_dim,
        readout=config.readout,
        pooling=config.pooling,
        system=words["system"],
        text=words["represent_text"],
        image=words["represent_image"],
    )


def _resolved(base: str | Path, revision: str | None) -> ResolvedRevision | None:
    """The commit that the revision of a Hub id means now, from which config, processor and weights are then read."""
    if Path(base).is_dir():
        if revision is not None:
            raise ValueError(f"{base} is a directory, which has no revision {revision!r}; leave `revision` out.")
        return None
    try:
        return resolve_revision(str(base), revision=revision)
    except (HFValidationError, HfHubHTTPError, RevisionResolutionError) as error:
        raise OSError(f"there is no directory {base}, and the Hub does not give it either: {error}") from error


def _load_inner_model(base: str | Path, **kwargs: Any) -> PreTrainedModel:
    """The model without its head, every weight of which comes from the checkpoint."""
    verbosity = transformers_logging.get_verbosity()
    # That the head is left over is the point, so transformers' table of unexpected weights is kept back.
    transformers_logging.set_verbosity_error()
    try:
        model, info = AutoModel.from_pretrained(
            base, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
    except SafetensorError as error:
        raise OSError(f"the weights of {base} cannot be read ({error}); download or copy them again.") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    if model.get_output_embeddings() is not None:
        raise ValueError(
            f"{base} is a {model.config.model_type!r} model, which transformers has as {type(model).__name__} only, not "
            "without its head; convert a model of another family."
        )
    if scales := sorted(filter(SCALES.search, info["unexpected_keys"])):
        raise _quantized(base, f"it holds {scales[0]!r}")
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{base} lacks {len(missing)} weights, the first is {missing[0]!r}; download it again.")
    if misshapen := sorted(info["mismatched_keys"]):
        name, found, expected = misshapen[0]
        raise ValueError(
            f"{len(misshapen)} weights of {base} have another shape than its config.json says, the first is {name!r}: "
            f"{tuple(found)} instead of {tuple(expected)}; download it again."
        )
    if unexpected := sorted(key for key in info["unexpected_keys"] if "lm_head" not in key):
        logger.warning("%s holds %d weights that its architecture does not use: %s", base, len(unexpected), unexpected)
    return model


def _quantized(base: str | Path, why: str) -> ValueError:
    return ValueError(
        f"{base} is quantised ({why}), and such weights cannot be converted. Convert the unquantised checkpoint, and "
        "quantise the embedder when you open it: MMEmbedder(path, model_kwargs={'quantization_config': ...})."
    )
