"""The processor of a generative checkpoint, made the processor of an embedder.

In: a checkpoint and a prompt. Out: an `MMEmbedProcessor` around the family's own processor, tried on a text and on a
picture before anything is built on it.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import transformers
from PIL import Image
from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.utils import cached_file

from .family_mmembed import image_only_processor, load_with_pillow
from .registration import MMEmbedModel, MMEmbedProcessor
from .rows_mmembed import HierarchicalPrompt

__all__ = ["wrap_processor"]

# SmolVLM's own processor needs num2words for its video prompts; its images are processed exactly as Idefics3's.
PROCESSOR_CLASSES = {"smolvlm": "Idefics3Processor"}
# Where transformers computes a row in another way beside pictures of other rows: Hunyuan numbers pictures through the
# batch, and Mllama lets words that are to see no picture see all of them, if there is one in the batch.
DEPENDS_ON_COMPANY = frozenset({"hunyuan_vl", "mllama"})
# Where a checkpoint may name its processor's class, in the order in which `AutoProcessor` looks.
NAMING_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


def wrap_processor(
    base: str | Path, config: PretrainedConfig, prompt: HierarchicalPrompt, *, revision: str | None = None
) -> MMEmbedProcessor:
    """The processor of a generative checkpoint, wrapped so that it writes `prompt` around every input.

    Args:
        base (`str` or `Path`): A local checkpoint directory or a Hub id.
        config (`PretrainedConfig`): Its config, which names the family.
        prompt ([`HierarchicalPrompt`]): The words around every input.
        revision (`str`, *optional*): Branch, tag or commit of a Hub id.

    Returns:
        [`MMEmbedProcessor`].

    Raises:
        ValueError: If the family has no processor for images and text alone, cannot prepare one of them alone, or computes
            an input in another way beside others, or the checkpoint has no chat template.
    """
    if config.model_type == MMEmbedModel.config_class.model_type:
        raise ValueError(f"{base} is an embedder already; convert its generative parent.")
    if config.model_type in DEPENDS_ON_COMPANY:
        raise ValueError(
            f"{base} is a {config.model_type!r} model, of which transformers computes an input in another way when others in "
            "its batch have pictures, so its vector would depend on its company; convert a model of another family."
        )
    name = _class_name(base, config, revision)
    if name is None:
        raise ValueError(
            f"{base} is a {config.model_type!r} model: no multimodal LLM that transformers has a processor for."
        )
    family = image_only_processor(name)
    parts = set(family.get_attributes())
    if not {"image_processor", "tokenizer"} <= parts:
        raise ValueError(f"{base} is a {config.model_type!r} model, whose {name} does not take images and text.")
    if others := sorted(parts - {"image_processor", "tokenizer"}):
        raise ValueError(
            f"{base} is a {config.model_type!r} model, whose {name} cannot do without {', '.join(others)}; only families "
            "of texts and pictures are supported."
        )
    base_processor = load_with_pillow(family, base, revision=revision or "main")
    attributes = {*family.get_attributes(), "chat_template"}
    stored = base_processor.to_dict()
    extra = {
        key: stored[key] for key in inspect.signature(family.__init__).parameters.keys() & stored.keys() - attributes
    }
    processor = MMEmbedProcessor(
        base_processor.image_processor,
        base_processor.tokenizer,
        chat_template=base_processor.chat_template,
        backbone_processor_class=name,
        backbone_processor_kwargs=extra,
        prompt=prompt,
    )
    _try(processor, f"{base} is a {config.model_type!r} model, whose {name}")
    return processor


def _class_name(base: str | Path, config: PretrainedConfig, revision: str | None) -> str | None:
    """The class that the checkpoint names, as a LLaVA with Pixtral's tower does; else that of its `model_type`."""
    of_family = PROCESSOR_MAPPING_NAMES.get(config.model_type)
    if config.model_type in PROCESSOR_CLASSES:
        return PROCESSOR_CLASSES[config.model_type]
    # A file that was left beside a text model says nothing; some families with pictures are known by that file alone.
    if of_family is None and config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return None
    # Offline, a file that is not in the cache is taken for one that does not exist, as `AutoProcessor` does it.
    quiet = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors")}
    for file in NAMING_FILES:
        path = cached_file(base, file, revision=revision, **quiet)
        named = json.loads(Path(path).read_text(encoding="utf-8")).get("processor_class") if path else None
        if named is not None and hasattr(transformers, named):
            return named
    return of_family


def _try(processor: MMEmbedProcessor, whose: str) -> None:
    """Prepare a text and a picture, each alone: better now than after gigabytes were copied.

    Raises:
        ValueError: If one of them cannot be prepared.
    """
    for what, text, image in (("a text", "a", None), ("a picture", None, Image.new("RGB", (64, 64)))):
        try:
            processor(text=[text], images=[image], return_tensors="pt")
        except Exception as error:  # whatever a family's code raises
            raise ValueError(
                f"{whose} cannot prepare {what} alone ({type(error).__name__}: {error}). Is its processor_config.json "
                "whole? If so, the family does not suit an embedder."
            ) from error
