"""`manifest.json`: what a directory of embeddings holds, who made it and whether it is finished.

In: a directory. Out: a `Manifest`, or an error that says why the directory cannot be used.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hf_mmembed.files import write_atomically
from hf_mmembed.identity import ModelIdentity

__all__ = ["Manifest", "read_manifest", "remove_leftovers", "write_manifest"]

FORMAT = "hf_mmembed/embeddings"
FORMAT_VERSION = 1
_NAME = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """Contents of `manifest.json`.

    Attributes:
        model: The embedder; see `ModelIdentity`.
        task: ``"document"`` or ``"query"``: the side of the prompt the rows were embedded with.
        instruction: Instruction given with every row, if any.
        input: Kind, path and columns of the input.
        rows: Rows of the input.
        shard_size: Rows per Arrow file.
        embedded: Rows that have an embedding.
        skipped: Rows that could not be embedded; `skipped.jsonl` names them.
        complete: False while the embedding runs, and after it was interrupted.
        faiss: Kind and settings of the FAISS index over the embeddings, and the fingerprint of the items it is of (not in
            manifests of before); None when there is none.
    """

    model: ModelIdentity
    task: str
    instruction: str | None
    input: dict[str, str | None]
    rows: int
    shard_size: int
    embedded: int = 0
    skipped: int = 0
    complete: bool = False
    faiss: dict[str, Any] | None = None

    def changed(self, **fields: Any) -> Manifest:
        """A copy with some fields replaced."""
        return replace(self, **fields)


def read_manifest(directory: Path) -> Manifest:
    """Reads the manifest of a directory of embeddings.

    Raises:
        ValueError: The directory does not exist, is none of ours, or was written by a newer version.
    """
    if not directory.is_dir():
        raise ValueError(f"no index at {directory}: build one with `hf-mmembed index MODEL INPUT {directory}`")
    path = directory / _NAME
    if not path.is_file():
        raise ValueError(
            f"{directory} is no index: it has no {_NAME}; build one with `hf-mmembed index MODEL INPUT OUT` and search OUT"
        )
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(fields, dict) or fields.pop("format", None) != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
        version = fields.pop("format_version")
        if version > FORMAT_VERSION:
            raise ValueError(f"it has format version {version}, this hf_mmembed reads up to {FORMAT_VERSION}")
        return Manifest(**{**fields, "model": ModelIdentity(**fields["model"])})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"cannot use {path}: {error}") from error


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Writes the manifest; a reader sees the old one or the new one, never a half."""
    fields = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(manifest)}
    write_atomically(directory / _NAME, json.dumps(fields, indent=2, ensure_ascii=False).encode() + b"\n")


def remove_leftovers(directory: Path) -> None:
    """Deletes the temporary files that a killed process left in a directory of ours."""
    for name in (_NAME, "skipped.jsonl", "embeddings.npy", "index.faiss"):
        for path in directory.glob(f".{name}.*.tmp"):
            path.unlink()
