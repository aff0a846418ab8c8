"""Which pairs make a step: whole clusters, the same number of pairs on every process.

In: clusters of row numbers ``(n_clusters, size)``, the number of pairs per process and step, and the number of
processes. Out: lists of row numbers, ``world_size`` consecutive ones per step, as accelerate deals them out.

A step is laid out in *slots*. A slot holds one cluster for each process, all of the same size, so that no process ever
has more pairs than another, however ragged the clusters. The layout (which sizes come in which step) is fixed when the
sampler is made; only which clusters fill it, and in what order, changes with the epoch. That is why every epoch has the
same number of steps.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sentence_transformers.base.sampler import DefaultBatchSampler

__all__ = ["SaHaBatchSampler"]

logger = logging.getLogger(__name__)


class SaHaBatchSampler(DefaultBatchSampler):
    """Batches of whole clusters for `SaHaTrainer`, and for any trainer of sentence-transformers.

    A global batch (``world_size`` consecutive batches) is a whole number of clusters. Within an epoch every cluster
    comes at most once, and once exactly where the clusters of each size (and subset, with ``subsets_per_batch``) are a
    multiple of ``world_size``; otherwise fewer than ``world_size`` of them sit the epoch out, others in each epoch
    (`left_out` counts them). Where there are fewer than ``world_size`` in all, they are never trained, which a warning
    tells. The order depends on ``seed`` and the epoch alone. With one cluster size, the global batches are the same
    clusters for every ``world_size`` that divides them. `most_pairs` is how many pairs the fullest global batch can have.

    Args:
        dataset: The pairs; only its length matters.
        batch_size: At most this many pairs per process and step, a whole number of clusters of the largest size.
        drop_last: Leave out steps that are not full. Defaults to False.
        valid_label_columns: Not used; part of the interface of sentence-transformers.
        generator: Not used: what comes out must not depend on what was drawn before.
        seed: Of the order. Defaults to 0.
        clusters: Row numbers ``(n_clusters, size)``, -1 where a cluster is shorter. Defaults to clusters of one row
            each, which is plain random batching; so does an array without rows, which mining returns if it finds none.
        world_size: Number of processes. Defaults to 1.
        subset_ids: Subset of each row ``(n_rows,)``, needed with ``subsets_per_batch``.
        subsets_per_batch: Clusters of a global batch come from at most this many subsets; 1 keeps subsets apart.
            Defaults to None, which mixes freely.

    Raises:
        ValueError: A cluster has no rows or more than fit into a batch, row numbers are out of range, there are too
            few clusters for one step, or a cluster mixes subsets in spite of ``subsets_per_batch``.

    Example:
        >>> sampler = SaHaBatchSampler(range(8), 4, clusters=[[0, 1], [2, 3], [4, 5], [6, 7]], world_size=2)
        >>> [len(batch) for batch in sampler], sorted(sum(sampler, []))
        ([4, 4], [0, 1, 2, 3, 4, 5, 6, 7])
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        drop_last: bool = False,
        valid_label_columns: list[str] | None = None,
        generator: torch.Generator | None = None,
        seed: int = 0,
        *,
        clusters: ArrayLike | None = None,
        world_size: int = 1,
        subset_ids: ArrayLike | None = None,
        subsets_per_batch: int | None = None,
    ) -> None:
        super().__init__(dataset, batch_size, drop_last, valid_label_columns, generator, seed)
        # accelerate takes None for "batches differ in size": it would drop every batch of another size otherwise.
        self.batch_size = None
        self.pairs_per_batch = batch_size
        self.world_size = world_size
        self.subset_ids = None if subset_ids is None else np.asarray(subset_ids)
        self.subsets_per_batch = subsets_per_batch
        if subsets_per_batch is not None and (subsets_per_batch < 1 or self.subset_ids is None):
            raise ValueError(f"subsets_per_batch is {subsets_per_batch}; it must be positive, and needs subset_ids.")
        self._steps = 0
        self.set_clusters([] if clusters is None else clusters)

    def set_clusters(self, clusters: ArrayLike) -> None:
        """Take other clusters, for instance those mined anew by the current model, from the next epoch on.

        Args:
            clusters: As for the sampler. The number of steps stays; where they give more or fewer, some sit the epoch
                out or come twice, with a warning.

        Raises:
            ValueError: As for the sampler.
        """
        rows = np.asarray(clusters)
        if rows.shape[:1] == (0,):
            rows = np.arange(len(self.sampler))[:, None]
        sizes = (rows >= 0).sum(axis=1) if rows.ndim == 2 else np.zeros(0, dtype=int)
        if rows.ndim != 2 or not len(rows) or not np.issubdtype(rows.dtype, np.integer):
            raise ValueError(
                f"clusters are {rows.dtype} {rows.shape}; they must be integers (n_clusters, size), n > 0."
            )
        if rows.max() >= len(self.sampler) or rows.min() < -1:
            raise ValueError(
                f"clusters hold the row numbers {rows.min()} to {rows.max()}, but the dataset has "
                f"{len(self.sampler)} rows; they were mined from other data."
            )
        if not sizes.all():
            raise ValueError(f"cluster {int(sizes.argmin())} has no rows; leave it out.")
        capacity = self.pairs_per_batch // (self.subsets_per_batch or 1)
        if sizes.max() > capacity:
            raise ValueError(
                f"a cluster has {sizes.max()} pairs, but a batch takes {self.pairs_per_batch} pairs per process"
                f"{f' from {self.subsets_per_batch} subsets' if self.subsets_per_batch else ''}, {capacity} of each; "
                "make batches larger or clusters smaller."
            )
        groups = np.zeros(len(rows), dtype=np.int64)
        if self.subsets_per_batch is not None and self.subset_ids is not None:
            groups = self.subset_ids[rows.max(axis=1)].astype(np.int64)
            mixed = np.flatnonzero(((self.subset_ids[rows] != groups[:, None]) & (rows >= 0)).any(axis=1))
            if len(mixed):
                raise ValueError(
                    f"{len(mixed)} of {len(rows)} clusters mix subsets, cluster {mixed[0]} first, but subsets_per_batch is "
                    f"{self.subsets_per_batch}; mine with a strategy other than 'random', all of which keep subsets "
                    "apart, or leave subsets_per_batch out."
                )
        previous = self._steps
        self._rows = rows
        self._lay_out(sizes, groups, capacity)
        if self._steps == 0:
            raise ValueError(
                f"{len(rows)} clusters are too few for one step of {self.world_size} processes"
                f"{' with full batches' if self.drop_last else ''}; use fewer processes or smaller batches."
            )
        if self._never:
            logger.warning(
                "%d of %d clusters are never trained: there are fewer than %d of their size%s, one for each process",
                self._never,
                len(rows),
                self.world_size,
                "" if self.subsets_per_batch is None else " and subset",
            )
        if previous not in (0, self._steps):
            logger.warning(
                "the new clusters give %d steps per epoch instead of %d, but the length of a run is fixed when it "
                "starts: %s",
                self._steps,
                previous,
                "some sit the epoch out" if self._steps > previous else "some come twice in an epoch",
            )
            self._steps = previous

    def _lay_out(self, sizes: NDArray[Any], groups: NDArray[Any], capacity: int) -> None:
        """Decide which kinds of clusters (group and size) come in which slot, and which slots make a portion.

        A portion is what one subset gives to a step: slots of at most `capacity` pairs per process.
        """
        rng = np.random.default_rng([self.seed])
        _, firsts, kinds = np.unique(groups * (sizes.max() + 1) + sizes, return_index=True, return_inverse=True)
        self._members = np.split(np.argsort(kinds, kind="stable"), np.cumsum(np.bincount(kinds))[:-1])
        slots_of_kind = np.array([len(members) // self.world_size for members in self._members])
        self._never = sum(len(members) for members in self._members if len(members) < self.world_size)
        self.left_out = len(kinds) - int(slots_of_kind.sum()) * self.world_size
        self._kinds_of_slots = np.zeros(0, dtype=np.int64)
        self._portions: list[tuple[int, int]] = []
        for group in np.unique(groups):
            own = np.flatnonzero(groups[firsts] == group)
            slots = rng.permutation(np.repeat(own, slots_of_kind[own]))
            self._portions += self._pack(sizes[firsts][slots], capacity, start=len(self._kinds_of_slots))
            self._kinds_of_slots = np.concatenate([self._kinds_of_slots, slots])
        per_step = self.subsets_per_batch or 1
        self._steps = len(self._portions) // per_step if self.drop_last else -(-len(self._portions) // per_step)
        ends = np.concatenate([[0], np.cumsum(sizes[firsts][self._kinds_of_slots])])
        widths = sorted(int(ends[end] - ends[begin]) for begin, end in self._portions)
        self.most_pairs = sum(widths[-per_step:]) * self.world_size

    def _pack(self, widths: NDArray[Any], capacity: int, start: int) -> list[tuple[int, int]]:
        """Cut a row of slots of these widths into portions; as places among all slots, the first of which is `start`."""
        ends = np.cumsum(widths)
        portions, begin = [], 0
        while begin < len(ends):
            used = int(ends[begin - 1]) if begin else 0
            end = int(np.searchsorted(ends, used + capacity, side="right"))
            full = end < len(ends) or ends[-1] - used + widths.min() > capacity
            if full or not self.drop_last:
                portions.append((start + begin, start + end))
            begin = end
        return portions

    def __len__(self) -> int:
        return self._steps * self.world_size

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        slots = np.empty((len(self._kinds_of_slots), self.world_size), dtype=np.int64)
        for kind, members in enumerate(self._members):
            places = self._kinds_of_slots == kind
            slots[places] = rng.permutation(members)[: places.sum() * self.world_size].reshape(-1, self.world_size)
        per_step = self.subsets_per_batch or 1
        portions = rng.permutation(len(self._portions))
        if len(portions) <= (self._steps - 1) * per_step:
            portions = np.resize(portions, self._steps * per_step)
        rows = rng.permuted(self._rows, axis=1)
        for step in range(self._steps):
            chosen = [self._portions[p] for p in portions[step * per_step : (step + 1) * per_step]]
            clusters = np.concatenate([slots[begin:end] for begin, end in chosen])
            for rank in range(self.world_size):
                batch = rows[clusters[:, rank]].ravel()
                yield batch[batch >= 0].tolist()
