"""The schema of a pair, and how the columns of any dataset become it.

In: a `datasets.Dataset` and which of its columns is what. Out: the same rows with the columns of `PAIR_FEATURES`, and
of `NEGATIVE_FEATURES` where there are any. Stored pictures are passed on as they lie in the source, never copied.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Features, Image, List, Value, concatenate_datasets

from .rows import IMAGE_SUFFIXES
from .tables import resolve_image

__all__ = ["NEGATIVE_FEATURES", "PAIR_FEATURES", "as_pairs", "check_pairs", "usual_columns", "without_picture"]

logger = logging.getLogger(__name__)

_TEXT, _IMAGE = Value("string"), Image(decode=False)

PAIR_FEATURES = Features(
    {
        "query_text": _TEXT,
        "query_image": _IMAGE,
        "query_instruction": _TEXT,
        "pos_text": _TEXT,
        "pos_image": _IMAGE,
        "pos_instruction": _TEXT,
        "subset": _TEXT,
    }
)
"""Columns of every dataset of pairs. A text that is not there is ``""``, a picture None. An instruction says what to do
with the input: it is the same for a whole subset, or one of several wordings of the same; what differs from row to row
(a question, a change to a picture) is text."""

NEGATIVE_FEATURES = Features(
    {
        "neg_text": List(_TEXT),
        "neg_image": List(_IMAGE),
        "pos_score": Value("float64"),
        "neg_score": List(Value("float64")),
    }
)
"""Optional columns: hard negatives of the row, element by element a text, a picture or both; and what a judge thinks of
the document and of each negative, higher for a better answer. A score that is not there is None."""

_SCHEMA = {**PAIR_FEATURES, **NEGATIVE_FEATURES}
_QUERIES = ("query", "anchor", "question")
_DOCUMENTS = ("positive", "pos", "document", "answer")
_NEGATIVES = ("negative", "neg")
_CAPTIONS = ("text", "caption")
_PICTURES = ("image", "image_path", "file_name")
_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_SHOWN = 5
_LOOKED_AT = 1000


def as_pairs(rows: Dataset, columns: Mapping[str, str] | None, *, root: Path | None, name: str) -> Dataset:
    """The columns of the schema.

    Args:
        rows: Any dataset.
        columns: Column of `rows` for each column of the schema that it has. Defaults to the usual names; see
            `read_pairs`.
        root: Directory that picture paths are relative to. Defaults to the working directory.
        name: What to write into ``subset`` where `rows` has no such column.

    Raises:
        ValueError: A column is absent or of the wrong type, or queries and documents cannot be told.
    """
    chosen = _usual_names(rows) if columns is None else dict(columns)
    for ours, theirs in chosen.items():
        if ours not in _SCHEMA:
            raise ValueError(f"a pair has no column {ours!r}; it has {', '.join(_SCHEMA)}")
        if theirs not in rows.column_names:
            raise ValueError(f"no column {theirs!r} for {ours!r}; there are {_listed(rows)}")
    if not {"query_text", "query_image"} & set(chosen) or not {"pos_text", "pos_image"} & set(chosen):
        raise ValueError(
            f"cannot tell queries and documents among {_listed(rows)}: say which column is what, for instance "
            f"{_ways_to_say({'query_text': 'question', 'pos_image': 'photo'})}"
        )
    made: dict[str, Any] = {}
    stored: dict[str, str] = {}
    for ours in (*PAIR_FEATURES, *(key for key in NEGATIVE_FEATURES if key in chosen)):
        if ours not in chosen:
            made[ours] = [None if _SCHEMA[ours] == _IMAGE else name if ours == "subset" else ""] * len(rows)
        elif ours.endswith("_image") and _holds_pictures(rows, chosen[ours]):
            stored[ours] = chosen[ours]
        else:
            made[ours] = _cells(rows, ours, chosen[ours], root or Path())
    if columns is None:
        _tell_names_of_pictures(made, chosen, name)
    features = Features({ours: _SCHEMA[ours] for ours in made})
    parts = [Dataset(pa.table(made, schema=features.arrow_schema))]
    for ours, theirs in stored.items():
        column = rows.select_columns([theirs]).with_format(None).cast_column(theirs, _SCHEMA[ours])
        parts.append(column if ours == theirs else column.rename_column(theirs, ours))
    pairs = parts[0] if len(parts) == 1 else concatenate_datasets(parts, axis=1)
    return pairs.select_columns([ours for ours in _SCHEMA if ours in made or ours in stored])


def check_pairs(pairs: Dataset, name: str) -> Dataset:
    """The pairs themselves, after a look at every row.

    Raises:
        ValueError: There are no rows, or one has a side with neither text nor picture, or lists of negatives of
            different lengths. The message names the first few.
    """
    if len(pairs) == 0:
        raise ValueError(f"{name} has no rows")
    wrong: list[str] = []
    start = 0
    for batch in pairs.with_format("arrow").iter(1000):
        for side in ("query", "pos"):
            text = pc.utf8_trim_whitespace(batch.column(f"{side}_text"))
            empty = pc.and_(pc.equal(text, ""), without_picture(batch.column(f"{side}_image")))
            where = pc.indices_nonzero(empty).to_pylist()
            wrong += [f"row {start + row} has neither {side}_text nor {side}_image" for row in where]
        if "neg_text" in batch.column_names and "neg_image" in batch.column_names:
            lengths = [pc.list_value_length(batch.column(key)).fill_null(0) for key in ("neg_text", "neg_image")]
            uneven = pc.indices_nonzero(pc.not_equal(*lengths)).to_pylist()
            wrong += [f"row {start + row} has neg_text and neg_image of different lengths" for row in uneven]
        start += len(batch)
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise ValueError(f"{name}: {'; '.join(wrong[:_SHOWN])}{more}")
    return pairs


def usual_columns(there: Collection[str]) -> dict[str, str]:
    """Which columns `as_pairs` takes when it is not told, by name alone.

    Args:
        there: Names of all columns.

    Returns:
        Names of columns by a column of the schema, or by ``"query"``, ``"pos"`` and ``"neg"`` where it depends on what
        they hold whether they are texts or pictures.

    Example:
        >>> usual_columns(["anchor", "positive", "answer"])
        {'query': 'anchor', 'pos': 'positive'}
    """
    chosen = {ours: ours for ours in _SCHEMA if ours in there}
    if chosen.keys() - {"subset"}:
        return chosen
    for side, names in (("query", _QUERIES), ("pos", _DOCUMENTS), ("neg", _NEGATIVES)):
        found = next((name for name in names if name in there), None)
        if found is not None:
            chosen[side] = found
    caption = next((name for name in _CAPTIONS if name in there), None)
    picture = next((name for name in _PICTURES if name in there), None)
    if not chosen.keys() - {"subset"} and caption and picture:
        chosen |= {"query_text": caption, "pos_image": picture}
    return chosen


def _usual_names(rows: Dataset) -> dict[str, str]:
    """A guess by name: the schema itself, sentence-transformers' names, or a picture with its caption."""
    return {
        f"{ours}_{'image' if _are_pictures(rows, theirs) else 'text'}"
        if ours in ("query", "pos", "neg")
        else ours: theirs
        for ours, theirs in usual_columns(rows.column_names).items()
    }


def _tell_names_of_pictures(made: Mapping[str, Any], chosen: Mapping[str, str], name: str) -> None:
    """Warns of columns that are read as text because they are called `positive` or the like, and look like paths."""
    meant = dict(chosen)
    examples = []
    for ours in ("query_text", "pos_text", "neg_text"):
        if ours not in made or chosen.get(ours, ours) == ours:
            continue
        cells = made[ours][:_LOOKED_AT]
        lists = cells if isinstance(cells, list) else [[text] for text in cells.to_pylist()]
        texts = [text.strip() for texts in lists for text in texts if isinstance(text, str) and text.strip()]
        named = [text for text in texts if text.lower().endswith(tuple(IMAGE_SUFFIXES))]
        if 2 * len(named) > len(texts):
            examples.append(f"{chosen[ours]!r} ({named[0]!r})")
            meant = {ours.replace("text", "image") if key == ours else key: column for key, column in meant.items()}
    if examples:
        logger.warning(
            "%s: most of column %s looks like names of pictures and is read as text, for text is never a path. If they are "
            "pictures, say which column is what: %s; or call the columns %s in the file itself.",
            name, " and ".join(examples), _ways_to_say(meant), " and ".join(meant),
        )  # fmt: skip


def _ways_to_say(columns: Mapping[str, str]) -> str:
    in_yaml = ", ".join(f"{ours}: {theirs}" for ours, theirs in columns.items())
    options = " ".join(f"--column {ours}={theirs}" for ours, theirs in columns.items())
    return (
        f'columns={columns} in Python, --set "data.columns={{{in_yaml}}}" for a recipe, {options} for `hf-mmembed mine`, '
        "`judge` and `think`"
    )


def _are_pictures(rows: Dataset, name: str) -> bool:
    """Whether a column, or the lists in it, hold encoded pictures in any form."""
    kind = rows.features.arrow_schema.field(name).type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    is_binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    return is_binary or _is_stored_picture(kind) or _holds_pictures(rows, name)


def _holds_pictures(rows: Dataset, name: str) -> bool:
    """Whether a column, or the lists in it, hold encoded pictures in a form that `datasets` casts to that of a pair."""
    feature = rows.features[name]
    if isinstance(feature, Image) or (isinstance(feature, List) and isinstance(feature.feature, Image)):
        return True
    kind = rows.features.arrow_schema.field(name).type
    kind = kind.value_type if pa.types.is_list(kind) else kind
    return _is_stored_picture(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_stored_picture(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and {field.name for field in kind} == {"bytes", "path"}


def _cells(rows: Dataset, ours: str, theirs: str, root: Path) -> Any:
    """A column of texts, paths or scores in the form of the schema."""
    feature = rows.features[theirs]
    column = rows.select_columns([theirs]).with_format("arrow")[:].column(theirs)
    if ours == "pos_score":
        return column.cast(pa.float64())
    if ours in NEGATIVE_FEATURES:
        lists = [cell if isinstance(cell, list) else [cell] for cell in column.to_pylist()]
        if ours == "neg_image":
            return [[_stored(cell, root, row, theirs) for cell in cells] for row, cells in enumerate(lists)]
        empty = None if ours == "neg_score" else ""
        return [[empty if cell is None else cell for cell in cells] for cells in lists]
    if isinstance(feature, ClassLabel):
        column = pa.chunked_array([["" if cell is None else feature.int2str(cell) for cell in column.to_pylist()]])
    if pa.types.is_null(column.type):
        column = column.cast(pa.string())
    # Pictures of other binary types are passed on as they are stored, see `_holds_pictures`.
    pictures = [pa.types.is_binary_view] if ours.endswith("_image") else []
    if not any(fits(column.type) for fits in (*_TEXTS, *pictures)):
        kind = "text, a path or pictures" if pictures else "text"
        raise ValueError(f"column {theirs!r} holds {column.type}, not {kind}, which {ours!r} needs")
    if ours.endswith("_image"):
        return [_stored(cell, root, row, theirs) for row, cell in enumerate(column.to_pylist())]
    return pc.fill_null(column.cast(pa.string()), "")


def _stored(cell: Any, root: Path, row: int, name: str) -> dict[str, Any] | None:
    if isinstance(cell, bytes):
        return {"bytes": cell, "path": None}
    if isinstance(cell, dict) and cell.keys() == {"bytes", "path"}:
        return cell
    try:
        path = resolve_image(cell, root)
    except ValueError as error:
        raise ValueError(f"row {row}, column {name!r}: {error}") from error
    return None if path is None else {"bytes": None, "path": str(path)}


def without_picture(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Which of the stored pictures of a column are absent."""
    # Chunk by chunk: in one piece, more than 2 GB of pictures do not fit the offsets of their type.
    chunks = [(chunk, pc.struct_field(chunk, "bytes"), pc.struct_field(chunk, "path")) for chunk in column.chunks]
    empty = [pc.or_(pc.is_null(of), pc.and_(pc.is_null(data), pc.is_null(path))) for of, data, path in chunks]
    return pa.chunked_array(empty, pa.bool_())


def _listed(rows: Dataset) -> str:
    return ", ".join(f"{name!r} ({rows.features.arrow_schema.field(name).type})" for name in rows.column_names)
