"""Training pairs, one schema whatever they come from: a query, the document it should find, and where they belong.

In: an MMEB-train folder, a dataset on the Hub or saved on the disk, an image folder with captions, a CSV, TSV, JSONL or
Parquet file, or a `datasets.Dataset`. Out: a `datasets.Dataset` with the columns of `PAIR_FEATURES`, and of
`NEGATIVE_FEATURES` where the source has negatives. Pictures stay what they were: encoded bytes, or the path of a file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, DatasetDict, concatenate_datasets

from .columns import load_saved
from .mmeb_train import is_mmeb_train, read_mmeb_train
from .pair_schema import NEGATIVE_FEATURES, PAIR_FEATURES, as_pairs, check_pairs, usual_columns
from .rows import has_lone_surrogate, require_utf8
from .tables import METADATA_NAMES, TABLE_READERS

__all__ = [
    "NEGATIVE_FEATURES",
    "PAIR_FEATURES",
    "document_of",
    "negatives_of",
    "query_of",
    "read_pairs",
    "require_pairs",
]


def read_pairs(
    source: str | Path | Dataset,
    *,
    columns: Mapping[str, str] | None = None,
    split: str = "train",
    subset: str | None = None,
) -> Dataset:
    """Reads pairs from whatever `source` is.

    Args:
        source: A path, a `datasets.Dataset`, or the id of a dataset on the Hub. Picture paths in a table are relative
            to it.
        columns: Which of the source's columns is what, ``{"query_text": "question", "pos_image": "photo"}``, with
            keys from `PAIR_FEATURES` and `NEGATIVE_FEATURES`. Defaults to the usual names: those of the schema, of
            MMEB-train (``qry``, ``pos_text`` ...), of sentence-transformers (``anchor`` or ``query``, ``positive``,
            ``negative``), or a picture with its caption (the caption is the query, the picture the document). Paths of
            pictures need a name that says so: in a column such as ``positive`` they are read as text, with a warning.
        split: Split of an MMEB-train folder, a saved ``DatasetDict`` or a Hub dataset. Defaults to ``"train"``.
        subset: One subset of an MMEB-train folder (all by default), the configuration of a Hub dataset, or what to
            call the rows of a source without a ``subset`` column (by default its name).

    Returns:
        `datasets.Dataset`: Texts and instructions are ``""``, pictures None where there is none.

    Raises:
        FileNotFoundError: There is nothing at the path.
        ValueError: The source is of no known kind, a column is absent or of the wrong type, or a row has a side with
            neither text nor picture; the message names the row.

    Example:
        >>> raw = Dataset.from_dict({"query": ["a red circle"], "positive": ["red disc"]})
        >>> query_of(read_pairs(raw)[0])
        {'text': 'a red circle'}
    """
    if isinstance(source, Dataset):
        return check_pairs(as_pairs(source, columns, root=None, name=subset or "pairs"), "the dataset")
    if not isinstance(source, (str, Path)):
        raise ValueError(
            f"cannot read pairs from a {type(source).__name__}: give a path, the id of a dataset on the Hub, or a "
            "datasets.Dataset (one split, not streamed)"
        )
    path = Path(source)
    if not path.exists():
        return check_pairs(_read_hub(str(source), columns, split, subset), str(source))
    path = path.resolve()
    require_utf8(path)
    if columns is None and is_mmeb_train(path):
        parts = [
            check_pairs(as_pairs(rows, None, root=root, name=name), f"{path.name}/{name}")
            for name, rows, root in read_mmeb_train(path, split=split, subset=subset)
        ]
        return concatenate_datasets(parts)
    rows, root = _read_local(path, columns, split)
    return check_pairs(as_pairs(rows, columns, root=root, name=subset or path.stem), str(source))


def require_pairs(pairs: Any, name: str) -> None:
    """Checks that something is what `read_pairs` returns.

    Args:
        pairs: Anything.
        name: Of the argument, for messages.

    Raises:
        ValueError: It is no `datasets.Dataset` with the columns of pairs, or it has no rows.
    """
    if not isinstance(pairs, Dataset) or not PAIR_FEATURES.keys() <= set(pairs.column_names):
        columns = getattr(pairs, "column_names", None)
        raise ValueError(
            f"{name} is a {type(pairs).__name__} with the columns {columns}, no pairs: give what "
            "`hf_mmembed.data.pairs.read_pairs` makes of it; it takes a Dataset, too."
        )
    if not len(pairs):
        raise ValueError(f"{name} has no rows.")


def query_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The query of a row as an input of `MMEmbedder.encode`: ``text``, ``image``, ``instruction``, as far as given."""
    return _input(row["query_text"], row["query_image"], row["query_instruction"])


def document_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The document of a row as an input of `MMEmbedder.encode`."""
    return _input(row["pos_text"], row["pos_image"], row["pos_instruction"])


def negatives_of(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The negatives a row brings along as inputs of `MMEmbedder.encode`, with the instruction of its document.

    Example:
        >>> negatives_of({"pos_instruction": "", "neg_text": ["a blue circle", ""]})
        [{'text': 'a blue circle'}]
    """
    texts, images = row.get("neg_text") or [], row.get("neg_image") or []
    texts = [*texts, *[""] * (len(images) - len(texts))]
    images = [*images, *[None] * (len(texts) - len(images))]
    inputs = [_input(text, image, row["pos_instruction"]) for text, image in zip(texts, images, strict=True)]
    return [item for item in inputs if "text" in item or "image" in item]


def _input(text: str | None, image: Any, instruction: str | None) -> dict[str, Any]:
    if isinstance(image, dict):
        image = image["path"] if image["bytes"] is None else image["bytes"]
    fields = {"text": text or None, "image": image, "instruction": instruction or None}
    return {name: value for name, value in fields.items() if value is not None}


def _read_local(path: Path, columns: Mapping[str, str] | None, split: str) -> tuple[Dataset, Path]:
    """Raw rows of a path that is no MMEB-train folder, and the directory that its picture paths are relative to."""
    if path.is_dir() and any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        loaded = load_saved(path)
        return _one_split(loaded, split, path) if isinstance(loaded, DatasetDict) else loaded, path
    if path.is_dir():
        metadata = [path / name for name in METADATA_NAMES if (path / name).is_file()]
        if len(metadata) != 1:
            raise ValueError(
                f"{path} is no folder of pairs: it needs one of {', '.join(METADATA_NAMES)} (it has "
                f"{' and '.join(file.name for file in metadata) or 'none'}), the layout of MMEB-train, or what "
                "`Dataset.save_to_disk` writes"
            )
        path = metadata[0]
    suffix = path.suffix.lower()
    if suffix not in TABLE_READERS:
        raise ValueError(
            f"cannot read pairs from {path}: {suffix or 'no extension'} is none of {', '.join(sorted(TABLE_READERS))}"
        )
    table = TABLE_READERS[suffix](path)
    if not any(len(column.cells) for column in table.values()):
        raise ValueError(f"{path} has no rows")
    if suffix == ".parquet":
        return Dataset.from_parquet(str(path)), path.parent
    asked_for = set((usual_columns(table) if columns is None else columns).values())
    cells = {name: list(column.cells) for name, column in table.items()}
    return Dataset(pa.table({name: _array(cells[name], name, path, name in asked_for) for name in cells})), path.parent


def _array(cells: list[Any], name: str, path: Path, asked_for: bool) -> pa.Array:
    try:
        return pa.array(cells)
    except (ValueError, TypeError, OverflowError) as error:  # pyarrow's own errors are among the first two
        if not asked_for:
            return pa.nulls(len(cells))
        if not isinstance(error, UnicodeEncodeError):
            raise ValueError(f"cannot read {path}: {name!r} holds values of different types ({error})") from error
        broken = (row for row, cell in enumerate(cells) if has_lone_surrogate(json.dumps(cell, ensure_ascii=False)))
        raise ValueError(
            f"{path}, row {next(broken)}: {name!r} is no text (it holds half of a surrogate pair)"
        ) from error


def _one_split(loaded: DatasetDict, split: str, path: Path) -> Dataset:
    if split not in loaded:
        raise ValueError(f"{path} has no split {split!r}; it has {', '.join(map(repr, sorted(loaded)))}")
    return loaded[split]


def _read_hub(name: str, columns: Mapping[str, str] | None, split: str, subset: str | None) -> Dataset:
    if name.count("/") > 1 or name.startswith((".", "/", "~")) or Path(name).suffix.lower() in TABLE_READERS:
        raise FileNotFoundError(f"no such input: {name}")
    from datasets import load_dataset

    loaded = load_dataset(name, subset, split=split)
    if columns is None and "qry_image_path" in loaded.column_names:
        raise ValueError(
            f"the pictures of {name} lie in archives beside its rows: download it (`hf download {name} --repo-type "
            "dataset --local-dir DIR`), unpack the archives as its card says, and read DIR"
        )
    return as_pairs(loaded, columns, root=None, name=subset or name.rpartition("/")[2])
