"""Reads the visual documents of MMEB-V2: queries, relevance judgements and pages in the BEIR layout.

In: a folder with ``queries``, ``qrels`` and ``corpus`` of each data set, and its pages as PNG files or inside the
corpus. Out: a `Ranking` where every query ranks all pages, graded. Formats: the parsers ``vidore`` and ``visrag`` of the
VLM2Vec repository.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from .instructions import WORDINGS, Protocol, built_item
from .items import Item
from .media import Pictures
from .subsets import OLD_SPLITS, Subset
from .tables import find, read_images, read_rows
from .tasks import Ranking

__all__ = ["read_v2_visdoc"]

# Repositories of the annotations. The -multilingual sets are all languages of a repository; where it has a "language"
# column, all its rows count.
_REPOSITORIES = {
    "ViDoRe_arxivqa": "vidore/arxivqa_test_subsampled_beir",
    "ViDoRe_docvqa": "vidore/docvqa_test_subsampled_beir",
    "ViDoRe_infovqa": "vidore/infovqa_test_subsampled_beir",
    "ViDoRe_tabfquad": "vidore/tabfquad_test_subsampled_beir",
    "ViDoRe_tatdqa": "vidore/tatdqa_test_beir",
    "ViDoRe_shiftproject": "vidore/shiftproject_test_beir",
    "ViDoRe_esg_reports_human_labeled_v2": "vidore/esg_reports_human_labeled_v2",
    "ViDoSeek-doc": "VLM2Vec/ViDoSeek",
}


def read_v2_visdoc(root: Path, subset: Subset, protocol: Protocol) -> Ranking:
    """One data set of visual documents; ``*-page-fixed`` and the old ``*-page`` are two.

    Raises:
        Missing: It is not there.
        ValueError: It is broken, or a page is missing; the message names it.
    """
    name = subset.name
    folder = find(root, _places(name))
    split = "train" if name.startswith("VisRAG") else "test"
    queries = read_rows(find(folder, ["queries"]), ("query-id", "query"), split=split)
    judged = read_rows(find(folder, ["qrels"]), ("query-id", "corpus-id", "score"), split=split)
    corpus_ids = (str(row["corpus-id"]) for row in read_rows(find(folder, ["corpus"]), ("corpus-id",), split=split))
    corpus = list(dict.fromkeys(corpus_ids))
    places = [root / place for place in _page_places(name)]
    if not any(place.is_dir() for place in places):
        _unpack_pages(folder / "corpus", split, name, places[0])
    pages = Pictures(places)
    wording = WORDINGS["visdoc"]
    documents = []
    for corpus_id in corpus:
        picture = pages[_page_file(name, corpus_id)]
        item = built_item(None, (picture,), wording.target, protocol, "document", candidate=True)
        text = f" {item.text}" if item.text else None
        documents.append(Item(text, item.images, None, item.role))
    place_of = {corpus_id: place for place, corpus_id in enumerate(corpus)}
    grades: dict[str, dict[int, int]] = {}
    for number, row in enumerate(judged):
        corpus_id, score = str(row["corpus-id"]), int(row["score"])
        if corpus_id not in place_of:
            raise ValueError(f"{folder}/qrels, row {number}: {corpus_id!r} is not in the corpus")
        if score > 0:
            own = grades.setdefault(str(row["query-id"]), {})
            own[place_of[corpus_id]] = max(score, own.get(place_of[corpus_id], 0))
    asked = [built_item(row["query"], (), wording.query, protocol, "query") for row in queries]
    relevance = []
    for row in queries:
        if str(row["query-id"]) not in grades:
            raise ValueError(f"{folder}: no page is relevant to the query {row['query-id']!r}")
        relevance.append(grades[str(row["query-id"])])
    notes = {"rows": len(queries), "candidates": len(documents), "split": _split(name)}
    return Ranking(asked, documents, relevance, None, "quicksort", notes)


def _unpack_pages(corpus: Path, split: str, name: str, out: Path) -> None:
    """Writes the pages that lie in the corpus as files, as the official code does on its first run.

    Raises:
        ValueError: They cannot be written there, or the corpus is broken.
    """
    aside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        aside.mkdir(parents=True, exist_ok=True)
        for corpus_id, data in read_images(corpus, "corpus-id", split=split):
            (aside / _page_file(name, corpus_id)).write_bytes(data)
        aside.rename(out)
    except OSError as error:
        if not out.is_dir():  # unless another process was faster
            raise ValueError(
                f"cannot unpack the pages into {out}: {error}; free space or make the folder writable, "
                "or evaluate a copy of the data that is writable"
            ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _split(name: str) -> str:
    if name in OLD_SPLITS:
        return "page-fixed"
    return "old page labels" if name in OLD_SPLITS.values() else "original"


def _places(name: str) -> Iterator[str]:
    if name.startswith("VisRAG_"):
        repository = f"openbmb/VisRAG-Ret-Test-{name.removeprefix('VisRAG_')}"
    elif name.startswith("ViDoRe_syntheticDocQA"):
        repository = f"vidore/{name.removeprefix('ViDoRe_')}_test_beir"
    elif name.endswith("_v2_multilingual"):
        repository = f"vidore/{name.removeprefix('ViDoRe_').removesuffix('_multilingual')}"
    else:
        repository = _REPOSITORIES.get(name, f"VLM2Vec/{name}")
    title = repository.partition("/")[2]
    yield from (f"visdoc-tasks/data/{title}", f"visdoc-tasks/data/{name}")
    yield from (f"annotation/{repository}", f"annotations/{repository}", repository, name)


def _page_places(name: str) -> Iterator[str]:
    short = name.removeprefix("ViDoRe_") if "_v2" in name else name
    for title in dict.fromkeys((name, short)):
        yield from (f"visdoc-tasks/images/{title}", f"visdoc-tasks/{title}", f"images/{title}")


def _page_file(name: str, corpus_id: str) -> str:
    if not name.startswith("VisRAG_"):
        return f"{corpus_id}.png"
    # The official code shortens VisRAG's long names and keeps them apart by a digest.
    stem, suffix = os.path.splitext(corpus_id)
    short = hashlib.md5(corpus_id.encode(), usedforsecurity=False).hexdigest()[:8]
    return f"{stem[:50]}_{short}{suffix}"
