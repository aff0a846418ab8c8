"""The data sets of each benchmark, as data: name, modality, meta-task, in or out of the training distribution.

In: the name of a benchmark. Out: its `Subset` rows in the leaderboard's order. Sources: MMEB (arXiv 2410.05160, table
1; the lists in the VLM2Vec repository), MMEB-V2 (arXiv 2507.04590; ``experiments/report_score_v2.py`` and
``docs/mmebv2_reproduction`` of that repository), SugarCrepe and SugarCrepe++ (the ``data`` folders of their own).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from .instructions import Wording

__all__ = [
    "BENCHMARKS",
    "MMEB_V1",
    "MMEB_V2",
    "OFFICIAL_QUERIES",
    "OLD_SPLITS",
    "SUGARCREPE",
    "SUGARCREPE_PP",
    "Subset",
    "choose",
    "read_subsets",
]

BENCHMARKS = ("mmeb-v1", "mmeb-v2", "sugarcrepe", "sugarcrepe-pp", "retrieval")


@dataclass(frozen=True)
class Subset:
    """One data set of a benchmark.

    Attributes:
        name: As on the leaderboard.
        modality: ``"image"``, ``"video"``, ``"visdoc"`` or, outside MMEB, the name of the benchmark.
        meta_task: The group it is averaged in.
        metric: The score that counts.
        distribution: ``"IND"`` when MMEB-train holds its training split, ``"OOD"`` when not; None where nobody says.
    """

    name: str
    modality: str
    meta_task: str
    metric: str = "hit@1"
    distribution: str | None = None


_META_TASKS = {
    "Classification": (
        "ImageNet-1K N24News HatefulMemes VOC2007 SUN397",
        "Place365 ImageNet-A ImageNet-R ObjectNet Country211",
    ),
    "VQA": ("OK-VQA A-OKVQA DocVQA InfographicsVQA ChartQA Visual7W", "ScienceQA VizWiz GQA TextVQA"),
    "Retrieval": (
        "VisDial CIRR VisualNews_t2i VisualNews_i2t MSCOCO_t2i MSCOCO_i2t NIGHTS WebQA",
        "FashionIQ Wiki-SS-NQ OVEN EDIS",
    ),
    "Grounding": ("MSCOCO", "RefCOCO RefCOCO-Matching Visual7W-Pointing"),
}

MMEB_V1 = tuple(
    Subset(name, "image", meta_task, distribution=distribution)
    for meta_task, sides in _META_TASKS.items()
    for distribution, names in zip(("IND", "OOD"), sides, strict=True)
    for name in names.split()
)

# With their queries, as the leaderboard's files count them.
_VIDEO = {
    "Video classification": {"K700": 1000, "SmthSmthV2": 1000, "HMDB51": 1000, "UCF101": 1000, "Breakfast": 433},
    "Video QA": {"MVBench": 4000, "Video-MME": 2700, "NExTQA": 8564, "EgoSchema": 500, "ActivityNetQA": 1000},
    "Video retrieval": {"DiDeMo": 1004, "MSR-VTT": 1000, "MSVD": 670, "VATEX": 4478, "YouCook2": 3179},
    "Moment retrieval": {"QVHighlight": 1083, "Charades-STA": 727, "MomentSeeker": 1602},
}
# The leaderboard scores 24 of these; the official code also runs three English-only ViDoRe v2 sets that do not count.
_VISDOC = {
    "ViDoRe v1": {
        "ViDoRe_arxivqa": 500,
        "ViDoRe_docvqa": 451,
        "ViDoRe_infovqa": 494,
        "ViDoRe_tabfquad": 280,
        "ViDoRe_tatdqa": 1646,
        "ViDoRe_shiftproject": 100,
        "ViDoRe_syntheticDocQA_artificial_intelligence": 100,
        "ViDoRe_syntheticDocQA_energy": 100,
        "ViDoRe_syntheticDocQA_government_reports": 100,
        "ViDoRe_syntheticDocQA_healthcare_industry": 100,
    },
    "ViDoRe v2": {
        "ViDoRe_esg_reports_human_labeled_v2": 52,
        "ViDoRe_biomedical_lectures_v2_multilingual": 640,
        "ViDoRe_economics_reports_v2_multilingual": 232,
        "ViDoRe_esg_reports_v2_multilingual": 228,
    },
    "VisRAG": {
        "VisRAG_ArxivQA": 816,
        "VisRAG_ChartQA": 63,
        "VisRAG_MP-DocVQA": 591,
        "VisRAG_SlideVQA": 556,
        "VisRAG_InfoVQA": 718,
        "VisRAG_PlotQA": 863,
    },
    "VisDoc OOD": {
        "ViDoSeek-page-fixed": 1142,
        "ViDoSeek-doc": 1142,
        "MMLongBench-page-fixed": 838,
        "MMLongBench-doc": 838,
    },
}

# Their labels were mended in November 2025 (+58 and +33 points for one model): scores on the two do not compare.
OLD_SPLITS = {"ViDoSeek-page-fixed": "ViDoSeek-page", "MMLongBench-page-fixed": "MMLongBench-page"}

MMEB_V2 = (
    *MMEB_V1,
    *(Subset(name, "video", group) for group, names in _VIDEO.items() for name in names),
    *(Subset(name, "visdoc", group, "ndcg_linear@5") for group, names in _VISDOC.items() for name in names),
)

_SUGARCREPE = {
    "Replace": {"replace_obj": 1652, "replace_att": 788, "replace_rel": 1406},
    "Swap": {"swap_obj": 245, "swap_att": 666},
    "Add": {"add_obj": 2062, "add_att": 692},
}
SUGARCREPE = tuple(
    Subset(name, "sugarcrepe", group, "accuracy") for group, names in _SUGARCREPE.items() for name in names
)
SUGARCREPE_PP = tuple(
    Subset(subset.name, "sugarcrepe-pp", subset.meta_task, "itt") for subset in SUGARCREPE if subset.meta_task != "Add"
)

_IMAGE_QUERIES = {subset.name: 1000 for subset in MMEB_V1}
_NEW_IN_V2 = {name: count for names in (*_VIDEO.values(), *_VISDOC.values()) for name, count in names.items()}
_SUGARCREPE_ROWS = {name: count for names in _SUGARCREPE.values() for name, count in names.items()}
OFFICIAL_QUERIES = {
    "mmeb-v1": _IMAGE_QUERIES,
    "mmeb-v2": _IMAGE_QUERIES | _NEW_IN_V2 | {old: _NEW_IN_V2[fixed] for fixed, old in OLD_SPLITS.items()},
    "sugarcrepe": _SUGARCREPE_ROWS,
    "sugarcrepe-pp": _SUGARCREPE_ROWS,
}
"""Queries of the official data sets, by benchmark: what has more or fewer is data of one's own in the same layout."""


def read_subsets(file: Path) -> tuple[tuple[Subset, ...], dict[str, Wording]]:
    """The data sets of a benchmark of your own in the MMEB-V1 layout, from the ``subsets.json`` beside them.

    The file holds a list of ``{"name", "meta_task", "distribution", "query_instruction", "target_instruction"}``, the
    last three optional; with it, ``mmeb-v1`` scores and averages these instead of the 36 of MMEB.

    Returns:
        The data sets, and what their texts begin with, by name.

    Raises:
        ValueError: It is no such list, or names a data set twice.
    """
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        subsets = tuple(
            Subset(row["name"], "image", row["meta_task"], distribution=row.get("distribution")) for row in rows
        )
        wordings = {row["name"]: Wording(row.get("query_instruction"), row.get("target_instruction")) for row in rows}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is no list of name, meta_task and distribution: {error!r}") from error
    if not rows or len(wordings) < len(rows):
        raise ValueError(f"{file} names a data set twice, or none")
    return subsets, wordings


def choose(subsets: Sequence[Subset], names: Iterable[str] | None) -> list[Subset]:
    """The data sets with these names, in the benchmark's order; all of them for None.

    A meta-task or a modality stands for all data sets in it. `OLD_SPLITS` are chosen by their own names alone.

    Raises:
        ValueError: There is no such data set; the message names the nearest one.

    Example:
        >>> [subset.name for subset in choose(MMEB_V1, ["Grounding"])]
        ['MSCOCO', 'RefCOCO', 'RefCOCO-Matching', 'Visual7W-Pointing']
    """
    if names is None:
        return list(subsets)
    known = {_spelling(subset.name): subset.name for subset in subsets}
    groups = {subset.meta_task for subset in subsets} | {subset.modality for subset in subsets}
    exact = {subset.name for subset in subsets} | {
        OLD_SPLITS[subset.name] for subset in subsets if subset.name in OLD_SPLITS
    }
    wanted: set[str] = set()
    for name in names:
        if name in exact:
            wanted.add(name)
        elif name in groups:
            wanted |= {subset.name for subset in subsets if name in (subset.meta_task, subset.modality)}
        else:
            near = known.get(_spelling(name)) or next(iter(get_close_matches(name, [*exact, *groups], n=1)), None)
            hint = f"did you mean {near!r}?" if near else f"known: {', '.join(subset.name for subset in subsets)}"
            raise ValueError(f"no data set {name!r} in this benchmark; {hint}")
    renamed = [replace(subset, name=OLD_SPLITS.get(subset.name, subset.name)) for subset in subsets]
    both = [s for pair in zip(subsets, renamed, strict=True) for s in dict.fromkeys(pair)]
    return [subset for subset in both if subset.name in wanted]


def _spelling(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
