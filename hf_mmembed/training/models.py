"""What can be trained, and what comes out.

In: the directory or Hub id of a multimodal LLM, of an embedder, or of an adapter over one. Out: an `MMEmbedder` whose
trainable weights are those that should be; after training, one directory that `SentenceTransformer` opens at once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from sentence_transformers.util import is_sentence_transformer_model
from transformers import set_seed
from transformers.utils import find_adapter_config_file

from hf_mmembed.files import write_atomically
from hf_mmembed.hub import card_of
from hf_mmembed.model.convert import convert
from hf_mmembed.model.presets import load_prompt
from hf_mmembed.processes import world
from hf_mmembed.sentence_transformer import MMEmbedder
from hf_mmembed.staging import replaced
from hf_mmembed.visible import visible

from .arguments import SaHaTrainingArguments

__all__ = [
    "adapter_of",
    "add_lora",
    "open_embedder",
    "open_for_training",
    "save_embedder",
    "save_result",
    "weight_files",
]

logger = logging.getLogger(__name__)

# Of each file of weights this many pieces are read, spread evenly: one end alone may be a vision tower, which training
# often leaves as it was.
_PIECES, _PIECE = 256, 2**14


def open_for_training(
    model: str | os.PathLike[str],
    args: SaHaTrainingArguments,
    *,
    prompt: str | Path = "saha",
    dtype: str | torch.dtype = "auto",
    device: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> MMEmbedder:
    """An embedder with the weights to train switched on and the others off.

    Args:
        model: A converted embedder; or a multimodal LLM, which is converted into ``embedder`` inside the output
            directory; or an adapter over an embedder, whose training goes on.
        args: Say whether to train an adapter and of what kind. An adapter that is there already keeps its kind.
        prompt: What to convert a multimodal LLM with. Defaults to ``"saha"``.
        dtype: Of the frozen weights. Defaults to ``"auto"``, that of the checkpoint. What is trained is in float32.
        device: Where it is opened. Defaults to the best there is.
        model_kwargs: More for ``from_pretrained``.

    Raises:
        OSError: `model` cannot be read.
        ValueError: `model` is nothing of the above, the output directory holds an ``embedder`` of another one, or no
            layer is called as `args` say.
    """
    embedder = open_embedder(
        model, args.output_dir, prompt=prompt, dtype=dtype, device=device, model_kwargs=model_kwargs
    )
    set_seed(args.seed)  # of the fresh adapter
    if adapter_of(embedder):
        for name, parameter in embedder.named_parameters():
            parameter.requires_grad_("lora_" in name)
    elif args.lora_rank:
        add_lora(embedder, args)
    for parameter in embedder.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return embedder


def open_embedder(
    model: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    *,
    prompt: str | Path = "saha",
    dtype: str | torch.dtype = "auto",
    device: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> MMEmbedder:
    """An embedder as it is, converted first where that is still to be done.

    Args:
        model: As for `open_for_training`, as are the rest.
        directory: A multimodal LLM is converted into ``embedder`` in it, by the main process.
        prompt: What to convert it with.
        dtype: Of all weights.
        device: Where it is opened.
        model_kwargs: More for ``from_pretrained``.

    Raises:
        OSError: `model` cannot be read.
        ValueError: `model` is nothing of the above, or ``embedder`` was made of another one or with another prompt.
    """
    path = str(Path(model).resolve()) if Path(model).is_dir() else str(model)
    converted = Path(directory).resolve() / "embedder"
    made = _made_of(converted)
    # Nothing more is read of a base that has been converted, so it may be gone; the Hub would be asked for its path.
    known = made is not None and not Path(path).is_dir() and _may_name(path, made["model"])
    if known or (find_adapter_config_file(path) is None and not is_sentence_transformer_model(path)):
        world().once(partial(_convert_once, path, converted, prompt))
        path = str(converted)
    return MMEmbedder(path, device=device, model_kwargs={"dtype": dtype, **(model_kwargs or {})})


def _convert_once(path: str, converted: Path, prompt: str | Path) -> None:
    """Convert what is not converted yet.

    Raises:
        OSError: The model cannot be read, or the embedder not be written.
        ValueError: The model cannot be converted, or what is there already cannot be used.
    """
    made = _made_of(converted)
    if made is None:
        logger.info("converting %s to the embedder %s", path, converted)
        record = _record_beside(converted)
        # A run that is killed in between must not leave that of another model beside the new one.
        record.unlink(missing_ok=True)
        convert(path, converted, prompt=prompt)
        asked = {"model": path, "weights": weight_files(path), "prompt": asdict(load_prompt(prompt))}
        write_atomically(record, f"{json.dumps(asked, indent=2)}\n".encode())
    elif (difference := _difference(made, path, prompt)) is not None:
        raise ValueError(
            f"{converted} was made {difference}; choose another output directory, or delete {converted}, without which "
            "adapters over it cannot be opened."
        )


def _difference(made: Mapping[str, Any], path: str, prompt: str | Path) -> str | None:
    """What an embedder was made of, or with, if not of this model and with this prompt."""
    weights = weight_files(path)
    if weights and made["weights"]:  # wherever they lie by now
        if weights != made["weights"]:
            return f"of {made['model']}, with other weights than those in {path}"
    elif not _may_name(path, made["model"]):
        return f"of {made['model']}, not of {path}"
    return None if made["prompt"] in (None, asdict(load_prompt(prompt))) else "with another prompt"


def _made_of(converted: Path) -> dict[str, Any] | None:
    """The model, weights and prompt an embedder was made of, as far as is known; None if there is no embedder."""
    if not (converted / "modules.json").is_file():
        return None
    if (record := _record_beside(converted)).is_file():
        return json.loads(record.read_text(encoding="utf-8"))
    # An earlier version made it, or a run that was killed right after.
    config = json.loads((converted / "config.json").read_text(encoding="utf-8"))
    return {"model": config["base_model"], "weights": {}, "prompt": None}


def _record_beside(converted: Path) -> Path:
    """Not inside: a converted checkpoint may be published, and the record names a path."""
    return converted.with_suffix(".json")


def _may_name(path: str, made: str) -> bool:
    """Whether `path` is the Hub id `made`, or may be where the directory `made` was, moved perhaps with all around it."""
    parts = Path(path).parts
    if Path(path).is_absolute() or ".." in parts:
        parts = parts[-1:]
    # Without a record, the name alone of a directory is known; that of nearly every model on the Hub has two parts.
    directory = Path(made).is_absolute() or "/" not in made
    return path == made or (directory and Path(made).parts[-len(parts) :] == parts)


def weight_files(path: str) -> dict[str, list[int | str]]:
    """Size and a digest of parts of each file of weights in a directory, in a moment however large they are."""
    found: dict[str, list[int | str]] = {}
    for file in visible(Path(path), "*.safetensors") if Path(path).is_dir() else []:
        size, digest = file.stat().st_size, hashlib.sha256()
        with file.open("rb") as weights:
            for place in range(0, size, max(size // _PIECES, _PIECE)):
                weights.seek(place)
                digest.update(weights.read(_PIECE))
        found[file.name] = [size, digest.hexdigest()]
    return found


def adapter_of(embedder: MMEmbedder) -> LoraConfig | None:
    """The config of the adapter in an embedder, if there is one."""
    return (getattr(embedder.transformers_model, "peft_config", None) or {}).get("default")


def add_lora(embedder: MMEmbedder, args: SaHaTrainingArguments) -> None:
    """Put a fresh LoRA adapter on the language model and freeze everything else.

    The adapter names the commit or revision of a base from the Hub, over which alone it means anything.

    Args:
        embedder: Without an adapter.
        args: Rank, scale, dropout and names of the layers.

    Raises:
        ValueError: The language model has no linear layers of these names.
    """
    model = embedder.transformers_model
    decoder = model.backbone.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    pattern = rf"{re.escape(prefix)}\.(.*\.)?({'|'.join(map(re.escape, args.lora_target_modules))})"
    matches = [match for name, _ in model.named_modules() if (match := re.fullmatch(pattern, name))]
    found = {match[2] for match in matches}
    if not found:
        linear = {
            name.rsplit(".", 1)[-1] for name, part in decoder.named_modules() if isinstance(part, torch.nn.Linear)
        }
        raise ValueError(
            f"the language model has no layers called {', '.join(args.lora_target_modules)}; its linear layers are "
            f"{', '.join(sorted(linear))}. Set lora_target_modules."
        )
    if missing := sorted(set(args.lora_target_modules) - found):
        logger.warning("no layer of the language model is called %s: nothing is trained there", ", ".join(missing))
    if passed_over := _passed_over(decoder, [match[0].removeprefix(f"{prefix}.") for match in matches]):
        logger.warning(
            "some blocks are of another kind, and layers of theirs get no adapter: %s; add them to lora_target_modules "
            "to train them too",
            ", ".join(passed_over),
        )
    # Of a base from the Hub, whose main branch will move on; transformers does not keep it.
    revision = None if Path(model.name_or_path).is_dir() else embedder.model_card_data.base_model_revision
    embedder.add_adapter(
        LoraConfig(
            revision=revision,
            r=args.lora_rank,
            lora_alpha=args.lora_alpha,
            lora_dropout=args.lora_dropout,
            use_dora=args.use_dora,
            init_lora_weights="gaussian",
            target_modules=pattern,
        )
    )


def _passed_over(decoder: torch.nn.Module, reached: list[str]) -> list[str]:
    """Linear layers in parts of blocks that no adapter reaches, where other blocks have more parts that one does.

    A hybrid, as Qwen3.5, has blocks of linear attention whose layers have names of their own.
    """
    parts = {".".join(name.split(".")[:3]) for name in reached}  # as in layers.0.mlp
    blocks = list(enumerate(getattr(decoder, "layers", ())))
    counts = [sum(part.startswith(f"layers.{number}.") for part in parts) for number, _ in blocks]
    return sorted(
        {
            f"{name}.{layer}"
            for (number, block), count in zip(blocks, counts, strict=True)
            for name, part in block.named_children()
            for layer, module in part.named_modules()
            if count < max(counts) and isinstance(module, torch.nn.Linear) and f"layers.{number}.{name}" not in parts
        }
    )


def save_embedder(embedder: MMEmbedder, directory: str | os.PathLike[str]) -> None:
    """Write an embedder, or its adapter, without a card: that of sentence-transformers shows training data.

    Args:
        embedder: With or without an adapter.
        directory: Written in place; see `save_result` for one that appears at once.
    """
    embedder.save_pretrained(str(directory), create_model_card=False)


def save_result(
    embedder: MMEmbedder, directory: str | os.PathLike[str], *, merged: bool, record: Mapping[str, str] | None = None
) -> Path:
    """Write what was trained, and a card that says how; the directory appears at once and complete.

    Args:
        embedder: As trained.
        directory: A result that is there already is replaced.
        merged: Add an adapter to the weights, so that neither PEFT nor the base is needed to open the result.
        record: More files by name, such as those of `record_of`, from which the card is made.

    Returns:
        `directory`.

    Raises:
        OSError: The disk is full.
        ValueError: Another process is writing to `directory`.
    """
    directory = Path(directory)
    with replaced(directory) as written:
        save_embedder(embedder, written)
        if merged and (adapter := adapter_of(embedder)):
            name = adapter.base_model_name_or_path
            revision = None if Path(name).is_dir() else adapter.revision
            base: Any = MMEmbedder(name, revision=revision, device="cpu")  # the device may be full
            base[0].processor = embedder[
                0
            ].processor  # its prompt and image size may have been chosen for this training
            base[0].model = PeftModel.from_pretrained(base[0].model, written).merge_and_unload()
            shutil.rmtree(written)
            save_embedder(base, written)
        for name, content in (record or {}).items():
            (written / name).write_text(content, encoding="utf-8")
        (written / "README.md").write_text(card_of(written, repo_id=directory.name), encoding="utf-8")
    return directory
