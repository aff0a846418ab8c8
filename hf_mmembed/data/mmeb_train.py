"""The layout of MMEB-train: one folder per subset with Parquet files of paths, and the pictures below ``images/``.

In: the downloaded repository (``TIGER-Lab/MMEB-train``, its archives unpacked) or one subset's folder. Out: its rows
with texts, instructions and paths apart, in the names of the pair schema. A query is stored there as one string, an
instruction followed by the content (with a ``<|image_1|>`` marker); the instruction is what all queries of a subset
begin with. The split ``diverse_instruction`` words it in ten ways; the split ``original`` beside it tells what in such
a query is content.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset
from pyarrow import parquet

__all__ = ["is_mmeb_train", "read_mmeb_train"]

logger = logging.getLogger(__name__)

_MARKER = re.compile(r"<\|image_\d+\|>")
_ALIGNED = ("qry_image_path", "pos_text", "pos_image_path")
_COLUMNS = ("qry", *_ALIGNED)
_SPLIT_FILE = re.compile(r"(?P<split>.+)-\d{5}-of-\d{5}\.parquet")


def is_mmeb_train(path: Path) -> bool:
    """Whether `path` is a folder in the layout of MMEB-train, or the folder of one of its subsets."""
    return path.is_dir() and bool(_subset_folders(path))


def read_mmeb_train(path: Path, *, split: str, subset: str | None) -> Iterator[tuple[str, Dataset, Path]]:
    """Raw rows of each subset, ready for `as_pairs`.

    Args:
        path: A folder for which `is_mmeb_train` is true.
        split: ``"original"``, ``"diverse_instruction"`` or ``"train"``.
        subset: Name of one subset. Defaults to all.

    Yields:
        Name of the subset, its rows, and the directory that picture paths are relative to.

    Raises:
        ValueError: There is no such subset or split, or a file lacks a column.
    """
    folders = {folder.name: folder for folder in _subset_folders(path)}
    if subset is not None and subset not in folders:
        raise ValueError(f"{path} has no subset {subset!r}; it has {', '.join(sorted(folders))}")
    for name in [subset] if subset is not None else sorted(folders):
        folder = folders[name]
        rows = _read_split(folder, split)
        original = (
            rows if split == "original" or not _split_files(folder, "original") else _read_split(folder, "original")
        )
        yield name, Dataset(_separate(rows, original, name)), folder.parent


def _subset_folders(path: Path) -> list[Path]:
    return [folder for folder in [path, *sorted(path.iterdir())] if folder.is_dir() and _is_subset(folder)]


def _is_subset(folder: Path) -> bool:
    file = next(iter(sorted(folder.glob("*-of-*.parquet"))), None)
    return file is not None and set(_COLUMNS) <= set(parquet.read_schema(file).names)


def _split_files(folder: Path, split: str) -> list[Path]:
    files = sorted(folder.glob("*.parquet"))
    return [file for file in files if (match := _SPLIT_FILE.fullmatch(file.name)) and match["split"] == split]


def _read_split(folder: Path, split: str) -> pa.Table:
    files = _split_files(folder, split)
    if not files:
        there = sorted({match["split"] for file in folder.iterdir() if (match := _SPLIT_FILE.fullmatch(file.name))})
        raise ValueError(f"{folder} has no split {split!r}; it has {', '.join(there)}: name one with split")
    return pa.concat_tables([parquet.read_table(file) for file in files])


def _separate(rows: pa.Table, original: pa.Table, name: str) -> pa.Table:
    """Instructions, texts and paths of a subset in columns of their own."""
    queries, documents = _texts(rows, "qry"), _texts(rows, "pos_text")
    instruction, contents = _shared_instruction(_texts(original, "qry"), _paths(original, "qry_image_path"))
    instructions = [instruction] * len(queries)
    if original is not rows:
        if all(rows.column(column).equals(original.column(column)) for column in _ALIGNED):
            instructions = _other_wordings(queries, contents, instruction, name)
        else:
            logger.warning(
                "%s: its splits have different rows, so instructions cannot be told from contents; every query is taken "
                "as text alone",
                name,
            )
            instructions, contents = [""] * len(queries), queries
    pos_instruction, documents = _shared_instruction(documents, _paths(rows, "pos_image_path"))
    columns: dict[str, Any] = {
        "query_text": contents,
        "query_image": _paths(rows, "qry_image_path"),
        "query_instruction": instructions,
        "pos_text": documents,
        "pos_image": _paths(rows, "pos_image_path"),
        "pos_instruction": [pos_instruction] * len(documents),
    }
    negatives = [_texts(rows, "neg_text"), _paths(rows, "neg_image_path")]
    if any(any(column) for column in negatives):
        columns["neg_text"] = [[_without(text, pos_instruction)] for text in negatives[0]]
        columns["neg_image"] = [[path] for path in negatives[1]]
    return pa.table(columns)


def _shared_instruction(texts: list[str], pictures: list[str]) -> tuple[str, list[str]]:
    """What all texts begin with, up to the end of a sentence or line, and the rest of each.

    A text that is nothing but the beginning needs a picture to go with it; one row alone shows nothing shared.
    """
    shared = os.path.commonprefix([min(texts), max(texts)]) if len(set(texts)) > 1 else texts[0]
    if len(texts) < 2 or (len(set(texts)) == 1 and not all(pictures)):
        return "", texts
    if len(set(texts)) > 1:
        end = max((match.end() for match in re.finditer(r"[:.?]\s|\n", shared)), default=0)
        shared = shared[:end]
    rest = [text[len(shared) :].strip() for text in texts]
    if not all(text or picture for text, picture in zip(rest, pictures, strict=True)):
        return "", texts
    return shared.strip(), rest


def _other_wordings(queries: list[str], contents: list[str], instruction: str, name: str) -> list[str]:
    """The instruction of each query: what remains of it without its content."""
    found, lost = [], 0
    for query, content in zip(queries, contents, strict=True):
        before, there, after = query.rpartition(content) if content else (query, "", "")
        lost += bool(content and not there)
        found.append(" ".join(f"{before} {after}".split()) if there or not content else instruction)
    if lost:
        logger.warning(
            "%s: %d of %d queries do not repeat their content word for word; they get the original instruction",
            name,
            lost,
            len(queries),
        )
    return found


def _without(text: str, instruction: str) -> str:
    return text.removeprefix(instruction).strip() if instruction else text


def _texts(rows: pa.Table, name: str) -> list[str]:
    """Texts without picture markers; ``""`` where there is none."""
    if name not in rows.column_names:
        return [""] * len(rows)
    return [_MARKER.sub("", cell or "").strip() for cell in _scalars(rows, name)]


def _paths(rows: pa.Table, name: str) -> list[str]:
    return [cell or "" for cell in _scalars(rows, name)] if name in rows.column_names else [""] * len(rows)


def _scalars(rows: pa.Table, name: str) -> list[str | None]:
    """Cells of a column; the only element where a cell is a list of one."""
    cells = rows.column(name).to_pylist()
    return [(cell[0] if cell else None) if isinstance(cell, list) else cell for cell in cells]
