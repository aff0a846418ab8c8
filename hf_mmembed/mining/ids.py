"""Who is who in a dataset of pairs: the same number for the same content, over all subsets.

In: a dataset of pairs (`hf_mmembed.data.pairs`). Out: `ContentIds`, arrays of shape ``(rows,)``. A document is its
normalised text and the bytes of its picture; a query is that and the canonical instruction of its subset, so that it
stays the same query however a row words the instruction. Neither ever depends on the number of the row.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from tqdm import tqdm

from hf_mmembed.data.pairs import document_of, negatives_of, query_of

from .digests import DIGEST_BYTES, digest_of, keeping_digests, read_digest

__all__ = ["ContentIds", "canonical_instructions", "content_ids", "normalise"]

_ROWS_AT_ONCE = 256
_READERS = 8
# Not "+", "-", "%" and the like: "C++" is not "C", "-5" is not "5".
_EDGES = " .,;:!?\"'“”‘’«»…。，！？"


@dataclass(frozen=True)
class ContentIds:
    """Identity of every row's query, document, negatives and subset. Ids count from 0 by first appearance.

    Attributes:
        query_ids: ``(rows,)``, int64.
        document_ids: ``(rows,)``, int64.
        negative_ids: ``(rows, most)``, int64: what the row's ``neg_*`` columns hold, −1 beyond them. A negative that is
            some row's document has that document's id; the others come after all documents.
        subset_ids: ``(rows,)``, int64: places in `subsets`.
        subsets: Names of the subsets, by first appearance.
        instructions: The canonical instruction of each subset.
        query_digests: ``(queries,)``, 16 bytes each: the content behind an id, the same in every run and dataset.
        document_digests: ``(documents,)``, 16 bytes each.
        query_contents: ``(queries,)``, int64: the id of the document or negative with the same content as the query,
            whatever the instruction; beyond all of these where there is none.
        fingerprint: Digest of the queries and documents row by row, whatever the instructions: the same for the same
            data wherever it lies.
    """

    query_ids: np.ndarray
    document_ids: np.ndarray
    negative_ids: np.ndarray
    subset_ids: np.ndarray
    subsets: tuple[str, ...]
    instructions: tuple[str, ...]
    query_digests: np.ndarray
    document_digests: np.ndarray
    query_contents: np.ndarray
    fingerprint: str

    @cached_property
    def query_rows(self) -> np.ndarray:
        """``(queries,)``: the first row of each query."""
        return np.unique(self.query_ids, return_index=True)[1]

    @cached_property
    def document_rows(self) -> np.ndarray:
        """``(documents,)``: the first row of each document."""
        return np.unique(self.document_ids, return_index=True)[1]


def content_ids(
    pairs: Dataset, *, canonical_instruction: str | Mapping[str, str] | None = None, kept: Path | None = None
) -> ContentIds:
    """Finds out which rows share a query or a document.

    Args:
        pairs: What `read_pairs` returns. Picture files are read, once each, not decoded.
        canonical_instruction: The instruction that stands for all wordings in a subset: one for all subsets, or by
            name of the subset. Defaults to the most frequent one of each subset.
        kept: A file for the digests of picture files: those that have not changed since are not read again. Defaults
            to reading them all.

    Raises:
        ValueError: A picture file cannot be read, or `canonical_instruction` names a subset that is not there. The
            message names the row.

    Example:
        >>> from hf_mmembed.data.pairs import read_pairs
        >>> rows = {"query": ["a disc", "a box", "A disc."], "positive": ["round", "square", "circular"]}
        >>> ids = content_ids(read_pairs(Dataset.from_dict(rows)))
        >>> ids.query_ids, ids.document_ids
        (array([0, 1, 0]), array([0, 1, 2]))
    """
    subset_ids, subsets = _numbered_names(pairs)
    chosen = canonical_instructions(pairs)
    if isinstance(canonical_instruction, str):
        chosen = dict.fromkeys(chosen, canonical_instruction)
    elif canonical_instruction is not None:
        unknown = sorted(canonical_instruction.keys() - chosen.keys())
        if unknown:
            raise ValueError(f"no subset {unknown[0]!r} to give an instruction; there are {', '.join(sorted(chosen))}")
        chosen = {**chosen, **canonical_instruction}
    instructions = tuple(chosen[name] for name in subsets)
    queries: list[bytes] = []
    documents: list[bytes] = []
    negatives: list[list[bytes]] = []
    with (
        nullcontext(read_digest) if kept is None else keeping_digests(kept) as of_file,
        tqdm(total=len(pairs), unit=" rows", desc="hashing contents", delay=2, disable=None) as bar,
    ):
        for batch in _digests(pairs, lru_cache(maxsize=65_536)(of_file)):
            queries += (query for query, _, _ in batch)
            documents += (document for _, document, _ in batch)
            negatives += (own for _, _, own in batch)
            bar.update(len(batch))
    salts = [digest_of(instruction.encode("utf-8", "surrogatepass")) for instruction in instructions]
    salted = [digest_of(salts[subset] + query) for subset, query in zip(subset_ids, queries, strict=True)]
    query_ids, query_digests = _number(salted)
    contents, document_digests = _number([*documents, *(digest for row in negatives for digest in row), *queries])
    most = max(map(len, negatives), default=0)
    negative_ids = np.full((len(pairs), most), -1, np.int64)
    counts = np.fromiter(map(len, negatives), np.int64, len(negatives))
    positives, carried, asked = np.split(contents, [len(pairs), len(contents) - len(pairs)])
    negative_ids[np.arange(most) < counts[:, None]] = carried
    return ContentIds(
        query_ids,
        positives,
        negative_ids,
        subset_ids,
        subsets,
        instructions,
        query_digests,
        document_digests[: positives.max(initial=-1) + 1],
        asked[np.unique(query_ids, return_index=True)[1]],
        digest_of(b"".join([*queries, *documents])).hex(),
    )


def canonical_instructions(pairs: Dataset) -> dict[str, str]:
    """The most frequent instruction of each subset; of equally frequent ones the first."""
    counts: dict[str, Counter[str]] = {}
    for batch in _batches(pairs, ["subset", "query_instruction"]):
        for subset, instruction in zip(batch["subset"], batch["query_instruction"], strict=True):
            counts.setdefault(subset, Counter())[instruction] += 1
    return {subset: counter.most_common(1)[0][0] for subset, counter in counts.items()}


def normalise(text: str) -> str:
    """What two texts that say the same in the same words have in common.

    Unicode compatibility forms, case, white space, and punctuation at either end do not count.

    Example:
        >>> normalise("  A Red\\n circle. ") == normalise("a red circle"), normalise("C++") == normalise("C")
        (True, False)
    """
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text).casefold()).strip(_EDGES)


def _numbered_names(pairs: Dataset) -> tuple[np.ndarray, tuple[str, ...]]:
    places: dict[str, int] = {}
    ids = [places.setdefault(name, len(places)) for batch in _batches(pairs, ["subset"]) for name in batch["subset"]]
    return np.array(ids, np.int64), tuple(places)


def _digests(pairs: Dataset, of_file: Callable[[str], bytes]) -> Iterator[list[tuple[bytes, bytes, list[bytes]]]]:
    """Digests of the query, the document and the negatives of each row, a batch of rows at a time."""
    start = 0
    with ThreadPoolExecutor(_READERS) as pool:
        for batch in pairs.with_format("arrow").iter(_ROWS_AT_ONCE):
            yield list(pool.map(partial(_row_digests, of_file), enumerate(batch.to_pylist(), start)))
            start += len(batch)


def _row_digests(
    of_file: Callable[[str], bytes], numbered: tuple[int, dict[str, Any]]
) -> tuple[bytes, bytes, list[bytes]]:
    number, row = numbered
    digest = partial(_content_digest, of_file, number)
    return digest(query_of(row)), digest(document_of(row)), [digest(negative) for negative in negatives_of(row)]


def _content_digest(of_file: Callable[[str], bytes], row: int, content: dict[str, Any]) -> bytes:
    image = content.get("image")
    try:
        picture = b"" if image is None else of_file(image) if isinstance(image, str) else digest_of(image)
    except OSError as error:
        raise ValueError(f"row {row}: the picture {image} cannot be read ({error.strerror})") from error
    return digest_of(picture + b"|" + normalise(content.get("text", "")).encode("utf-8", "surrogatepass"))


def _batches(pairs: Dataset, columns: list[str]) -> Iterator[dict[str, list[Any]]]:
    for table in pairs.select_columns(columns).with_format("arrow").iter(_ROWS_AT_ONCE):
        yield table.to_pydict()


def _number(digests: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Ids by first appearance, and the digest behind each."""
    keys, firsts, inverse = np.unique(
        np.array(digests, dtype=f"V{DIGEST_BYTES}").reshape(-1), return_index=True, return_inverse=True
    )
    order = np.argsort(firsts, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return place[inverse].astype(np.int64), keys[order]
