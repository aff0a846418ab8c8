"""What mining found, to be looked at: a page with ten clusters, a plot, and the numbers as JSON.

In: pairs and what `mine_pairs` returned. Out: in a directory, ``report.json``, ``report.html`` (one page that needs
nothing else; there is no script in it) and ``report.png``.
"""

from __future__ import annotations

import base64
import io
import json
import logging
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image, ImageOps

from hf_mmembed.data.pairs import document_of, query_of
from hf_mmembed.files import write_atomically
from hf_mmembed.model.images_mmembed import ImageError, open_image

from .dataset import Mined
from .strategies import shuffled

__all__ = ["hardness", "write_report"]

logger = logging.getLogger(__name__)

_EXAMPLES = 10
_MEASURED = 1000  # clusters whose hardness is measured
_THUMBNAIL = 160
_BINS = 40

_STYLE = """
:root { color-scheme: light dark; --page: #f4f3f0; --card: #fff; --edge: #e4e2dd; --ink: #1c1b1a; --soft: #6b6762;
  --accent: #4a55d6; }
@media (prefers-color-scheme: dark) { :root { --page: #141416; --card: #1d1d20; --edge: #313136; --ink: #ededea;
  --soft: #a3a09a; --accent: #9aa4ff; } }
* { box-sizing: border-box; margin: 0; }
body { background: var(--page); color: var(--ink); font: 16px/1.45 system-ui, sans-serif; padding: clamp(1rem, 3vw, 3rem); }
main { max-width: 1400px; margin: auto; display: grid; gap: 1.25rem; }
section { background: var(--card); border: 1px solid var(--edge); border-radius: 16px; padding: clamp(1rem, 2vw, 2rem);
  overflow-x: auto; }
h2 { font-size: 1rem; margin-bottom: .8rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--edge); }
th:first-child, td:first-child { text-align: left; }
th, .soft { color: var(--soft); font-weight: 400; }
ol { list-style: none; padding: 0; display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); }
li { border: 1px solid var(--edge); border-radius: 12px; padding: .7rem; font-size: .85rem; overflow-wrap: anywhere; }
li:first-child { border-color: var(--accent); }
li img { display: block; max-width: 100%; max-height: 8rem; border-radius: 8px; margin: .3rem 0; }
.plot img { display: block; max-width: 100%; background: #fff; border-radius: 8px; }
"""


def hardness(mined: Mined, rows: np.ndarray) -> np.ndarray:
    """Cosine of every query with the documents of the other members, shape ``(clusters · (k + 1) · k,)``.

    Args:
        mined: What the rows are of.
        rows: ``(clusters, k + 1)``; members that are −1 are passed over.
    """
    size = rows.shape[1]
    there = rows >= 0
    query = _unit(mined.queries.take(mined.ids.query_ids[rows.ravel()]))
    document = _unit(mined.documents.take(mined.ids.document_ids[rows.ravel()]))
    of_query, of_document = (vectors.reshape(*rows.shape, vectors.shape[1]) for vectors in (query, document))
    others = there[:, :, None] & there[:, None, :] & ~np.eye(size, dtype=bool)
    return (of_query @ of_document.transpose(0, 2, 1))[others]


def write_report(pairs: Dataset, mined: Mined, out: str | Path, *, seed: int = 0) -> dict[str, Any]:
    """Writes the report beside the clusters and returns its numbers.

    Args:
        pairs: The pairs that were mined.
        mined: What mining gave.
        out: Directory to write to.
        seed: Which clusters are shown and measured. Defaults to 0.
    """
    out = Path(out)
    clusters, random = mined.clusters, np.random.default_rng(seed)
    chosen = random.permutation(len(clusters))
    usable = np.setdiff1d(np.arange(len(pairs)), list(mined.skipped))
    before = hardness(mined, _random_clusters(mined, usable, clusters.rows.shape[1] - 1, seed)[:_MEASURED])
    after = hardness(mined, clusters.rows[np.sort(chosen[:_MEASURED])])
    sizes, times = np.unique(clusters.sizes, return_counts=True)
    numbers = {
        "strategy": clusters.strategy,
        "rows": len(pairs),
        "queries": len(mined.ids.query_digests),
        "documents": len(mined.ids.document_digests),
        "clusters": len(clusters),
        "cluster_sizes": {int(size): int(number) for size, number in zip(sizes, times, strict=True)},
        "skipped": len(mined.skipped),
        "recall": dict(clusters.recall),
        "counts": dict(clusters.counts),
        "pool_mean": float(clusters.diagnostics["pool"].mean()) if len(clusters.diagnostics.get("pool", ())) else None,
        "hardness": {"random": _summary(before), "mined": _summary(after)},
        "subsets": clusters.settings.get("subsets", {}),
    }
    write_atomically(out / "report.json", json.dumps(numbers, indent=2, ensure_ascii=False).encode() + b"\n")
    plot = _plot(mined, before, after)
    if plot is not None:
        write_atomically(out / "report.png", plot)
    shown = clusters.rows[chosen[:_EXAMPLES]]
    write_atomically(out / "report.html", _page(pairs, mined, numbers, plot, shown).encode("utf-8"))
    return numbers


def _random_clusters(mined: Mined, usable: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Random clusters within subsets: what batches of one subset would be without mining."""
    parts = []
    for subset in range(len(mined.ids.subsets)):
        rows = usable[mined.ids.subset_ids[usable] == subset]
        parts.append(rows[shuffled(len(rows), k, seed)])
    rows = np.concatenate(parts)
    return rows[np.random.default_rng(seed).permutation(len(rows))]


def _summary(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return {}
    return {"mean": float(values.mean()), "p90": float(np.quantile(values, 0.9)), "max": float(values.max())}


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _plot(mined: Mined, before: np.ndarray, after: np.ndarray) -> bytes | None:
    """Three diagrams as a PNG; None, and a warning, where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("no report.png: matplotlib is not installed (pip install 'hf-mmembed[train]')")
        return None
    clusters = mined.clusters
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    similarity, pool, members = figure.subplots(1, 3)
    if len(before) and len(after):
        bins = np.histogram_bin_edges(np.concatenate([before, after]), _BINS)
        for values, name in ((before, "random clusters"), (after, clusters.strategy)):
            similarity.hist(values, bins=bins, density=True, alpha=0.6, label=name)
        similarity.legend(frameon=False)
    similarity.set(title="Hardness", xlabel="cosine of query and other members' documents", yticks=[])
    if "pool" in clusters.diagnostics:
        pool.hist(clusters.diagnostics["pool"], bins=_BINS)
    pool.set(title="Candidates no rule suspects", xlabel="per anchor", ylabel="clusters")
    shown = {name: clusters.counts[name] for name in _MEMBERS if name in clusters.counts}
    shown |= {name: clusters.counts[name] for name in clusters.counts if name.startswith("suspect_")}
    members.barh([name.replace("_", " ") for name in shown], list(shown.values()))
    members.invert_yaxis()
    members.set(title="Members by origin, candidates by rule")
    members.set_xscale("symlog")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


_MEMBERS = ("from_pool", "next_best", "at_random", "conflicts", "left_over")


def _page(pairs: Dataset, mined: Mined, numbers: Mapping[str, Any], plot: bytes | None, shown: np.ndarray) -> str:
    title = f"{numbers['clusters']:,} clusters by {numbers['strategy']}"
    picture = "" if plot is None else f'<section class="plot"><img src="{_uri(plot, "png")}" alt="plots"></section>'
    examples = "".join(_cluster(pairs, mined, place, rows) for place, rows in enumerate(shown, start=1))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<header><h1>{escape(title)}</h1>
<p class="soft">{numbers["rows"]:,} pairs, {numbers["queries"]:,} queries, {numbers["documents"]:,} documents</p></header>
<section>{_table(numbers)}</section>
{picture}
{examples}</main>
</body>
</html>
"""


def _table(numbers: Mapping[str, Any]) -> str:
    """One line per subset, and one for all of them."""
    lines = {**numbers["subsets"], "all": {**numbers, "label_subset": None}}
    names = dict.fromkeys(name for line in lines.values() for name in (*line.get("recall", {}), *line["counts"]))
    head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in ("subset", "clusters", *names))
    body = ""
    for subset, line in lines.items():
        cells = {**line["counts"], **{name: f"{share:.3f}" for name, share in line.get("recall", {}).items()}}
        label = " (labels)" if line.get("label_subset") else ""
        values = [f"{subset}{label}", line["clusters"], *(cells.get(name, "") for name in names)]
        body += "<tr>" + "".join(f"<td>{escape(str(value))}</td>" for value in values) + "</tr>"
    return f"<table><tr>{head}</tr>{body}</table>"


def _cluster(pairs: Dataset, mined: Mined, place: int, rows: np.ndarray) -> str:
    """The members of a cluster, the anchor first, with the cosine of its query and their documents."""
    rows = rows[rows >= 0]
    anchor = _unit(mined.queries.take(mined.ids.query_ids[rows[:1]]))
    scores = _unit(mined.documents.take(mined.ids.document_ids[rows])) @ anchor[0]
    items = ""
    for row, score in zip(rows.tolist(), scores, strict=True):
        pair = pairs[row]
        query, document = _content(query_of(pair)), _content(document_of(pair))
        items += f'<li><p class="soft">row {row} · {score:.3f}</p>{query}<p class="soft">→</p>{document}</li>'
    return f"<section><h2>Cluster {place} of {len(rows)}</h2><ol>{items}</ol></section>\n"


def _content(content: Mapping[str, Any]) -> str:
    parts = []
    if "image" in content:
        try:
            small = ImageOps.contain(open_image(content["image"]), (_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            small.save(buffer, "WEBP", quality=80)
            parts.append(f'<img src="{_uri(buffer.getvalue(), "webp")}" alt="">')
        except ImageError as error:
            parts.append(f'<p class="soft">{escape(str(error))}</p>')
    if "text" in content:
        parts.append(f"<p>{escape(content['text'])}</p>")
    return "".join(parts)


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
