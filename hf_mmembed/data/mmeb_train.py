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

from hf_mmembed.visible import visible

__all__ = ["is_mmeb_train", "read_mmeb_train"]

logger = logging.getLogger(__name__)

_MARKER = re.compile(r" ?<\|image_\d+\|>")  # some of the diverse instructions have it amid their words
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
    return [folder for folder in [path, *visible(path)] if folder.is_dir() and _is_subset(folder)]


def _is_subset(folder: Path) -> bool:
    file = next(iter(visible(folder, "*-of-*.parquet")), None)
    return file is not None and set(_COLUMNS) <= set(parquet.read_schema(file).names)


def _split_files(folder: Path, split: str) -> list[Path]:
    files = visible(folder, "*.parquet")
    return [file for file in files if (match := _SPLIT_FILE.fullmatch(file.name)) and match["split"] == split]


def _read_split(folder: Path, split: str) -> pa.Table:
    files = _split_files(folder, split)
    if not files:
        there = sorted({match["split"] for file in folder.iterdir() if (match := _SPLIT_FILE.fullmatch(file.name))})
        raise ValueError(f"{folder} has no split {split!r}; it has {', '.join(there)}: name one with split")
    return pa.concat_tables([parquet.read_table(file) for file in files])


def _separate(rows: pa.Table, original: pa.Table, name: str) -> pa.Table:
    """Instructions, texts and paths of a subset in columns of their own."""
    queries, first = _texts(rows, "qry", "qry_image_path"), _texts(original, "qry", "qry_image_path")
    shared = _shared_instruction(first, _paths(original, "qry_image_path"))
    asked = [_apart(text, shared) for text in first]
    if original is not rows:
        if all(rows.column(column).equals(original.column(column)) for column in _ALIGNED):
            asked = _other_wordings(queries, asked, name)
        else:
            logger.warning(
                "%s: its splits have different rows, so instructions cannot be told from contents; every query is taken "
                "as text alone",
                name,
            )
            asked = [("", query) for query in queries]
    texts = _texts(rows, "pos_text", "pos_image_path")
    shared = _shared_instruction(texts, _paths(rows, "pos_image_path"))
    documents = [_apart(text, shared) for text in texts]
    columns: dict[str, Any] = {
        "query_text": [content for _, content in asked],
        "query_image": _paths(rows, "qry_image_path"),
        "query_instruction": [instruction for instruction, _ in asked],
        "pos_text": [content for _, content in documents],
        "pos_image": _paths(rows, "pos_image_path"),
        "pos_instruction": [instruction for instruction, _ in documents],
    }
    negatives = [_texts(rows, "neg_text", "neg_image_path"), _paths(rows, "neg_image_path")]
    if any(any(column) for column in negatives):
        columns["neg_text"] = [[_apart(text, shared)[1]] for text in negatives[0]]
        columns["neg_image"] = [[path] for path in negatives[1]]
    return pa.table(columns)


def _shared_instruction(texts: list[str], pictures: list[str]) -> str:
    """What all texts begin with, up to the end of a sentence or line, but for white space; ``""`` if there is no such.

    A text that is nothing but the beginning needs a picture to go with it; one row alone shows nothing shared.
    """
    bare = [text.strip() for text in texts]
    if len(bare) < 2:
        return ""
    first, last = min(bare), max(bare)
    shared = os.path.commonprefix([first, last])
    if first != last:
        shared = shared[: max((match.end() for match in re.finditer(r"[:.?]\s|\n", shared)), default=0)].rstrip()
    complete = all(text != shared or picture for text, picture in zip(bare, pictures, strict=True))
    return shared if complete else ""


def _apart(text: str, shared: str) -> tuple[str, str]:
    """Instruction and content of a text, which they are when put together: white space between is the instruction's."""
    found = re.match(rf"\s*{re.escape(shared)}\s*", text) if shared else None
    return (text[: found.end()], text[found.end() :]) if found else ("", text)


def _other_wordings(queries: list[str], asked: list[tuple[str, str]], name: str) -> list[tuple[str, str]]:
    """Instruction and content of each query; the instruction is what remains of it without its content."""
    found, lost = [], 0
    for query, (instruction, content) in zip(queries, asked, strict=True):
        words = content.strip()
        before, there, after = query.rpartition(words) if words else (query, "", "")
        if words and not there:
            found.append((instruction, content))
            lost += 1
            continue
        end = after[len(after.rstrip()) :]
        found.append((f"{before}{after.strip()} " if after.strip() else before, words + end))
    if lost:
        logger.warning(
            "%s: %d of %d queries do not repeat their content word for word; they get the original instruction",
            name,
            lost,
            len(queries),
        )
    return found


def _texts(rows: pa.Table, name: str, pictures: str) -> list[str]:
    """Texts without picture markers; ``""`` where there is none.

    What is trained is what `evaluation.mmeb_image` reads: the line breaks of the file stay, except at the start of a text
    without picture, where some have a marker all the same.
    """
    if name not in rows.column_names:
        return [""] * len(rows)
    texts = [_MARKER.sub("", cell or "") for cell in _scalars(rows, name)]
    return [text if path else text.lstrip("\n") for text, path in zip(texts, _paths(rows, pictures), strict=True)]


def _paths(rows: pa.Table, name: str) -> list[str]:
    return [cell or "" for cell in _scalars(rows, name)] if name in rows.column_names else [""] * len(rows)


def _scalars(rows: pa.Table, name: str) -> list[str | None]:
    """Cells of a column; the only element where a cell is a list of one."""
    cells = rows.column(name).to_pylist()
    return [(cell[0] if cell else None) if isinstance(cell, list) else cell for cell in cells]
