"""What a MODEL argument of a command may be: a directory, a Hub id, or the name of the model that ships.

In: the word on the command line. Out: what `MMEmbedder`, `convert` and `SentenceTransformer` take.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from hf_mmembed.shipped import PACKAGED, SHIPPED, SHIPPED_SAHA

__all__ = ["SHIPPED", "embedder", "generative", "teacher"]


def embedder(model: str) -> str:
    """The embedder that MODEL means; a directory of a shipped model's name wins over the shipped model.

    Raises:
        ValueError: It is what `hf-mmembed index` or `embed` wrote.

    Example:
        >>> embedder("Qwen/Qwen2-VL-2B-Instruct")
        'Qwen/Qwen2-VL-2B-Instruct'
    """
    if model not in (SHIPPED, SHIPPED_SAHA) or Path(model).exists():
        _refuse_embeddings(Path(model))
        return model
    from hf_mmembed import tiny

    return str(tiny.checkpoint_path() if model == SHIPPED else tiny.saha_path())


def generative(base: str) -> str:
    """The generative checkpoint that BASE means: the parent of the shipped embedder for its name.

    Example:
        >>> generative("Qwen/Qwen2-VL-2B-Instruct")
        'Qwen/Qwen2-VL-2B-Instruct'
    """
    if base != SHIPPED or Path(base).exists():
        return base
    from hf_mmembed import tiny

    return str(tiny.generative_path())


def teacher(model: str) -> str:
    """The text embedder that TEACHER means; one whose weights an installed package carries is read from there.

    Example:
        >>> teacher("intfloat/e5-mistral-7b-instruct")
        'intfloat/e5-mistral-7b-instruct'
    """
    package, folder = PACKAGED.get(model, ("", ""))
    spec = find_spec(package.replace("-", "_")) if package else None
    if spec is None or spec.origin is None or Path(model).exists():
        return model
    return str(Path(spec.origin).parent / folder)


def _refuse_embeddings(directory: Path) -> None:
    """Who is told that it is no embedder would be told to convert it."""
    if not (directory / "manifest.json").is_file() or (directory / "modules.json").is_file():
        return
    from hf_mmembed.index import read_manifest

    try:
        manifest = read_manifest(directory)
    except ValueError:  # other programs write files of this name, too
        return
    what, place = "a directory of embeddings", "the OUT of `hf-mmembed embed`"
    if manifest.faiss is not None:
        what, place = "an index", "the INDEX of `hf-mmembed search` and the OUT of `hf-mmembed index`"
    raise ValueError(
        f"{directory} is {what} and no embedder: it is {place}. Give an embedder, such as "
        f"{manifest.model.name}, which it was made with."
    )
