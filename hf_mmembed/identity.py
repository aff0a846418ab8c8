"""Which model, with which prompt, made a set of embeddings.

In: a checkpoint directory or Hub id. Out: a `ModelIdentity` that is written beside the embeddings and compared before
anything is added to them or searched in them: vectors of two models, or of one model under two prompts, do not live
in one space.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from hf_mmembed.visible import visible

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hf_mmembed.model.rows_mmembed import HierarchicalPrompt
    from hf_mmembed.sentence_transformer import MMEmbedder

__all__ = [
    "ModelIdentity",
    "identify",
    "inert_adapters",
    "local_checkpoint",
    "open_identified",
    "prompt_hash",
    "settings_digest",
    "weights_digest",
]

# What decides the numbers. Not the README, not the *.py files: `hf_mmembed` runs its own.
_FILES = (
    "*.safetensors",
    "adapter_config.json",
    "config.json",
    "config_sentence_transformers.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer_config.json",
)
# Fields that say who wrote a file and from where; the numbers do not depend on them.
_VOLATILE = ("transformers_version", "__version__", "_name_or_path", "base_model", "base_revision")


@dataclass(frozen=True)
class ModelIdentity:
    """What two sets of embeddings must share to be comparable.

    Attributes:
        name: The directory or Hub id that the user gave.
        revision: Commit of the Hub repository; None for a local directory.
        fingerprint: Digest of `files`.
        files: Digest of each file of the checkpoint that decides the numbers.
        prompt_hash: Digest of what the model reads around any query or document.
        dimension: Length of an embedding.
        dtype: Number format of the weights in memory; None where it was not written down. It moves embeddings a little,
            by roundings, and makes no other embedder.
    """

    name: str
    revision: str | None
    fingerprint: str
    files: dict[str, str]
    prompt_hash: str
    dimension: int
    dtype: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)

    def differences(self, other: ModelIdentity) -> list[str]:
        """What makes `other` a different embedder, most telling first; empty when it is the same one."""
        found = []
        if self.prompt_hash != other.prompt_hash:
            found.append(f"the prompt (hash {self.prompt_hash[:12]} there, {other.prompt_hash[:12]} here)")
        if self.dimension != other.dimension:
            found.append(f"the dimension ({self.dimension} there, {other.dimension} here)")
        changed = sorted(name for name in {*self.files, *other.files} if self.files.get(name) != other.files.get(name))
        if changed:
            found.append(f"the model files {', '.join(changed)}")
        return found


def local_checkpoint(model: str | Path, revision: str | None = None) -> tuple[Path, str | None]:
    """Directory of a checkpoint, downloaded when `model` is a Hub id, and the commit it is of.

    Args:
        model: A directory, or the id of a repository on the Hub.
        revision: Branch, tag or commit on the Hub. Defaults to its main branch.

    Raises:
        ValueError: `model` looks like a path and does not exist, or is a directory and a revision is given.
        PermissionError: The weights may not be read.
        OSError: There is no such directory, and the Hub does not give it either.
    """
    path = Path(model)
    if path.is_dir():
        if revision is not None:
            raise ValueError(
                f"{model} is a directory: it has no revision {revision!r}, only a model of the Hub has one"
            )
        for weights in path.glob("*.safetensors"):
            if not os.access(weights, os.R_OK):  # safetensors would say that there is no such file
                raise PermissionError(errno.EACCES, "the weights may not be read", str(weights))
        return path.resolve(), None
    if str(model).count("/") > 1 or str(model).startswith((".", "/", "~")) or path.exists():
        raise ValueError(f"no checkpoint directory at {model}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.py"]
    try:
        snapshot = Path(snapshot_download(str(model), revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise OSError(f"there is no directory {model} here, and the Hub does not give it either: {error}") from error
    return snapshot, snapshot.name


def identify(name: str, directory: Path, revision: str | None, embedder: MMEmbedder) -> ModelIdentity:
    """Identity of a loaded embedder: reads and hashes the weights (about a second per gigabyte).

    Args:
        name: What the user called it.
        directory: The checkpoint it was loaded from; of an adapter, the base is read as well.
        revision: Its commit, if it came from the Hub.
        embedder: The loaded model.

    Raises:
        ValueError: There are no weights in `directory`.
    """
    from hf_mmembed.adapters import base_of_adapter

    files = _digests(directory)
    if "config.json" not in files and (found := base_of_adapter(str(directory))) is not None:
        base, _ = local_checkpoint(*found)
        files |= {f"base/{file}": digest for file, digest in _digests(base).items()}
    if not any(name.endswith(".safetensors") for name in files):
        raise ValueError(f"no *.safetensors in {directory}: only safetensors weights are read")
    fingerprint = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:32]
    dimension = embedder.get_embedding_dimension()
    assert dimension is not None  # None only for models without a fixed dimension
    dtype = str(next(embedder.parameters()).dtype).removeprefix("torch.")
    return ModelIdentity(name, revision, fingerprint, files, prompt_hash(embedder), dimension, dtype)


def open_identified(
    model: str | Path, *, name: str | None = None, device: str | None = None, revision: str | None = None
) -> tuple[MMEmbedder, ModelIdentity]:
    """An embedder and its identity.

    On a CPU it computes in float32, whatever the checkpoint is stored in: more exact, and faster unless the CPU
    multiplies bfloat16 in matrix units (AMX).

    Args:
        model: A directory, or the id of a repository on the Hub.
        name: What the user called it. Defaults to the whole path of the directory, or the id.
        device: Defaults to the best there is.
        revision: Branch, tag or commit on the Hub. Defaults to its main branch.

    Raises:
        ValueError: As `local_checkpoint` and `identify`, or the checkpoint is no embedder.
        OSError: As `local_checkpoint`.
    """
    from sentence_transformers.util import get_device_name

    from hf_mmembed.sentence_transformer import MMEmbedder

    directory, commit = local_checkpoint(model, revision)
    device = device or get_device_name()
    dtype = {"dtype": "float32"} if device.startswith("cpu") else {}
    embedder = MMEmbedder(str(directory), device=device, model_kwargs=dtype)
    name = name or (str(directory) if Path(model).is_dir() else str(model))
    return embedder, identify(name, directory, commit, embedder)


def prompt_hash(embedder: MMEmbedder) -> str:
    """Digest of what the model reads around the words of a query and of a document, with a picture and without."""
    text, image = {"type": "text", "text": "words"}, {"type": "image", "image": Image.new("RGB", (64, 64))}
    contents = [[text], [image, text]]
    if _gives_way_to_white_space(getattr(embedder.processor, "prompt", None)):
        contents.append([image, {"type": "text", "text": "\nwords\n"}])
    rendered = [
        embedder.processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False, task=task)
        for task in ("query", "document")
        for content in contents
    ]
    return hashlib.sha256(json.dumps([rendered, embedder.prompts], sort_keys=True).encode()).hexdigest()[:32]


def _gives_way_to_white_space(prompt: HierarchicalPrompt | None) -> bool:
    """Whether white space around the words replaces some of the prompt's; embeddings may be older than this rule."""
    if prompt is None:
        return False
    separates = prompt.image_style != "template" and prompt.separator
    return bool(separates) or prompt.represent_text.isspace() or prompt.represent_image.isspace()


def weights_digest(model: nn.Module) -> str:
    """Digest of the weights in memory, trained or not (about a second per gigabyte).

    A LoRA or DoRA adapter on a layer where it has learned nothing yet is left out: it changes no embedding, regardless
    of its rank and its random A matrix.
    """
    import torch

    digest = hashlib.blake2b(digest_size=16)
    for name, weight in _that_matter(model.state_dict()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def inert_adapters(model: nn.Module) -> list[nn.Module]:
    """The layers of PEFT whose LoRA or DoRA adapter has learned nothing yet, so that it changes no embedding."""
    return [model.get_submodule(layer) for layer in _inert_layers(model.state_dict())]


def settings_digest(model: nn.Module) -> str:
    """Digest of what the parts of a model do with their weights: readout, pooling, activations and the like."""
    from transformers import PreTrainedModel

    found: list[Any] = [type(part).__name__ for part in model.children()]
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            found.append(_without_volatile(json.loads(part.config.to_json_string(use_diff=False))))
        elif callable(settings := getattr(part, "get_config_dict", None)):
            found.append(settings())
    # The type alone of what is no JSON: it may print its address, which is another one in every process.
    written = json.dumps(found, sort_keys=True, default=lambda value: type(value).__name__)
    return hashlib.sha256(written.encode()).hexdigest()[:32]


def _that_matter(weights: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Without adapters that change nothing, and under the names of a model that has none."""
    inert = set(_inert_layers(weights))
    for name, weight in weights.items():
        if name.partition(".lora_")[0] not in inert:
            layer, _, rest = name.partition(".base_layer.")
            yield (f"{layer}.{rest}" if layer in inert else name), weight


def _inert_layers(weights: Mapping[str, Any]) -> list[str]:
    of_adapters: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, weight in weights.items():
        layer, adapter, rest = name.partition(".lora_")
        if adapter:
            of_adapters[layer][rest] = weight
    return [
        layer for layer, parts in of_adapters.items() if _is_inert(parts, weights.get(f"{layer}.base_layer.weight"))
    ]


def _is_inert(adapter: Mapping[str, Tensor], base: Tensor | None) -> bool:
    """Whether B is zero, and DoRA's magnitudes are still the norms of the weight; in doubt it is not."""
    import torch

    for name, weight in adapter.items():
        kind = name.partition(".")[0]
        if kind == "B":
            if weight.any():
                return False
        elif kind == "magnitude_vector":
            if base is None or base.dim() != 2 or not base.is_floating_point() or len(base) != weight.numel():
                return False
            norms = torch.linalg.vector_norm(base.float(), dim=1)
            # They were computed in the dtype of the weight, and perhaps on another device.
            rounding = max(torch.finfo(base.dtype).eps, 1e-5)
            if not torch.allclose(weight.flatten().float(), norms, rtol=rounding, atol=0):
                return False
        elif kind != "A":
            return False
    return True


def _digests(directory: Path) -> dict[str, str]:
    paths = sorted({path for pattern in _FILES for path in visible(directory, pattern)})
    return {path.name: _digest(path) for path in paths} | _digests_of_further_modules(directory)


def _digests_of_further_modules(directory: Path) -> dict[str, str]:
    """Of what sentence-transformers computes behind the model, such as a projection; each has a folder of its own."""
    listed = directory / "modules.json"
    modules = json.loads(listed.read_text(encoding="utf-8")) if listed.is_file() else []
    folders = [directory / module["path"] for module in modules if module.get("path")]
    if not folders:
        return {}
    files = sorted(
        path for folder in folders for path in visible(folder, "**/*") if path.suffix in (".json", ".safetensors")
    )
    return {path.relative_to(directory).as_posix(): _digest(path) for path in [listed, *files]}


def _digest(path: Path) -> str:
    if path.suffix == ".json":
        settings = _without_volatile(json.loads(path.read_text(encoding="utf-8")))
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    if path.suffix == ".jinja":  # written as text, so Windows ends its lines otherwise
        return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _without_volatile(settings: Any) -> Any:
    if isinstance(settings, dict):
        return {key: _without_volatile(value) for key, value in settings.items() if key not in _VOLATILE}
    return settings
