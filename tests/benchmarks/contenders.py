"""Four ways to embed the same inputs with the same backbone and the same prompt, behind one call.

In: a generative checkpoint. Out: functions from a list of ``{"text", "image"}`` dicts to an array ``(inputs, dim)``.
All read the same rendered string, so their vectors agree; the speed command checks that before it measures.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import transformer as st_transformer
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
)

from hf_mmembed import MMEmbedder, convert, load_prompt
from hf_mmembed.model.family_mmembed import image_only_processor

__all__ = [
    "Encode",
    "batched_loop",
    "count_tokens",
    "ours",
    "plain_model",
    "plain_sentence_transformers",
    "research_loop",
]

Encode = Callable[[list[dict[str, Any]]], np.ndarray]

# What a checkpoint without remote code holds: the hierarchical prompt as a template, then pooling and normalisation.
TEMPLATE = (
    "{{- '<|im_start|>system\\n' + SYSTEM + '<|im_end|>\\n<|im_start|>user\\n' -}}"
    "{%- for m in messages if m.role != 'system' -%}"
    "{%- for c in m.content if c.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>{%- endfor -%}"
    "{%- for c in m.content if c.type == 'text' -%}{{- c.text -}}{%- endfor -%}{%- endfor -%}"
    "{{- '<|im_end|>\\n' -}}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


def _processor(base: Path) -> Qwen2VLProcessor:
    """The family's processor without its video part, which would need torchvision."""
    return image_only_processor("Qwen2VLProcessor")(
        image_processor=AutoImageProcessor.from_pretrained(base, backend="pil"),
        tokenizer=AutoTokenizer.from_pretrained(base),
        chat_template=AutoTokenizer.from_pretrained(base).chat_template,
    )


def ours(base: Path, folder: Path, batch_size: int) -> Encode:
    """`MMEmbedder` on the converted checkpoint."""
    model = MMEmbedder(str(convert(base, folder / "converted", dtype=torch.float32)), device="cpu")
    return lambda inputs: model.encode(inputs, batch_size=batch_size, show_progress_bar=False)


def plain_sentence_transformers(base: Path, folder: Path, batch_size: int) -> Encode:
    """`plain_model`, encoding."""
    model = plain_model(base, folder / "plain")
    return lambda inputs: model.encode(inputs, batch_size=batch_size, show_progress_bar=False)


def plain_model(base: Path, out: Path) -> SentenceTransformer:
    """`SentenceTransformer` on the stock backbone with the prompt as a template: configuration only, no code of ours.

    Args:
        base: Generative checkpoint.
        out: Where the configuration is written.
    """
    AutoModel.from_pretrained(base, dtype=torch.float32).save_pretrained(out)
    processor = _processor(base)
    processor.chat_template = TEMPLATE.replace("SYSTEM", json.dumps(load_prompt("saha").system))
    processor.save_pretrained(out)
    read = {"method": "forward", "method_output_name": "last_hidden_state"}
    files = {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
        ],
        "sentence_bert_config.json": {
            "transformer_task": "feature-extraction",
            "module_output_name": "token_embeddings",
            "unpad_inputs": False,
            "modality_config": {
                "text": read,
                "image": read,
                "image+text": read,
                "message": {**read, "format": "structured"},
            },
            "processing_kwargs": {
                "chat_template": {"add_generation_prompt": True, "sanitize_control_tokens": True},
            },
        },
        "config_sentence_transformers.json": {"model_type": "SentenceTransformer"},
        "1_Pooling/config.json": {
            "embedding_dimension": AutoConfig.from_pretrained(base).get_text_config().hidden_size,
            "pooling_mode": "lasttoken",
        },
        "2_Normalize/config.json": {},
    }
    for name, content in files.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(json.dumps(content), encoding="utf-8")
    with patch.object(st_transformer.AutoProcessor, "from_pretrained", lambda *_, **__: processor):
        return SentenceTransformer(str(out), device="cpu")


def research_loop(base: Path, batch_size: int) -> Encode:
    """The loop of the field's research code: batches in the given order, all logits, all hidden states.

    The processor reads one input at a time, as in VLM2Vec's ``Qwen2_VL_process_fn`` (src/model/processor.py) and in what
    was made from it, SaHa's code among them: processors of the time could not take inputs with and without pictures
    in one call.
    """
    return _loop(base, batch_size, _one_by_one)


def batched_loop(base: Path, batch_size: int) -> Encode:
    """The same with one call of the processor for a whole batch: the least that such a loop needs today."""
    return _loop(base, batch_size, _batch)


def _loop(base: Path, batch_size: int, prepare: Callable[[Qwen2VLProcessor, list[dict[str, Any]]], Any]) -> Encode:
    model = Qwen2VLForConditionalGeneration.from_pretrained(base, dtype=torch.float32).eval()
    processor = _processor(base)
    processor.tokenizer.padding_side = "left"

    @torch.no_grad()
    def encode(inputs: list[dict[str, Any]]) -> np.ndarray:
        vectors = []
        for start in range(0, len(inputs), batch_size):
            batch = prepare(processor, inputs[start : start + batch_size])
            states = model(**batch, output_hidden_states=True, return_dict=True).hidden_states[-1]
            vectors.append(torch.nn.functional.normalize(states[:, -1].float(), dim=-1).numpy())
        return np.concatenate(vectors)

    return encode


def count_tokens(base: Path, inputs: list[dict[str, Any]]) -> int:
    """Tokens that the backbone reads for these inputs, padding left out."""
    processor = _processor(base)
    return sum(int(_batch(processor, [item])["attention_mask"].sum()) for item in inputs)


def _batch(processor: Qwen2VLProcessor, inputs: list[dict[str, Any]]) -> Any:
    texts, images = [], []
    for item in inputs:
        content = [{"type": "image"}] if "image" in item else []
        content += [{"type": "text", "text": item["text"]}] if "text" in item else []
        turns = [
            {"role": "system", "content": [{"type": "text", "text": load_prompt("saha").system}]},
            {"role": "user", "content": content},
        ]
        texts.append(processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        images += [_opened(item["image"])] if "image" in item else []
    return processor(text=texts, images=images or None, padding=True, return_tensors="pt")


def _one_by_one(processor: Qwen2VLProcessor, inputs: list[dict[str, Any]]) -> dict[str, Any]:
    rows = [_batch(processor, [item]) for item in inputs]
    batch = dict(
        processor.tokenizer.pad({"input_ids": [row["input_ids"][0].tolist() for row in rows]}, return_tensors="pt")
    )
    batch["mm_token_type_ids"] = (batch["input_ids"] == processor.image_token_id).int()
    for name in ("pixel_values", "image_grid_thw"):
        if parts := [row[name] for row in rows if name in row]:
            batch[name] = torch.cat(parts)
    return batch


def _opened(image: Image.Image | str) -> Image.Image:
    return Image.open(image).convert("RGB") if isinstance(image, str) else image
