"""Self-aware hard negative sampling, one query at a time and in pictures.

In: pairs of the drawn world, whose truth is known, and the model of the Space. Out: for a query the nearest documents,
who owns them, which rules suspect them of being answers that nobody marked, whether they are, and the cluster that
mining makes of it. All decisions are those of `hf_mmembed.mining`; nothing is recomputed here.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from html import escape

import numpy as np
import torch
from engine import Engine, uri
from PIL import Image

from hf_mmembed.mining import DEFAULT_RULES, content_ids, mine
from hf_mmembed.mining.candidates import nearest_documents
from hf_mmembed.mining.filters import RULES, FalseNegativeFilter
from hf_mmembed.mining.relations import Relations
from hf_mmembed.tiny.pairs import draw_pairs

__all__ = ["Candidate", "Explorer", "Member", "candidate_list"]

FAMILIES = 24
DEPTH = 12
CLUSTER = 7
MAX_CHOICES = 40
WHY = {
    "rank": "its owner asks one of the most similar questions of all candidates",
    "query_similarity": "its owner asks nearly the same as you",
    "margin": "it fits your query better than your own picture does",
    "document_similarity": "it looks nearly the same as your own picture",
}


@dataclass(frozen=True)
class Candidate:
    """A document near the query.

    Attributes:
        uri: Its picture.
        score: Cosine with the query.
        owner: The most similar query whose answer it is, in its own words.
        rules: Names of the rules that suspect it of being an answer.
        is_answer: Whether it truly answers the query, known from the drawing.
    """

    uri: str
    score: float
    owner: str
    rules: tuple[str, ...]
    is_answer: bool


@dataclass(frozen=True)
class Member:
    """A pair of a cluster: its row, and whether its picture truly answers the query that was picked."""

    row: int
    is_answer: bool


class Explorer:
    """Pairs of captions and pictures, embedded on first use (some seconds).

    Args:
        engine: The model.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        drawn = draw_pairs(3, families=FAMILIES, pixels=96)
        rows = np.flatnonzero(np.array(drawn.pairs["subset"]) == "text_to_image")
        self._drawn, self._rows = drawn, rows
        pairs = drawn.pairs.select(rows)
        self._texts: list[str] = pairs["query_text"]
        self._images = [Image.open(io.BytesIO(image["bytes"])).convert("RGB") for image in pairs["pos_image"]]
        ids = content_ids(pairs)
        self._query_ids, self._document_ids = ids.query_ids, ids.document_ids
        self._query_rows, self._document_rows = ids.query_rows, ids.document_rows

    @cached_property
    def _embeddings(self) -> tuple[torch.Tensor, torch.Tensor]:
        queries = self._engine.embed([{"text": self._texts[row]} for row in self._query_rows], "query")
        documents = self._engine.embed([{"image": self._images[row]} for row in self._document_rows], "document")
        return torch.from_numpy(queries), torch.from_numpy(documents)

    @cached_property
    def _relations(self) -> Relations:
        return Relations(self._query_ids, self._document_ids, len(self._query_rows), len(self._document_rows))

    @cached_property
    def _clusters(self) -> np.ndarray:
        queries, documents = self._embeddings
        return mine(self._query_ids, self._document_ids, queries, documents, k=CLUSTER).rows

    @cached_property
    def choices(self) -> list[tuple[str, int]]:
        """Queries to pick from, as (text, row): anchors of clusters.

        First those whose cluster is clean and for which the most true answers are set aside.
        """

        def set_aside(row: int) -> int:
            documents, _, marks = self._judged(row)
            return int((self._are_answers(row, documents) & (marks > 0)).sum())

        def order(row: int) -> tuple[int, int, int]:
            return sum(member.is_answer for member in self.cluster(row)), -set_aside(row), len(self._texts[row])

        rows = sorted(map(int, self._clusters[:MAX_CHOICES, 0]), key=order)
        return [(self._texts[row], row) for row in rows]

    def own_picture(self, row: int) -> str:
        """The picture that the pair names as the answer."""
        return uri(self._images[row])

    def candidates(self, row: int) -> list[Candidate]:
        """The documents nearest to the query of a pair, its own left out, nearest first."""
        queries, _ = self._embeddings
        anchor = self._query_ids[row]
        documents, scores, marks = self._judged(row)
        answers = self._are_answers(row, documents)
        candidates = []
        for document, score, mark, is_answer in zip(documents, scores, marks, answers, strict=True):
            owners = self._relations.owners[document]
            nearest_owner = owners[int(torch.argmax(queries[owners] @ queries[anchor]))]
            candidates.append(
                Candidate(
                    uri=uri(self._images[self._document_rows[document]]),
                    score=float(score),
                    owner=self._texts[self._query_rows[nearest_owner]],
                    rules=tuple(name for bit, name in enumerate(RULES) if mark >> bit & 1),
                    is_answer=bool(is_answer),
                )
            )
        return candidates

    def _judged(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Candidates `(depth,)` of a pair's query: document numbers, cosines, and the rules that suspect them, as bits."""
        queries, documents = self._embeddings
        anchor = np.array([self._query_ids[row]])
        depth = DEPTH + len(self._relations.positives[anchor[0]])
        found = nearest_documents(queries[anchor], documents, depth)
        own = self._relations.are_positives(anchor[:, None], found.documents)
        near, scores = found.documents[~own][:DEPTH], found.scores[~own][:DEPTH]
        judge = FalseNegativeFilter(queries, documents, self._relations, DEFAULT_RULES["saha"])
        return near, scores, judge.suspicions(anchor, near[None])[0]

    def _are_answers(self, row: int, documents: np.ndarray) -> np.ndarray:
        """Whether each document truly answers the query of a pair, marked or not."""
        return self._drawn.truth(self._rows[[row]], self._rows[self._document_rows[documents]])[0]

    def cluster(self, row: int) -> list[Member]:
        """The cluster with this pair, the pair itself first."""
        [rows] = self._clusters[(self._clusters == row).any(axis=1)]
        others = np.array([member for member in rows if member != row])
        answers = self._drawn.truth(self._rows[[row]], self._rows[others])[0]
        return [Member(row, False), *(Member(int(o), bool(a)) for o, a in zip(others, answers, strict=True))]

    def cluster_view(self, row: int) -> str:
        """The cluster as pictures with their queries; a true answer that came through is marked."""
        figures = []
        for member in self.cluster(row):
            kind = "anchor" if member.row == row else "leak" if member.is_answer else ""
            leak = '<div class="leak-note">an answer that came through</div>' if member.is_answer else ""
            text = escape(self._texts[member.row])
            figures.append(
                f'<figure class="{kind}"><img src="{uri(self._images[member.row])}" alt="{text}">'
                f"<figcaption>{text}{leak}</figcaption></figure>"
            )
        return f'<div class="cluster">{"".join(figures)}</div>'


def candidate_list(candidates: list[Candidate]) -> str:
    """The candidates with what became of each."""
    items = []
    for candidate in candidates:
        dropped = bool(candidate.rules)
        why = "; ".join(WHY[rule] for rule in candidate.rules)
        verdict = (
            '<span class="badge drop">set aside</span>' if dropped else '<span class="badge kept">hard negative</span>'
        )
        right = dropped == candidate.is_answer
        truth = "it is an answer" if candidate.is_answer else "it is no answer"
        judged = f"rightly: {truth}" if right else f"wrongly: {truth}"
        reason = f'<div class="why">{escape(why[:1].upper() + why[1:])}.</div>' if dropped else ""
        items.append(
            f'<li class="step{" dropped" if dropped else ""}"><img src="{candidate.uri}" alt="candidate">'
            f'<div><div class="said">Owner asks: “{escape(candidate.owner)}” <span class="score">· cosine '
            f"{candidate.score:.3f}</span></div>{reason}</div>"
            f'<div class="badges">{verdict}<span class="badge truth{"" if right else " wrong"}">{judged}</span></div></li>'
        )
    aside = [candidate for candidate in candidates if candidate.rules]
    summary = (
        f"Of the {len(candidates)} nearest pictures {len(aside)} are set aside, and "
        f"{sum(candidate.is_answer for candidate in aside)} of these really answer the query. Of the "
        f"{len(candidates) - len(aside)} kept as hard negatives, "
        f"{sum(candidate.is_answer for candidate in candidates) - sum(candidate.is_answer for candidate in aside)} do."
    )
    return (
        f'<div class="summary">{summary}</div>'
        f'<ol class="steps" aria-label="Candidates, nearest first">{"".join(items)}</ol>'
    )
