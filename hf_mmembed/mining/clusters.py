"""The result of mining: which pairs are to be trained in one batch, and how they came together.

In: row numbers of a dataset of pairs. Out: `Clusters`, and on the disk a directory with ``clusters.arrow`` (a table of
one cluster per line, which ``datasets.Dataset.from_file`` opens too) and ``clusters.json`` (what made them, in words
and counts).
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_mmembed.files import write_atomically

if TYPE_CHECKING:
    from .ids import ContentIds

__all__ = ["Clusters"]

logger = logging.getLogger(__name__)

FORMAT = "hf_mmembed/clusters"
FORMAT_VERSION = 1
_TABLE, _MANIFEST = "clusters.arrow", "clusters.json"


@dataclass(frozen=True)
class Clusters:
    """Groups of pairs for training: every member's document is a negative for every other member's query.

    Attributes:
        rows: ``(clusters, k + 1)``, int64: row numbers of the pairs, the anchor first, −1 where a cluster is shorter
            (only with the strategy ``saha-paper``).
        strategy: What built them.
        settings: The arguments they were built with, by name; from `mine_pairs` also ``"data"``, the fingerprint of the
            pairs, ``"miner"``, the model, and ``"canonical_instruction"`` where one was given.
        counts: How often each rule dropped a candidate, and how often clusters had to be refilled.
        diagnostics: One array of shape ``(clusters,)`` per name: what happened to the candidates of each anchor.
        recall: Share of queries whose document is among the 1, 5 and 10 nearest (``"recall@1"`` ...).
    """

    rows: np.ndarray
    strategy: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    diagnostics: Mapping[str, np.ndarray] = field(default_factory=dict)
    recall: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rows.ndim != 2 or self.rows.dtype != np.int64:
            raise ValueError(f"rows must be int64 of shape (clusters, k + 1), not {self.rows.dtype} {self.rows.shape}")
        for name, values in self.diagnostics.items():
            if values.shape != (len(self.rows),):
                raise ValueError(f"diagnostics[{name!r}] has shape {values.shape} for {len(self.rows)} clusters")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def sizes(self) -> np.ndarray:
        """Members of each cluster, shape ``(clusters,)``."""
        return (self.rows >= 0).sum(1)

    def require_made_of(self, ids: ContentIds) -> None:
        """Refuse pairs that these are no clusters of; those of an earlier version do not know theirs, which is logged.

        Args:
            ids: Of the pairs.

        Raises:
            ValueError: The clusters were made of other pairs, whose row numbers mean something else.
        """
        made_of = self.settings.get("data")
        if made_of is None:
            logger.warning("these clusters do not say of which pairs they were made; make sure that it was these")
        elif made_of != ids.fingerprint:
            raise ValueError(
                f"these clusters were made of other pairs, or of these in another order: their fingerprint is {made_of}, "
                f"not {ids.fingerprint}. Mine these pairs (`hf-mmembed mine`), or give those that were mined."
            )

    def save(self, directory: str | Path) -> None:
        """Writes the clusters into a directory, which is created if needed; what is there is replaced at once.

        Example:
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     Clusters(np.array([[2, 0], [1, 3]]), "random").save(folder)
            ...     Clusters.load(folder).rows.tolist()
            [[2, 0], [1, 3]]
        """
        import pyarrow as pa

        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        manifest = json.dumps(self._manifest(), indent=2, ensure_ascii=False).encode()
        flat = pa.array(np.ascontiguousarray(self.rows).ravel())
        columns = {"rows": pa.FixedSizeListArray.from_arrays(flat, self.rows.shape[1])}
        columns |= {name: pa.array(values) for name, values in self.diagnostics.items()}
        # The manifest travels in the table, so that the two can never be of different runs.
        table = pa.table(columns).replace_schema_metadata({FORMAT: manifest})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        write_atomically(directory / _TABLE, sink.getvalue().to_pybytes())
        write_atomically(directory / _MANIFEST, manifest + b"\n")

    @classmethod
    def load(cls, directory: str | Path) -> Clusters:
        """Reads what `save` wrote.

        Raises:
            ValueError: The directory holds no clusters, or those of a newer version.
        """
        import pyarrow as pa

        path = Path(directory) / _TABLE
        if not path.is_file():
            raise ValueError(f"no clusters in {directory}: make some with `hf-mmembed mine MODEL DATA {directory}`")
        try:
            with pa.memory_map(os.fspath(path)) as file, pa.ipc.open_stream(file) as reader:
                table = reader.read_all()
            manifest = json.loads((table.schema.metadata or {})[FORMAT.encode()])
            version = manifest["format_version"]
            if version > FORMAT_VERSION:
                raise ValueError(f"they have format version {version}, this hf_mmembed reads up to {FORMAT_VERSION}")
            column = table.column("rows").combine_chunks()
            rows = column.flatten().to_numpy().reshape(len(column), column.type.list_size).copy()
            diagnostics = {name: table.column(name).to_numpy().copy() for name in table.column_names if name != "rows"}
            described = {name: manifest[name] for name in ("strategy", "settings", "counts", "recall")}
            return cls(rows, **described, diagnostics=diagnostics)
        except (ValueError, KeyError) as error:
            raise ValueError(f"cannot read the clusters in {path}: {error}") from error

    def _manifest(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "strategy": self.strategy,
            "clusters": len(self.rows),
            "size": self.rows.shape[1],
            "settings": dict(self.settings),
            "counts": dict(self.counts),
            "recall": dict(self.recall),
        }
