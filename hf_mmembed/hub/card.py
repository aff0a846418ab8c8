"""Model cards, rendered from what was really run.

In: a checkpoint directory, with whatever its makers left in it (config, processor, `recipe.yaml`, `mining.json`,
`training.json`, `.eval_results/`). Out: Markdown with metadata. What is not recorded is not claimed: a section without
data is left out.

The templates lie in `model_cards/` of the repository, and inside the package where it was installed as a wheel.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, metadata_load
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hf_mmembed.model.convert import MARKER
from hf_mmembed.opening import may_be_on_the_hub
from hf_mmembed.shipped import SHIPPED
from hf_mmembed.visible import visible

from .golden import FOLDER

__all__ = ["METADATA", "RECORD", "card_of", "facts_of", "metadata_errors", "render_card", "template_folder"]

logger = logging.getLogger(__name__)

_SHIPPED_FOLDER = "generative"  # of a local base, `convert` records this much
_WITH_OUR_CODE = ("mmembed", "mmembed_unified")
# How lines begin that only a tool writes, and that nobody leaves in a card of his own.
_WRITTEN_BY_TOOLS = (
    MARKER.partition(" from ")[0],
    "<!-- This model card has been generated automatically according to",  # transformers' Trainer
    "# Model Card for Model ID",  # huggingface_hub, for PEFT and transformers
    "*List how the model may foreseeably be misused and address",  # sentence-transformers
)

# What training leaves beside the weights for the card.
RECORD = ("training.json", "mining.json", "recipe.yaml")

# What the metadata of a card of ours may hold: field -> (types, allowed values or None). A card that somebody wrote may
# hold whatever the Hub takes, which is more and changes.
METADATA: dict[str, tuple[tuple[type, ...], tuple[str, ...] | None]] = {
    "library_name": ((str,), ("sentence-transformers", "transformers", "peft")),
    "pipeline_tag": ((str,), ("sentence-similarity", "feature-extraction", "visual-document-retrieval")),
    "tags": ((list,), None),
    "license": ((str,), None),
    "language": ((str, list), None),
    "base_model": ((str, list), None),
    "base_model_relation": ((str,), ("adapter", "finetune", "merge", "quantized")),
    "datasets": ((str, list), None),
    "metrics": ((list,), None),
    "license_name": ((str,), None),
    "license_link": ((str,), None),
}
_REQUIRED = ("library_name", "pipeline_tag", "tags")
# Of these the Hub takes one text as well as a list of them.
_LISTS = ("tags", "license", "language", "base_model", "datasets", "metrics")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")


def template_folder() -> Path:
    """Where the templates are."""
    in_package = Path(__file__).parent / "model_cards"
    return in_package if in_package.is_dir() else Path(__file__).parents[2] / "model_cards"


def render_card(template: str, data: Mapping[str, Any]) -> str:
    """Fill a template.

    Args:
        template: File name in the folder of templates.
        data: Its variables. A variable that the template uses and that is missing is an error, never a gap.

    Returns:
        The card.

    Raises:
        ValueError: The metadata of the card is not what the Hub takes.
        jinja2.UndefinedError: A variable is missing.
    """
    environment = Environment(
        loader=FileSystemLoader(template_folder()), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    environment.filters |= {"thousands": lambda number: f"{number:,}", "yaml": _as_yaml}
    card = environment.get_template(template).render(**data)
    if errors := metadata_errors(card):
        raise ValueError(f"the card made from {template} has wrong metadata: {'; '.join(errors)}")
    return card


def metadata_errors(card: str) -> list[str]:
    """What is wrong with the metadata of a card of ours, by an offline schema; empty when nothing is.

    Example:
        >>> metadata_errors("---\\nlibrary_name: sentence-transformers\\npipeline_tag: nonsense\\ntags: [a]\\n---\\n")
        ["pipeline_tag is 'nonsense'; it must be one of sentence-similarity, feature-extraction, visual-document-retrieval"]
    """
    data = ModelCard(card, ignore_metadata_errors=False).data.to_dict()
    errors = [f"{name} is missing" for name in _REQUIRED if name not in data]
    for name, value in data.items():
        if name not in METADATA:
            errors.append(f"{name} is no field of a model card that this project uses")
            continue
        types, allowed = METADATA[name]
        if not isinstance(value, types):
            errors.append(f"{name} is a {type(value).__name__}")
        elif allowed is not None and value not in allowed:
            errors.append(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
    if data.get("license") == "other" and "license_name" not in data:
        errors.append("license is 'other', which needs license_name")
    return errors


def _errors_of_written(readme: Path) -> list[str]:
    """What the Hub would refuse in the metadata of a card that somebody wrote, as far as is known without asking it."""
    try:
        data = metadata_load(readme) or {}
    except (yaml.YAMLError, ValueError) as error:
        return [f"the part between the lines --- cannot be read: {error}"]
    errors = []
    for name, value in data.items():
        if value is None:
            continue
        wanted = (str, list) if name in _LISTS else METADATA[name][0] if name in METADATA else (object,)
        values = value if isinstance(value, list) and name in _LISTS else [value]
        if not isinstance(value, wanted) or name in _LISTS and not all(isinstance(one, str) for one in values):
            errors.append(
                f"{name} is {value!r} to YAML, where the Hub takes text{' or a list of texts' * (name in _LISTS)}; put it "
                "in quotes or leave it out"
            )
        elif name == "license":
            errors += [
                f"license is {one!r}; the Hub takes an identifier in small letters, such as apache-2.0, or other with "
                "a license_name"
                for one in values
                if not _LICENSE.fullmatch(one)
            ]
        elif name == "base_model":
            errors += [
                f"base_model is {one!r}; the Hub takes the id of a model there, such as Qwen/Qwen2-VL-2B-Instruct; leave it "
                "out if the base is not on the Hub"
                for one in values
                if not may_be_on_the_hub(one)
            ]
    return errors


def card_of(directory: str | Path, *, repo_id: str, inherited: Mapping[str, str] | None = None) -> str:
    """The card of a checkpoint directory: the README.md that somebody wrote, or one rendered from its files.

    One that a tool wrote is not kept, which a warning says where it holds anything else than the card.

    Args:
        directory: A converted or fine-tuned checkpoint, a native export, or a PEFT adapter.
        repo_id: Named in the snippets.
        inherited: Fields of the licence, where no card of the directory or of its base names one.

    Raises:
        ValueError: A README.md that somebody wrote has metadata that is no YAML or that the Hub does not take.
    """
    directory = Path(directory)
    readme = directory / "README.md"
    # An empty one is what the shell leaves of a file that it redirects into.
    text = _text(readme)
    mark = _mark_of_a_tool(text or "")
    if text and mark is None:
        if errors := _errors_of_written(readme):
            raise ValueError(f"{readme.name} has wrong metadata: {'; '.join(errors)}")
        return readme.read_text(encoding="utf-8")
    facts = facts_of(directory, repo_id, inherited)
    if facts["is_local"] and not facts["license"]:
        logger.warning(
            "the base of %s is known by the name of a local directory alone, %r: if it is on the Hub, set base_model in the "
            "embedder's config.json to its id, so that the card says whose licence holds.",
            directory, facts["base"],
        )  # fmt: skip
    card = render_card("embedder.md.jinja", facts)
    if text and text != card.strip():
        logger.warning(
            "the README.md of %s was written by a tool, so a card made of the other files takes its place, without anything "
            "that was added by hand. To keep the README.md, delete its line %r.",
            directory, mark,
        )  # fmt: skip
    return card


def facts_of(directory: Path, repo_id: str, inherited: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What the files of a checkpoint say about it: the variables of `embedder.md.jinja`; arguments as in `card_of`."""
    adapter, training = _json(directory / "adapter_config.json"), _json(directory / "training.json")
    config, prompt = _json(directory / "config.json"), _prompt(directory)
    base: str | None = adapter.get("base_model_name_or_path") or config.get("base_model")
    base_revision = adapter.get("revision") or config.get("base_revision")
    license_fields = _license_of(directory, base) or dict(inherited or {})
    is_shipped = base is not None and SHIPPED in Path(base).parts  # the folder of its embedder is called so
    under_adapter = base
    if adapter and base is not None and (folder := Path(base)).is_dir():
        # The base knows how it is read, and of what it was made.
        under_adapter = f"path/to/{folder.name}"
        config, prompt = config or _json(folder / "config.json"), prompt or _prompt(folder)
        base = config.get("base_model") or folder.name
        base_revision = base_revision or config.get("base_revision")
    if is_shipped or _is_made_of_shipped(config):
        base, license_fields = SHIPPED, license_fields or {"license": "apache-2.0"}
    backbone = config.get("backbone_config", config)
    family = backbone.get("model_type")
    kind = "adapter" if adapter else "embedder" if config.get("model_type") in _WITH_OUR_CODE else "native"
    # A repository of the Hub has an owner; of a local base only the name is known.
    is_public = base is not None and base.count("/") == 1 and not Path(base).exists()
    metadata = {
        "library_name": "peft" if kind == "adapter" else "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": ["multimodal-embedding", "image-text-retrieval", "mmembed", *filter(None, [family])],
        "base_model": base if is_public else None,
        "base_model_relation": ("adapter" if kind == "adapter" else "finetune") if is_public else None,
        "datasets": training.get("datasets"),
        **license_fields,
    }
    return {
        "metadata": {name: value for name, value in metadata.items() if value},
        "repo_id": repo_id,
        "name": repo_id.rpartition("/")[2],
        "kind": kind,
        "family": family,
        "base": base,
        "base_revision": base_revision,
        "is_local": base is not None and base != SHIPPED and not is_public,
        "under_adapter": under_adapter,
        "is_shipped": is_shipped,
        "has_golden": "/" in repo_id or (directory / FOLDER).is_dir(),  # a push writes them
        "dimensions": config.get("embedding_dim")
        or {**backbone, **backbone.get("text_config", {})}.get("hidden_size"),
        "config": config,
        "adapter": adapter,
        "prompt": prompt,
        "license": license_fields,
        "recipe": _text(directory / "recipe.yaml"),
        "mining": _json(directory / "mining.json"),
        "training": training,
        "scores": _scores(directory / ".eval_results"),
        "marker": MARKER,
    }


def _mark_of_a_tool(card: str) -> str | None:
    """The line by which a card is known to be as a tool wrote it; None for one that somebody wrote."""
    return next((line for line in card.splitlines() if line.startswith(_WRITTEN_BY_TOOLS)), None)


def _is_made_of_shipped(config: Mapping[str, Any]) -> bool:
    """Whether an embedder was made of the shipped model, by the folder and the sizes that its config records."""
    if config.get("base_model") != _SHIPPED_FOLDER:
        return False
    # By its place, as `hf_mmembed.tiny` stands above this.
    shipped = _json(Path(__file__).parents[1] / "tiny" / _SHIPPED_FOLDER / "config.json")
    found = config.get("backbone_config", config)
    sizes = [("text_config", "vocab_size"), ("text_config", "hidden_size"), ("vision_config", "embed_dim")]
    return all(found.get(part, {}).get(size) == shipped[part][size] for part, size in sizes)


def _license_of(directory: Path, base: str | None) -> dict[str, str]:
    """The licence fields of the base model's card: a fine-tuned model inherits them."""
    for readme in (directory / "README.md", *([Path(base) / "README.md"] if base and Path(base).is_dir() else [])):
        if text := _text(readme):
            data = ModelCard(text).data.to_dict()
            fields = {name: str(data[name]) for name in ("license", "license_name", "license_link") if name in data}
            if fields:
                return fields
    return {}


def _scores(folder: Path) -> list[dict[str, Any]]:
    """Entries of `.eval_results/*.yaml`, in the layout of huggingface_hub's EvalResultEntry."""
    entries = []
    for path in visible(folder, "*.yaml"):
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
        entries += loaded if isinstance(loaded, list) else [loaded]
    return entries


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _prompt(directory: Path) -> dict[str, Any] | None:
    return _json(directory / "processor_config.json").get("prompt")


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def _as_yaml(fields: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(fields), sort_keys=False, allow_unicode=True).strip()
