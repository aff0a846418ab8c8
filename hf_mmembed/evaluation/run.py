"""Runs a benchmark: reads each data set, embeds it, scores it, and writes what was found so far.

In: a model, the name of a benchmark and the folder of its data. Out: `Results`. A data set that cannot be read does not
stop the others, and a run that is killed goes on where it was: its embeddings are kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_mmembed import __version__
from hf_mmembed.processes import world

from .cache import EmbeddingCache
from .encoder import Encoder, SentenceEncoder, load_encoder
from .engine import embed_items
from .instructions import Protocol, Wording
from .mmeb_image import read_v1, read_v2_image
from .mmeb_video import read_v2_video
from .mmeb_visdoc import read_v2_visdoc
from .plot import plot
from .ranking import Tie
from .report import markdown, write_predictions, write_results
from .retrieval import list_retrieval, read_retrieval
from .scoreboard import OVERALL, Mean, aggregate, measures_of, subsets_of
from .subsets import BENCHMARKS, MMEB_V1, MMEB_V2, OLD_SPLITS, SUGARCREPE, SUGARCREPE_PP, Subset, choose, read_subsets
from .sugarcrepe import read_sugarcrepe, read_sugarcrepe_pp
from .tables import Missing
from .tasks import Task

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["Results", "evaluate"]

logger = logging.getLogger(__name__)

FRAMES = 8
OWN_SUBSETS = "subsets.json"

_REFERENCE_SPLITS = {"mmeb-v1": "MMEB-eval", "sugarcrepe": "SugarCrepe"}


@dataclass(frozen=True)
class Results:
    """What a run found.

    Attributes:
        metadata: Model, benchmark, protocol, and what is missing or failed.
        metrics: Scores, fractions of 1, by modality, data set and measure.
    """

    metadata: dict[str, Any]
    metrics: dict[str, dict[str, dict[str, Any]]]

    def as_dict(self) -> dict[str, Any]:
        """The layout of the leaderboard: ``{"metadata": ..., "metrics": {"image": {...}, ...}}``."""
        return {"metadata": self.metadata, "metrics": self.metrics}

    def means(self, measure: str | None = None) -> dict[str, Mean]:
        """Averages over data sets; None for `measure` stands for the first one of the benchmark."""
        measure = measure or measures_of(self.metadata["benchmark"])[0]
        return aggregate(self.metrics, subsets_of(self.as_dict()), measure)

    @property
    def partial(self) -> bool:
        """Whether a data set has no score."""
        return self.means()[OVERALL].value is None

    @property
    def failed(self) -> dict[str, str]:
        """Why data sets that are there have no score."""
        return self.metadata["failed"]

    def __str__(self) -> str:
        return markdown(self.as_dict())


def evaluate(
    model: str | Path | SentenceTransformer | Encoder,
    benchmark: str,
    data_dir: str | Path,
    *,
    subsets: Sequence[str] | None = None,
    out: str | Path | None = None,
    cache: str | Path | None = None,
    instruction_in: Protocol = "user",
    tie: Tie = "strict",
    frames: int = FRAMES,
    name: str | None = None,
    batch_size: int = 32,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> Results:
    """Measures a model on a benchmark in a local folder; nothing is downloaded but a model named by its Hub id.

    Every distinct input is embedded once and kept on the disk; after an interruption the same call goes on. Several
    processes (``accelerate launch``) share the work and give the same scores.

    Args:
        model: Directory, Hub id, ``SentenceTransformer`` or `Encoder`.
        benchmark: ``"mmeb-v1"``, ``"mmeb-v2"``, ``"sugarcrepe"``, ``"sugarcrepe-pp"`` or ``"retrieval"``.
        data_dir: Its folder, in the official layout. With a ``subsets.json`` in it, ``"mmeb-v1"`` is a benchmark of
            your own; see `read_subsets`.
        subsets: Names of data sets, meta-tasks or modalities. Defaults to all that are there.
        out: Where results and predictions go. Defaults to ``results/<model>/<benchmark>``.
        cache: Where embeddings go. Defaults to ``embeddings`` in `out`.
        instruction_in: ``"user"`` (the published protocol up to 2025) or ``"system"``; see `instructions`.
        tie: ``"strict"`` (a tie is never won by the right candidate) or ``"legacy"`` (as the official code).
        frames: Frames per video; recorded with the score. Defaults to 8.
        name: What to call the model in tables. Defaults to its Hub id, or its directory's name.
        batch_size: Inputs per forward pass, at most.
        device: Defaults to the best there is, or that of this process.
        trust_remote_code: Run code that comes with a checkpoint of others.

    Returns:
        All scores. What failed is in ``results.failed``, the rest is finished all the same.

    Raises:
        ValueError: There is no such benchmark or data set, or nothing of it in the folder.
        ImportError: The packages of the extra ``eval`` are not installed.

    Source:
        MMEB (arXiv 2410.05160), MMEB-V2 (arXiv 2507.04590), SugarCrepe (arXiv 2306.14610), SugarCrepe++ (arXiv
        2406.11171), and the repositories named in the readers.
    """
    if find_spec("pytrec_eval") is None:
        raise ImportError("evaluation needs the packages of the extra `eval`: pip install 'hf-mmembed[eval]'")
    root = Path(data_dir)
    if benchmark not in BENCHMARKS:
        raise ValueError(f"no benchmark {benchmark!r}; known: {', '.join(BENCHMARKS)}")
    if not root.is_dir():
        raise ValueError(f"no folder {root}")
    everything, wordings = _subsets(benchmark, root)
    chosen = choose(everything, subsets)
    read = _reader(benchmark, root, instruction_in, frames, wordings)
    here = world()
    options = {"name": name, "batch_size": batch_size, "trust_remote_code": trust_remote_code}
    encoder = _encoder(model, device=device or here.device, **options)
    folder = Path(out) if out is not None else Path("results", encoder.name.replace("/", "--"), benchmark)
    embeddings = EmbeddingCache((Path(cache) if cache is not None else folder / "embeddings") / encoder.key)
    metadata: dict[str, Any] = {
        "model_name": encoder.name,
        **encoder.metadata,
        "benchmark": benchmark,
        "hf_mmembed_version": __version__,
        "instruction_in": instruction_in,
        "tie": tie,
        "num_frames": frames if benchmark == "mmeb-v2" else None,
        "reference_split": None if wordings else _REFERENCE_SPLITS.get(benchmark),
        **({"subsets": [asdict(subset) for subset in everything]} if wordings or benchmark == "retrieval" else {}),
        "missing": [],
        "failed": {},
    }
    results = Results(metadata, {})
    for subset in chosen:
        try:
            found, task = _read(subset, read, old=subsets is None)
            vectors, places = embed_items(task.items, encoder, embeddings, name=found.name)
            scored = task.score(vectors, places, tie)
        except Missing as error:
            if subsets is not None:
                metadata["failed"][subset.name] = str(error)
                logger.error("%s: %s", subset.name, error)
            metadata["missing"].append(subset.name)
            continue
        except ValueError as error:
            metadata["failed"][subset.name] = str(error)
            logger.error("%s: %s", subset.name, error)
            continue
        results.metrics.setdefault(found.modality, {})[found.name] = {**scored.metrics, **task.notes}
        _finish(results, here.main, folder, found, scored.predictions)
    if not results.metrics and not metadata["failed"]:
        raise ValueError(
            f"{root} holds no data set of {benchmark}: looked for {', '.join(s.name for s in chosen[:4])}, ... in the "
            'official layout (see README, "Evaluate")'
        )
    _finish(results, here.main, folder)
    if here.main and any(mean.value is not None for mean in results.means().values()):
        plot(results.as_dict(), folder / "results.png")
    return results


def _finish(
    results: Results, write: bool, folder: Path, subset: Subset | None = None, predictions: Sequence[Any] = ()
) -> None:
    """Brings the metadata up to date, and the files."""
    metadata = results.metadata
    metadata["report_generated_date"] = datetime.now(UTC).isoformat(timespec="seconds")
    if metadata["benchmark"] == "mmeb-v2":
        pages = results.metrics.get("visdoc", {})
        old = sorted(set(OLD_SPLITS.values()) & set(pages))
        metadata["visdoc_split"] = "old page labels" if old else "page-fixed" if set(OLD_SPLITS) & set(pages) else None
        metadata["reference_split"] = metadata["visdoc_split"]
    metadata["partial"] = results.partial
    metadata["summary"] = {
        measure or "score": {name: mean.value for name, mean in results.means(measure).items()}
        for measure in measures_of(metadata["benchmark"])
    }
    if write:
        if subset is not None:
            write_predictions(subset.name, predictions, folder)
        write_results(results.as_dict(), folder)


def _encoder(model: Any, **options: Any) -> Encoder:
    if isinstance(model, (str, Path)):
        return load_encoder(model, **options)
    if hasattr(model, "key") and hasattr(model, "metadata"):
        return model
    return SentenceEncoder(model, options["name"], batch_size=options["batch_size"])


def _subsets(benchmark: str, root: Path) -> tuple[tuple[Subset, ...], dict[str, Wording]]:
    """The data sets that make a complete run, and the wordings of a benchmark of one's own."""
    if benchmark == "retrieval":
        return list_retrieval(root), {}
    if benchmark == "mmeb-v1" and (root / OWN_SUBSETS).is_file():
        return read_subsets(root / OWN_SUBSETS)
    tables = {"mmeb-v1": MMEB_V1, "mmeb-v2": MMEB_V2, "sugarcrepe": SUGARCREPE, "sugarcrepe-pp": SUGARCREPE_PP}
    return tables[benchmark], {}


def _reader(
    benchmark: str, root: Path, protocol: Protocol, frames: int, wordings: dict[str, Wording]
) -> Callable[[Subset], Task]:
    def read_v2(subset: Subset) -> Task:
        if subset.modality == "video":
            return read_v2_video(root, subset, protocol, frames=frames)
        return (read_v2_image if subset.modality == "image" else read_v2_visdoc)(root, subset, protocol)

    readers: dict[str, Callable[[Subset], Task]] = {
        "mmeb-v1": lambda subset: read_v1(root, subset, protocol, wordings.get(subset.name)),
        "mmeb-v2": read_v2,
        "sugarcrepe": lambda subset: read_sugarcrepe(root, subset, protocol),
        "sugarcrepe-pp": lambda subset: read_sugarcrepe_pp(root, subset, protocol),
        "retrieval": lambda subset: read_retrieval(root, subset, protocol),
    }
    return readers[benchmark]


def _read(subset: Subset, read: Callable[[Subset], Task], *, old: bool) -> tuple[Subset, Task]:
    """The data set; with `old`, in its old split where the mended one is not there."""
    try:
        return subset, read(subset)
    except Missing:
        if not old or subset.name not in OLD_SPLITS:
            raise
        former = replace(subset, name=OLD_SPLITS[subset.name])
        return former, read(former)
