"""What every model of this package does with its checkpoint: it refuses a broken one and writes a complete one.

In: a directory or Hub id, or a model. Out: a model with all its weights, or a directory that sentence-transformers
opens as well. This file travels with the checkpoint, so it imports nothing but torch, transformers,
safetensors and its neighbours.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from .configuration_mmembed import attention_of_backbone
from .product_mmembed import quicken_products

__all__ = ["SENTENCE_TRANSFORMERS_FILES", "EmbeddingModel", "require_safetensors"]

# What `SentenceTransformer(dir)` reads: one Transformer module that hands on our `pooler_output`, so that pooling and
# normalisation have one definition. Truncation and control tokens are the processor's business, hence no suffix repair.
_READ_POOLER_OUTPUT = {"method": "forward", "method_output_name": "pooler_output"}
SENTENCE_TRANSFORMERS_FILES: dict[str, Any] = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
    ],
    "sentence_bert_config.json": {
        "transformer_task": "feature-extraction",
        "module_output_name": "sentence_embedding",
        "unpad_inputs": False,
        "modality_config": {
            "text": _READ_POOLER_OUTPUT,
            "image": _READ_POOLER_OUTPUT,
            "image+text": _READ_POOLER_OUTPUT,
            "message": {**_READ_POOLER_OUTPUT, "format": "structured"},
        },
        "processing_kwargs": {"chat_template": {"restore_suffix": False}},
    },
    "config_sentence_transformers.json": {
        "model_type": "SentenceTransformer",
        "prompts": {"query": "", "document": ""},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    },
}

# PEFT leaves `.weight` out of the names of DoRA's magnitudes; it reads both, but transformers 5.23 only the long ones.
_MAGNITUDE = "lora_magnitude_vector"
# Follows from the config of an AdaLoRA, and PEFT does not save it.
_CONSTANT = "ranknum"


def require_safetensors(path: str | os.PathLike, variant: str | None = None) -> None:
    """Refuse a directory without all of its safetensors weights, and say what to do about pickled ones.

    Args:
        path (`str` or `os.PathLike`): A checkpoint; what is no directory (a Hub id) passes.
        variant (`str`, *optional*): Of `from_pretrained`; shards of a variant are left to it.

    Raises:
        OSError: If the directory holds no `*.safetensors`, or lacks some of those that its index names.
    """
    folder = Path(path)
    if not folder.is_dir():
        return
    if any(folder.glob("*.safetensors")):
        if variant is None and not (folder / "adapter_config.json").exists():
            _require_shards(folder)
        return
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if not pickled:
        raise OSError(f"{path} holds no weights: model.safetensors is missing; download or copy the checkpoint again.")
    raise OSError(
        f"{path} holds only pickled weights ({', '.join(pickled)}), which can run code when they are read; give a "
        "checkpoint with model.safetensors. If you trust the file, open the checkpoint with transformers' class for it "
        "and save it again: save_pretrained writes safetensors."
    )


def _require_shards(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists() or not index.exists():
        return
    try:
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        missing = sorted(name for name in named if not (folder / name).exists())
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise OSError(f"{index} is no index of weights ({error!r}); download or copy it again.") from error
    if missing:
        raise OSError(
            f"{folder} lacks {len(missing)} of the {len(named)} weight files that its index names, the first is "
            f"{missing[0]}; download or copy them again."
        )


class EmbeddingModel(PreTrainedModel):
    """A model over a backbone of transformers, whose checkpoint is complete or an error."""

    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """As `PreTrainedModel.from_pretrained`, but it reads safetensors only and refuses incomplete weights.

        transformers fills weights that a checkpoint lacks with random numbers and a warning; an embedder would then
        return plausible nonsense.

        `attn_implementation` may be one word, or a dict by part of the backbone, such as `{"text_config":
        "flash_attention_2", "vision_config": "sdpa"}`.

        Raises:
            OSError: If there is no safetensors file, or one that cannot be read.
            ValueError: If weights are missing or have the wrong shape.
        """
        kwargs["use_safetensors"] = True
        if "attn_implementation" in kwargs:
            kwargs["attn_implementation"] = attention_of_backbone(kwargs["attn_implementation"])
        kwargs["ignore_mismatched_sizes"] = True  # they are an error all the same, but one that names them
        with_info = kwargs.pop("output_loading_info", False)
        path = pretrained_model_name_or_path
        if path is not None:
            require_safetensors(Path(path, kwargs.get("subfolder", "")), kwargs.get("variant"))
        if (revision := _revision_of_base(path, kwargs)) is not None:
            kwargs["revision"] = revision
        try:
            model, info = super().from_pretrained(path, *args, output_loading_info=True, **kwargs)
        except SafetensorError as error:
            raise OSError(f"{path}: the weights cannot be read ({error}); download or copy them again.") from error
        _require_complete(path, info["missing_keys"], info["mismatched_keys"], "config.json")
        # Not before: who quantises while loading knows torch's linear layers only.
        quicken_products(model)
        return (model, info) if with_info else model

    def _adjust_missing_and_unexpected_keys(self, loading_info: Any) -> None:
        super()._adjust_missing_and_unexpected_keys(loading_info)
        # Of a directory with an adapter, `from_pretrained` is told what the adapter lacks, and of its base nothing.
        _require_complete(self.name_or_path, loading_info.missing_keys, loading_info.mismatched_keys, "config.json")

    def set_attn_implementation(self, attn_implementation: str | dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """As `PreTrainedModel.set_attn_implementation`; a dict names parts of the backbone, as in `from_pretrained`."""
        super().set_attn_implementation(attention_of_backbone(attn_implementation), *args, **kwargs)

    def load_adapter(
        self,
        peft_model_id: str | os.PathLike | None = None,
        adapter_name: str | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """As `PreTrainedModel.load_adapter`, but it knows DoRA as PEFT writes it and refuses an incomplete adapter.

        The weights of a LoRA are in float32 at least, as PEFT has them, also over a model of less precision.

        Raises:
            ValueError: If weights are missing or have the wrong shape.
        """
        # Here, as these are young parts of transformers, and who loads no adapter shall not depend on them.
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming
        from transformers.modeling_utils import LoadStateDictConfig

        load_config = kwargs.pop("load_config", None) or LoadStateDictConfig()
        mapping = load_config.weight_mapping or get_model_conversion_mapping(self)
        # Behind the renaming that puts the adapter's name in.
        magnitude = WeightRenaming(rf"({_MAGNITUDE}\.[^.]+)$", r"\1.weight")
        # In the model's bfloat16, what a short training changed would be rounded away.
        dtypes = {**load_config.dtype_plan, "lora_": torch.promote_types(self.dtype, torch.float32)}
        load_config = replace(
            load_config, weight_mapping=[*mapping, magnitude], ignore_mismatched_sizes=True, dtype_plan=dtypes
        )
        info = super().load_adapter(peft_model_id, adapter_name, *args, load_config=load_config, **kwargs)
        # An adapter called "a" makes transformers miss every weight with that letter in its name.
        parts = {name: name.split(".") for name in info.missing_keys}
        missing = [
            name for name in parts if (adapter_name or "default") in parts[name] and _CONSTANT not in parts[name]
        ]
        source = peft_model_id or load_config.pretrained_model_name_or_path
        _require_complete(f"the adapter {source}", missing, info.mismatched_keys, "adapter_config.json")
        return info

    def get_adapter_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As `PreTrainedModel.get_adapter_state_dict`, in names that PEFT and transformers both read."""
        tensors = super().get_adapter_state_dict(*args, **kwargs)
        return {f"{name}.weight" if name.endswith(_MAGNITUDE) else name: value for name, value in tensors.items()}

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """As `PreTrainedModel.save_pretrained`, plus the three files that sentence-transformers needs, where absent.

        Without them sentence-transformers would open the directory with mean pooling and no normalisation.
        """
        super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            _write_where_absent(Path(save_directory))

    def _upload_modified_files(
        self,
        working_dir: str | os.PathLike,
        repo_id: str,
        files_timestamps: dict[str, float],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        # With `push_to_hub=True`, transformers uploads before its `save_pretrained` returns, and of what was there
        # before only what it wrote again.
        _write_where_absent(Path(working_dir))
        times = {name: time for name, time in files_timestamps.items() if name not in SENTENCE_TRANSFORMERS_FILES}
        return super()._upload_modified_files(working_dir, repo_id, times, *args, **kwargs)


def _write_where_absent(folder: Path) -> None:
    for name, content in SENTENCE_TRANSFORMERS_FILES.items():
        path = folder / name
        if not path.exists():
            temporary = path.with_name(path.name + ".tmp")
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            os.replace(temporary, path)


def _revision_of_base(base: Any, kwargs: dict[str, Any]) -> str | None:
    """The commit of its base that an adapter names, where transformers would take the newest: it fits no other weights."""
    from transformers.utils.peft_utils import find_adapter_config_file

    where = dict(kwargs.get("adapter_kwargs") or {})
    adapter = where.pop("_adapter_model_path", None)
    if adapter is None or Path(base).is_dir():
        return None
    where |= {name: kwargs[name] for name in ("cache_dir", "local_files_only") if name in kwargs}
    file = find_adapter_config_file(adapter, **where)
    return None if file is None else json.loads(Path(file).read_text(encoding="utf-8")).get("revision")


def _require_complete(source: Any, missing: Iterable[str], misshapen: Iterable[tuple[Any, ...]], config: str) -> None:
    names = sorted(missing) + sorted(name for name, *_ in misshapen)
    if names:
        raise ValueError(
            f"{source}: {len(names)} weights are missing or have another shape than {config} says, the first is "
            f"{names[0]!r}. The checkpoint is incomplete or belongs to another config; save or download it again."
        )
