"""UniME-V2's loss: a judge's scores as soft labels of a pair's own hard negatives.

In: unit embeddings of queries, positives and hard negatives, and the scores of the judge. Out: a loss per pair.
"""

from __future__ import annotations

from itertools import islice, zip_longest

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import log_softmax

from hf_mmembed.sentence_transformer import MMEmbedder

from .chunks import ChunkedLoss, Facts

__all__ = ["SoftLabelLoss"]

_SHOWN = 5
_ROWS_AT_ONCE = 1000


class SoftLabelLoss(ChunkedLoss):
    """The similarities of a query to its document and its hard negatives should be distributed as a judge's scores are.

    UniME-V2 (https://arxiv.org/abs/2510.13515, section 3.3): over the positive and the negatives of its own row, P is the
    softmax of the cosines and Q that of the scores, both divided by the temperature; the loss is half of
    KL(P||Q) + KL(Q||P). The paper calls it the Jensen-Shannon divergence; it is the symmetrised Kullback-Leibler
    divergence. Documents of other rows take no part, so batches may be made in any way. A row without negatives has
    nothing to learn from and a loss of zero.

    Args:
        model: The embedder.
        pairs: What is trained on, with ``pos_score`` and ``neg_score`` in every row that has negatives; made by
            ``hf-mmembed judge``.
        temperature: Similarities and scores are divided by it. Defaults to 0.02.
        mini_batch_size: See `ChunkedLoss`.
        mini_batch_num_tokens: See `ChunkedLoss`.

    Raises:
        ValueError: The temperature is not positive, there are no negatives, or rows lack scores; the message names them.
    """

    def __init__(
        self,
        model: MMEmbedder,
        pairs: Dataset,
        *,
        temperature: float = 0.02,
        mini_batch_size: int = 32,
        mini_batch_num_tokens: int = 8_192,
    ) -> None:
        super().__init__(model, temperature, mini_batch_size, mini_batch_num_tokens)
        self._scores = _scores_of(pairs)

    def losses(self, queries: Tensor, documents: Tensor, negatives: Tensor, facts: Facts, own: slice) -> Tensor:
        """See `ChunkedLoss.losses`. Metrics: ``positive``, ``hardest_negative``, ``hardness`` (their difference), and
        ``judged_hardness``, the same difference between the scores."""
        scores, theirs, there = self._table(facts, own, len(documents), queries.dtype)
        candidates = torch.cat([documents, negatives])[theirs]  # (n, 1 + most, dim)
        cosines = torch.einsum("nd,ncd->nc", queries[own], candidates)
        self._measure(cosines.detach(), scores, there)
        log_p, log_q = (
            log_softmax((values / self.temperature).masked_fill(~there, -torch.inf), dim=1)
            for values in (cosines, scores.to(cosines.dtype))
        )
        # (P - Q) * (log P - log Q), summed, is KL(P||Q) + KL(Q||P); empty places would be 0 * (-inf + inf).
        log_p, log_q = log_p.masked_fill(~there, 0), log_q.masked_fill(~there, 0)
        return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(dim=1) / 2

    def _table(self, facts: Facts, own: slice, pairs: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Scores, places among all documents, and which of them there are, all ``(n, 1 + most)``; the positive first."""
        rows = facts.rows[own].tolist()
        places_of: dict[int, list[int]] = {}
        for place, row in enumerate(facts.negative_rows.tolist(), pairs):
            places_of.setdefault(row, []).append(place)
        width = 1 + max((len(places_of.get(row, ())) for row in rows), default=0)
        scores = torch.zeros(len(rows), width, dtype=torch.float64)
        places = torch.zeros(len(rows), width, dtype=torch.int64)
        there = torch.zeros(len(rows), width, dtype=torch.bool)
        for line, row in enumerate(rows):
            judged = torch.from_numpy(self._scores[row])
            # A row that is in the batch twice has its negatives there twice.
            own_places = [own.start + line, *places_of.get(row, ())[: max(0, len(judged) - 1)]]
            scores[line, : len(judged)] = judged
            places[line, : len(own_places)] = torch.tensor(own_places)
            there[line, : len(own_places)] = True
        device = facts.rows.device
        # Two steps: not every device has float64.
        return scores.to(dtype).to(device), places.to(device), there.to(device)

    def _measure(self, cosines: Tensor, scores: Tensor, there: Tensor) -> None:
        with_negatives = there.sum(dim=1) > 1
        cosines, scores = (
            values.masked_fill(~there, -torch.inf)[with_negatives] for values in (cosines, scores.to(cosines))
        )
        hardest, judged = (values[:, 1:].amax(dim=1) if len(values) else values[:, 0] for values in (cosines, scores))
        self.metrics = {
            "positive": cosines[:, 0].mean(),
            "hardest_negative": hardest.mean(),
            "hardness": (cosines[:, 0] - hardest).mean(),
            "judged_hardness": (scores[:, 0] - judged).mean(),
        }


def _scores_of(pairs: Dataset) -> list[np.ndarray]:
    """Per row the score of the document and those of the negatives that `negatives_of` gives, ``(1 + negatives,)``."""
    if not {"neg_text", "neg_image"} & set(pairs.column_names):
        raise ValueError("the loss 'soft-labels' needs hard negatives: these pairs have no neg_text and no neg_image.")
    columns = [name for name in ("neg_text", "neg_image", "pos_score", "neg_score") if name in pairs.column_names]
    found: list[np.ndarray] = []
    lacking: list[int] = []
    for table in pairs.select_columns(columns).with_format("arrow").iter(_ROWS_AT_ONCE):
        own, of_negatives = (
            table.column(name).to_pylist() if name in columns else [None] * len(table)
            for name in ("pos_score", "neg_score")
        )
        texts, pictures = (_given(table, name) for name in ("neg_text", "neg_image"))
        for positive, scores, *given in zip(own, of_negatives, texts, pictures, strict=True):
            real = [any(parts) for parts in zip_longest(*given, fillvalue=False)]
            kept = np.empty(0)
            if any(real):
                listed = [score for score, there in zip_longest(scores or [], real) if there or there is None]
                kept = np.array([positive, *listed], np.float64)  # None becomes NaN
                if len(kept) != 1 + sum(real) or not np.isfinite(kept).all():
                    lacking.append(len(found))
            found.append(kept)
    if lacking:
        shown = ", ".join(map(str, lacking[:_SHOWN])) + (" ..." if len(lacking) > _SHOWN else "")
        raise ValueError(
            f"{len(lacking)} of {len(found)} rows lack scores: one pos_score, and one neg_score per negative, all finite. "
            f"Rows {shown}. Let a judge give them (`hf-mmembed judge`), or leave these rows out."
        )
    return found


def _given(table: pa.Table, name: str) -> list[list[bool]]:
    """Which elements of a column of lists hold something; pictures are not read for it."""
    if name not in table.column_names:
        return [[]] * len(table)
    column = table.column(name).combine_chunks()
    values = pc.list_flatten(column)
    if name == "neg_text":
        flags = pc.not_equal(pc.fill_null(values, ""), "")
    else:
        flags = pc.or_(*(pc.is_valid(pc.struct_field(values, part)) for part in ("bytes", "path")))
    remaining = iter(flags.to_pylist())
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_pylist()
    return [list(islice(remaining, length)) for length in lengths]
