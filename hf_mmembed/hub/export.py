"""An embedder without remote code: the backbone's stock architecture, a chat template, and sentence-transformers files.

In: an embedder checkpoint. Out: a directory that `SentenceTransformer(dir)` opens without `trust_remote_code` and that
servers such as vLLM read as the model family they know. The hierarchical prompt moves into the chat template, a
prelude that rewrites the conversation and then leaves it to the backbone's own template; pooling and normalisation
move into the modules of sentence-transformers. The numbers stay the same.

What stays behind is what only our processor does: long inputs are cut by the engine wherever its limit falls.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from hf_mmembed.adapters import base_of_adapter
from hf_mmembed.identity import local_checkpoint
from hf_mmembed.model.modeling_mmembed import MMEmbedModel
from hf_mmembed.model.processing_mmembed import TASK_DECLARATION, MMEmbedProcessor
from hf_mmembed.model.registration import UnifiedModel
from hf_mmembed.sentence_transformer import MMEmbedder
from hf_mmembed.staging import require_empty, staged

from .card import RECORD, card_of, facts_of
from .golden import golden_files

__all__ = ["export_native", "native_chat_template"]

_PRELUDE = """\
{%- set row = namespace(images=0, instruction=[], text=[]) -%}
{%- for message in messages -%}
{%- if message.role not in ["system", "user"] -%}
{{- raise_exception("this embedder reads system and user messages, not one of role '" ~ message.role ~ "'; leave it out") -}}
{%- endif -%}
{%- for block in ([{"type": "text", "text": message.content}] if message.content is string else message.content) -%}
{%- if block.type != "text" -%}{%- set row.images = row.images + 1 -%}
{%- elif message.role == "system" -%}{%- set row.instruction = row.instruction + [block.text] -%}
{%- else -%}{%- set row.text = row.text + [block.text] -%}{%- endif -%}
{%- endfor -%}
{%- endfor -%}
{%- set row.instruction = row.instruction | join("\\n") -%}
{%- set row.text = row.text | join("\\n") -%}
{%- for token in CONTROL_TOKENS -%}
{%- set spaced = token[0] ~ " " ~ token[1:] -%}
{%- set row.instruction = row.instruction | replace(token, spaced) -%}
{%- set row.text = row.text | replace(token, spaced) -%}
{%- endfor -%}
{%- set ended = row.instruction[-1:] | trim == "" -%}
{%- set words = row.instruction ~ ("" if ended or not row.text else SEPARATOR) ~ row.text -%}
{%- if IMAGE_TEXT and row.images -%}
{%- set space = "" if words[:1] | trim == "" else SEPARATOR -%}
{%- set words = (([IMAGE_TEXT] * row.images) | join(IMAGE_GAP)) ~ space ~ words -%}
{%- endif -%}
{%- if REPRESENT_DOCUMENTS or (task is defined and task == "query") -%}
{%- set ending = REPRESENT_IMAGE if row.images else REPRESENT_TEXT -%}
{%- if ending | trim or not words.endswith(ending) -%}{%- set words = words ~ ending -%}{%- endif -%}
{%- endif -%}
"""
_TURNS = """\
{%- set words = SYSTEM_IN_USER ~ words -%}
{%- set images = [] if IMAGE_TEXT else [{"type": "image"}] * row.images -%}
{%- set content = images + ([{"type": "text", "text": words}] if words or not images else []) -%}
{%- set messages = SYSTEM_TURN + [{"role": "user", "content": content}] -%}
{%- set add_generation_prompt = true %}"""
_WORDS_ALONE = "{{- words }}"


def export_native(model: str | Path, out: str | Path, *, revision: str | None = None) -> Path:
    """Write the embedder `model` as a checkpoint that needs neither this package nor remote code.

    Args:
        model: An embedder directory, or the id of one on the Hub. An adapter is merged into its base.
        out: The directory to write; it must not exist yet, or be empty.
        revision: Branch, tag or commit on the Hub.

    Returns:
        `out`. It appears at once and complete, or not at all; an empty directory gets its `config.json` last. Golden
        vectors of `model` are beside the weights.

    Raises:
        FileExistsError: `out` holds something already.
        ValueError: `model` is no embedder of this package, or reads out in a way that stock code cannot
            (`readout="pre_mlp"`, a truncated `embedding_dim`, the head of a unified model); or another process is writing
            to `out`.
    """
    out = Path(out)
    require_empty(out)
    directory, commit = local_checkpoint(model, revision)
    if commit is not None:
        snapshot_download(str(model), revision=commit, allow_patterns=["README.md", *RECORD])
    embedder = MMEmbedder(directory, device="cpu")
    inner, processor = embedder[0].model, embedder.processor
    if isinstance(inner, UnifiedModel):
        raise ValueError(
            f"{model} is a unified model: it embeds with a head of its own, {inner.config.head!r}, which no stock architecture "
            "has. Serve it with its remote code, or export an embedder made by `hf-mmembed convert` or trained from one."
        )
    if not isinstance(inner, MMEmbedModel) or not isinstance(processor, MMEmbedProcessor):
        raise ValueError(f"{model} is no embedder with our code, so it is native already or was never converted.")
    for field, usual in (("readout", "final"), ("embedding_dim", None)):
        if (found := getattr(inner.config, field)) != usual:
            raise ValueError(
                f"{model} has {field}={found!r}, which only our model code computes; export an embedder that was "
                f"converted with {field}={usual!r}, or serve this one with its remote code."
            )
    golden = golden_files(embedder)
    inner = _merged(inner, directory)
    with staged(out) as written:
        _save_stock_model(inner, written)
        family = processor.backbone_processor
        family.chat_template = native_chat_template(processor)
        family.save_pretrained(written)
        family.image_processor.save_pretrained(written)  # the video part of a stock processor reads this file
        _write_modules(written, embedder, inner.config.pooling)
        for file in golden:
            (written / file.path).parent.mkdir(exist_ok=True)
            (written / file.path).write_bytes(file.read())
        for name in RECORD:
            if (directory / name).is_file():
                shutil.copy(directory / name, written / name)
        facts = facts_of(directory, out.name)
        if (adapter := facts["adapter"]) and not facts["training"]:
            # It was trained, if nothing else is known of it.
            known = {"adapter": f"{adapter['peft_type']}, merged into the weights"}
            (written / "training.json").write_text(json.dumps(known) + "\n", encoding="utf-8")
        card = card_of(written, repo_id=out.name, inherited=facts["license"])
        (written / "README.md").write_text(card, encoding="utf-8")
    return out


def native_chat_template(processor: MMEmbedProcessor) -> str:
    """A chat template that renders a conversation of system and user messages to the string that `processor` renders.

    It begins with a prelude that gathers images, instruction and text, makes control tokens in them plain words, and
    writes the prompt around them; the backbone's own template follows, untouched. A message of another role is an error,
    a trace too: what is written ends where the assistant's turn begins.

    Args:
        processor: Of an embedder.

    Returns:
        Jinja, as transformers and vLLM read it.
    """
    prompt, family = processor.prompt, processor.backbone_processor
    image_text = ""
    if prompt.image_style != "template":
        image_text = family.image_token
        if image_text == "<|image_pad|>" and prompt.image_style == "inline":
            image_text = f"<|vision_start|>{image_text}<|vision_end|>"
    own_turn = bool(prompt.system) and processor.takes_system_role
    system = {"role": "system", "content": [{"type": "text", "text": prompt.system}]}
    constants = {
        "CONTROL_TOKENS": processor.control_tokens(),
        "SEPARATOR": prompt.separator,
        "IMAGE_TEXT": image_text,
        "IMAGE_GAP": prompt.separator if prompt.image_style == "bare" else "",
        "REPRESENT_DOCUMENTS": prompt.represent_documents,
        "REPRESENT_IMAGE": prompt.represent_image,
        "REPRESENT_TEXT": prompt.represent_text,
        "SYSTEM_TURN": [system] if own_turn else [],
        "SYSTEM_IN_USER": "" if own_turn or not prompt.system else f"{prompt.system}\n",
    }
    names = list(constants) if prompt.chat else [name for name in constants if not name.startswith("SYSTEM")]
    values = "".join(f"{{%- set {name} = {json.dumps(constants[name], ensure_ascii=False)} -%}}\n" for name in names)
    if not prompt.chat:
        return values + _PRELUDE + _WORDS_ALONE
    return values + _PRELUDE + _TURNS + processor.chat_template.removeprefix(TASK_DECLARATION)


def _merged(model: MMEmbedModel, directory: Path) -> MMEmbedModel:
    """The model without an adapter: if `directory` holds one, it is in the weights."""
    found = base_of_adapter(str(directory))
    if found is None:
        return model
    from peft import PeftModel  # of an extra; with an adapter it is there

    name, revision = found
    base: Any = MMEmbedder(name, revision=revision, device="cpu")
    merged: MMEmbedModel = PeftModel.from_pretrained(base[0].model, directory).merge_and_unload()
    return merged


def _save_stock_model(model: MMEmbedModel, directory: Path) -> None:
    """Save the backbone under the architecture and the weight names of the generative model it came from.

    Raises:
        ValueError: There are weights of an adapter beside those of the model.
    """
    config = model.backbone.config
    generative = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    with torch.device("meta"):
        stock = generative(config)
    # There is no language-model head: an embedder has none, and what opens the directory as one does not miss it.
    weights = {f"model.{name}": tensor for name, tensor in model.backbone.state_dict().items()}
    if adapters := [name for name in weights if "lora_" in name or ".base_layer." in name]:
        raise ValueError(
            f"{len(adapters)} weights are of an adapter that is not merged, the first is {adapters[0]!r}; merge it with "
            "PEFT's merge_and_unload, save the result and export that."
        )
    stock.to(dtype=model.dtype).save_pretrained(directory, state_dict=weights)
    path = directory / "config.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    stored["architectures"] = [generative.__name__]
    # Not read by the architecture; the card names them, again at each push.
    stored |= {name: value for name in ("base_model", "base_revision") if (value := getattr(model.config, name))}
    path.write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")


def _write_modules(directory: Path, embedder: SentenceTransformer, pooling: str) -> None:
    """The files that sentence-transformers reads: Transformer, Pooling and Normalize."""
    states = {"method": "forward", "method_output_name": "last_hidden_state"}
    home = "sentence_transformers.sentence_transformer.modules"
    dimension = embedder.get_embedding_dimension()
    assert dimension is not None  # None only for models without a fixed dimension
    modules = [("", "sentence_transformers.base.modules.transformer.Transformer")]
    for module in (Pooling(dimension, pooling_mode={"last": "lasttoken", "mean": "mean"}[pooling]), Normalize()):
        name = f"{len(modules)}_{type(module).__name__}"
        modules.append((name, f"{home}.{type(module).__name__.lower()}.{type(module).__name__}"))
        (directory / name).mkdir()
        module.save(str(directory / name))
    contents = {
        "modules.json": [
            {"idx": index, "name": str(index), "path": path, "type": kind}
            for index, (path, kind) in enumerate(modules)
        ],
        "sentence_bert_config.json": {
            "transformer_task": "feature-extraction",
            "unpad_inputs": False,
            "modality_config": {
                **dict.fromkeys(("text", "image", "image+text"), states),
                "message": {**states, "format": "structured"},
            },
            "module_output_name": "token_embeddings",
            "processing_kwargs": {"chat_template": {"add_generation_prompt": True, "restore_suffix": False}},
        },
        "config_sentence_transformers.json": {
            "model_type": "SentenceTransformer",
            "prompts": embedder.prompts,
            "default_prompt_name": embedder.default_prompt_name,
            "similarity_fn_name": "cosine",
        },
    }
    for name, content in contents.items():
        (directory / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
