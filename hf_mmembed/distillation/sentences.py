"""Sentences to distil on: pairs of them, or plain ones, from any text dataset.

In: whatever `hf_mmembed.data.pairs.read_pairs` reads, or a text file with a sentence in each line. Out: pairs of texts in
the same schema. Both members of a pair are sentences alike; that they are alike in meaning, where the source says so, is
what makes a batch hold more than unrelated sentences.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset

from hf_mmembed.data.pairs import PAIR_FEATURES, read_pairs

__all__ = ["as_sentence_pairs", "read_sentences"]

_SHOWN = 5


def read_sentences(source: str | Path | Dataset, *, column: str | None = None, **options: Any) -> Dataset:
    """Reads sentence pairs, or plain sentences, which become pairs of neighbours.

    Args:
        source: As for `read_pairs`, or a ``.txt`` file.
        column: The column of plain sentences. Defaults to reading pairs; a ``.txt`` file has no columns.
        **options: ``columns``, ``split`` and ``subset`` of `read_pairs`.

    Returns:
        `datasets.Dataset`: ``query_text`` and ``pos_text`` are the two sentences of a pair.

    Raises:
        FileNotFoundError: There is nothing at the path.
        ValueError: The source cannot be read, or a row holds a picture or lacks a sentence; the message names it.

    Example:
        >>> rows = Dataset.from_dict({"sentence": ["a red disc", "a blue box", "a star"]})
        >>> [(row["query_text"], row["pos_text"]) for row in read_sentences(rows, column="sentence")]
        [('a red disc', 'a blue box'), ('a star', 'a star')]
    """
    if isinstance(source, (str, Path)) and Path(source).suffix.lower() == ".txt":
        if not Path(source).is_file():
            raise FileNotFoundError(f"no such input: {source}")
        lines = map(str.strip, Path(source).read_text(encoding="utf-8").splitlines())
        source, column = Dataset.from_dict({"sentence": [line for line in lines if line]}), "sentence"
    if column is None:
        return _checked(read_pairs(source, **options))
    columns: Mapping[str, str] = {"query_text": column, "pos_text": column}
    sentences = _checked(read_pairs(source, columns=columns, **options))["query_text"][:]
    return as_sentence_pairs([*sentences, *sentences[len(sentences) - len(sentences) % 2 :]])


def as_sentence_pairs(sentences: list[str]) -> Dataset:
    """Pairs of neighbours: an even number of sentences, two and two, in the schema of pairs."""
    rows = len(sentences) // 2
    made: dict[str, list[Any]] = {name: [""] * rows for name in PAIR_FEATURES}
    made |= {"query_text": sentences[::2], "pos_text": sentences[1::2], "subset": ["sentences"] * rows}
    made |= {"query_image": [None] * rows, "pos_image": [None] * rows}
    return Dataset.from_dict(made, features=PAIR_FEATURES)


def _checked(pairs: Dataset) -> Dataset:
    sides = ("query", "pos")
    wrong = [
        number
        for number, (*texts, first, second) in enumerate(
            zip(*(pairs[f"{side}_{kind}"][:] for kind in ("text", "image") for side in sides), strict=True)
        )
        if first or second or not all(text.strip() for text in texts)
    ]
    if wrong:
        shown = ", ".join(map(str, wrong[:_SHOWN])) + (" ..." if len(wrong) > _SHOWN else "")
        raise ValueError(
            f"{len(wrong)} of {len(pairs)} rows are no pair of sentences, since they hold a picture or lack a text: rows "
            f"{shown}. Leave them out, or name the column of plain sentences with `column`."
        )
    return pairs
