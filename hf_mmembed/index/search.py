"""Building an index from embeddings, opening it, and searching it.

In: a directory of embeddings; then a query of text, picture and instruction. Out: `index.faiss` beside the embeddings;
then `Hit` objects, best first, with cosine similarities.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_mmembed.data import Source, open_source
from hf_mmembed.data.folders import FolderSource
from hf_mmembed.data.rows import Listing
from hf_mmembed.identity import ModelIdentity
from hf_mmembed.model.images_mmembed import open_image

from . import vectors
from .embedding import ITEMS, Report, unchanged_since
from .items import Items
from .manifest import Manifest, read_manifest, write_manifest
from .shards import dataset_fingerprint, read_embeddings

if TYPE_CHECKING:
    import faiss
    from PIL.Image import Image

    from hf_mmembed.sentence_transformer import MMEmbedder

__all__ = ["Hit", "Index", "build_index", "embed_query", "make_query"]

_FAISS = "index.faiss"


@dataclass(frozen=True)
class Hit:
    """One result.

    Attributes:
        rank: From 1.
        score: Cosine similarity with the query.
        row: Row of the input.
        name: The item's name: path relative to the input, or table and row.
        path: Its picture file, if it has one.
        text: Its text, if it has one.
    """

    rank: int
    score: float
    row: int
    name: str
    path: str | None
    text: str | None

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def build_index(out: Path, report: Report, *, kind: vectors.Kind | None = None) -> Manifest:
    """Adds a FAISS index to a directory that `embed_source` finished.

    Args:
        out: The directory.
        report: What `embed_source` returned for it.
        kind: See `vectors.build`. Defaults to flat up to 200,000 rows.

    Raises:
        ValueError: Another process is writing to `out`, or has changed it since.
    """
    with unchanged_since(report, out):
        index, info = vectors.build(
            lambda: read_embeddings(out / ITEMS, report.shards),
            rows=report.manifest.embedded,
            dim=report.manifest.model.dimension,
            kind=kind,
        )
        vectors.save(index, out / _FAISS)
        manifest = report.manifest.changed(faiss={**info, "items": dataset_fingerprint(report.shards)})
        write_manifest(out, manifest)
    return manifest


def embed_query(
    embedder: MMEmbedder,
    *,
    text: str | None = None,
    image: Image | str | os.PathLike[str] | None = None,
    instruction: str | None = None,
    trace: str | None = None,
) -> np.ndarray:
    """Embeds one query: a text, a picture, or a picture with words about it. Shape ``(dim,)``, float32.

    `trace` is what a reasoner wrote about it, for the model to read too; the rest is as for `make_query`.
    """
    query = make_query(text=text, image=image, instruction=instruction)
    options: dict[str, Any] = {} if trace is None else {"traces": [trace]}
    vectors = embedder.encode_query([query], show_progress_bar=False, normalize_embeddings=True, **options)
    return np.asarray(vectors, dtype=np.float32)[0]


def make_query(
    *,
    text: str | None = None,
    image: Image | str | os.PathLike[str] | None = None,
    instruction: str | None = None,
) -> dict[str, Any]:
    """A query as an input of `MMEmbedder.encode`, its picture opened.

    Raises:
        ValueError: Neither text nor picture is given, or the picture cannot be read.
    """
    query: dict[str, Any] = {}
    if text is not None and text.strip():
        query["text"] = text
    if image is not None:
        try:
            query["image"] = open_image(Path(image) if isinstance(image, (str, os.PathLike)) else image)
        except ValueError as error:
            raise ValueError(f"cannot search for the picture {image}: {error}") from error
    if not query:
        raise ValueError("the query is empty: give a text, a picture or both")
    if instruction is not None:
        query["instruction"] = instruction
    return query


class Index:
    """A finished index on the disk, opened for searching.

    All that says which vector is of which item is read at once: were it read later, the directory could have been indexed
    again meanwhile.

    Raises:
        ValueError: The directory is no index, is unfinished, holds embeddings without a FAISS index, or is being indexed
            again.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        opened = self._open() or self._open()
        if opened is None:
            again = _index_command(read_manifest(self.directory), self.directory)
            raise ValueError(
                f"{directory} is being indexed again by another process, or was not indexed to the end: its "
                f"{_FAISS} and its {ITEMS} do not belong together. Search when that has finished; if nothing is running, "
                f"this builds the index anew: {again}"
            )
        self.manifest, self._faiss, self._items = opened

    def _open(self) -> tuple[Manifest, faiss.Index, Items] | None:
        """What the directory holds; None if the parts do not belong together, as when it was just indexed again."""
        manifest = read_manifest(self.directory)
        indexed = _faiss_part(manifest, self.directory)
        try:
            index = vectors.load(self.directory / _FAISS)
            items = Items(self.directory, manifest)
        except ValueError:
            if read_manifest(self.directory) != manifest:
                return None
            raise
        # Manifests of before do not name the items.
        fit = index.ntotal == manifest.embedded and indexed.get("items", items.fingerprint) == items.fingerprint
        return (manifest, index, items) if fit and read_manifest(self.directory) == manifest else None

    def __len__(self) -> int:
        return self.manifest.embedded

    @cached_property
    def _source(self) -> Source:
        settings = self.manifest.input
        return open_source(
            str(settings["path"]), image_column=settings["image_column"], text_column=settings["text_column"]
        )

    def check(self, identity: ModelIdentity) -> None:
        """Makes sure that queries embedded by `identity` may be compared with this index.

        Raises:
            ValueError: The index was built with another model or prompt; the message says what differs.
        """
        found = self.manifest.model.differences(identity)
        if found:
            built = self.manifest.model
            raise ValueError(
                f"{self.directory} was built with another embedder ({built.name}, revision {built.revision}) than the "
                f"one to search with ({identity.name}, revision {identity.revision}); what differs: {'; '.join(found)}. "
                "Search with the same model and prompt, or build the index again in another directory"
            )

    def search(self, query: np.ndarray, k: int = 10) -> list[Hit]:
        """The `k` most similar items, best first; equal scores in row order.

        Args:
            query: Unit vector, shape ``(dim,)``.
            k: Number of hits, at most. Defaults to 10.

        Raises:
            ValueError: `query` has another dimension, or `k` is not positive.
        """
        if query.shape != (self.manifest.model.dimension,):
            raise ValueError(
                f"a query of shape {query.shape} for an index of dimension {self.manifest.model.dimension}"
            )
        if k < 1:
            raise ValueError(f"k is {k}; ask for at least 1 hit")
        scores, places = self._faiss.search(np.ascontiguousarray(query[None], np.float32), min(k, len(self)))
        found = sorted(
            (-float(score), int(place)) for score, place in zip(scores[0], places[0], strict=True) if place >= 0
        )
        hits = []
        for rank, (score, place) in enumerate(found, start=1):
            item = self._items.read(self._items.row(place))
            hits.append(Hit(rank, -score, item["row"], item["name"], item["path"], item["text"]))
        return hits

    def picture(self, hit: Hit) -> Image | None:
        """The picture of a hit, read again from the input; None when it has none.

        Raises:
            ValueError: It is gone, or the input has changed since it was indexed. Of a picture file that a table named,
                only the former is noticed.
        """
        if hit.path is not None:
            image = open_image(Path(hit.path))
            if self._is_replaced(hit):
                raise ValueError(f"{hit.path} has changed since it was indexed")
            return image
        if self.manifest.input["image_column"] is None:
            return None
        indexed = self._items.read(hit.row)["fingerprint"]
        if len(self._source) <= hit.row or self._source.fingerprint(hit.row) != indexed:
            raise ValueError(f"{self.manifest.input['path']} has changed since it was indexed")
        stored = self._source[hit.row].image
        return None if stored is None else open_image(stored)

    def _is_replaced(self, hit: Hit) -> bool:
        """Whether the picture file of the hit is another by now; not known where a table named it."""
        path, kind = Path(str(self.manifest.input["path"])), self.manifest.input["kind"]
        if kind not in ("file", "folder"):
            return False
        # Not from the folder as it is now: a file that was added since moves the rows behind it.
        alone = FolderSource(kind, path, path.parent if kind == "file" else path, [hit.name], Listing())
        return alone.fingerprint(0) != self._items.read(hit.row)["fingerprint"]


def _faiss_part(manifest: Manifest, directory: Path) -> dict[str, Any]:
    """What the manifest says of the FAISS index.

    Raises:
        ValueError: The directory is unfinished or has no FAISS index; the message says what to do.
    """
    again = _index_command(manifest, directory)
    if not manifest.complete:
        raise ValueError(f"{directory} is unfinished; this goes on where it stopped: {again}")
    if manifest.faiss is None:
        if (manifest.task, manifest.instruction) != ("document", None):
            raise ValueError(
                f"{directory} holds embeddings of task {manifest.task!r} and instruction {manifest.instruction!r}, which "
                "are not to be searched; index into another directory."
            )
        raise ValueError(f"{directory} holds embeddings without an index; this adds it: {again}")
    return manifest.faiss


def _index_command(manifest: Manifest, directory: Path) -> str:
    """What indexes the same input into the same directory."""
    settings = manifest.input
    words = ["hf-mmembed", "index", manifest.model.name, str(settings["path"]), str(directory)]
    if settings["kind"] not in ("file", "folder"):
        for option in ("image_column", "text_column"):
            if settings[option] is not None:
                words += [f"--{option.replace('_', '-')}", str(settings[option])]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)
