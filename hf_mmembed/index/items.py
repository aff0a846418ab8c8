"""What a finished directory of embeddings holds beside the vectors, read row by row.

In: the directory and its manifest. Out: name, text, path and fingerprint of a row. Only the file with this row is opened:
millions of rows lie in thousands of files, which take minutes to open as one dataset.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from .embedding import ITEMS, SKIPPED
from .manifest import Manifest
from .shards import read_dataset, read_row

__all__ = ["Items"]


class Items:
    """The rows of a finished directory.

    Attributes:
        fingerprint: Of the dataset that the rows are in; see `dataset_fingerprint`.

    Raises:
        ValueError: The list of its files, or that of the rows without an embedding, is missing, damaged or not that of
            `manifest`.
    """

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self._size = manifest.shard_size
        try:
            self._files, self.fingerprint = read_dataset(directory / ITEMS)
            needed = -(-manifest.rows // manifest.shard_size)
            if len(self._files) != needed:
                raise ValueError(f"it lists {len(self._files)} files, and {manifest.rows} rows need {needed}")
            self._before_skipped = _before_skipped(directory / SKIPPED, manifest)
        except (ValueError, OSError) as error:
            raise ValueError(
                f"cannot read {directory} ({error}): run `hf-mmembed index` again, its embeddings are kept"
            ) from error

    def row(self, place: int) -> int:
        """The row of the input that an embedding is of; embeddings are counted from 0, in the order of the rows."""
        return place + int(np.searchsorted(self._before_skipped, place, side="right"))

    def read(self, row: int) -> dict[str, Any]:
        """Row, name, text, path and fingerprint of an embedded row.

        Raises:
            ValueError: Its file is gone or damaged.
        """
        path = self._files[row // self._size]
        try:
            return read_row(path, row)
        except FileNotFoundError as error:
            raise ValueError(
                f"{path} is gone: if the directory was indexed again meanwhile, open it anew, else run `hf-mmembed index` "
                "again"
            ) from error
        except (ValueError, OSError) as error:
            raise ValueError(f"cannot read {path}: run `hf-mmembed index` again, which says what to do") from error


def _before_skipped(path: Path, manifest: Manifest) -> np.ndarray:
    """For every row without an embedding, in order: how many rows before it have one."""
    expected = manifest.rows - manifest.embedded
    if expected == 0:
        return np.empty(0, np.int64)
    with path.open(encoding="utf-8") as lines:
        # What could not even be listed has no row.
        rows = np.array(sorted(row for line in lines if (row := json.loads(line)["row"]) is not None), np.int64)
    if len(rows) != expected:
        raise ValueError(f"{path.name} names {len(rows)} rows, and {expected} have no embedding")
    return rows - np.arange(len(rows))
