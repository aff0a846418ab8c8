"""Runs a benchmark: reads each data set, embeds it, scores it, and writes what was found so far.

In: a model, the name of a benchmark and the folder of its data. Out: `Results`. A data set that cannot be read does not
stop the others, and a run that is killed goes on where it was: its embeddings are kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from hf_mmembed import __version__
from hf_mmembed.processes import world

from .cache import EmbeddingCache
from .earlier import differences, earlier_scores, put_aside
from .encoder import Encoder, SentenceEncoder, load_encoder
from .engine import embed_items
from .fusion import Fusion, SumOfModalities
from .instructions import Protocol, Wording
from .items import Item
from .mmeb_image import read_v1, read_v2_image
from .mmeb_video import read_v2_video
from .mmeb_visdoc import read_v2_visdoc
from .plot import plot
from .ranking import Tie
from .references import not_official, reference_split
from .report import markdown, write_predictions, write_results
from .retrieval import list_retrieval, read_retrieval
from .scoreboard import OVERALL, Mean, aggregate, columns, measures_of, read_results, subsets_of, visdoc_split
from .subsets import (
    BENCHMARKS,
    MMEB_V1,
    MMEB_V2,
    OLD_SPLITS,
    SUGARCREPE,
    SUGARCREPE_PP,
    Subset,
    choose,
    read_subsets,
)
from .sugarcrepe import read_sugarcrepe, read_sugarcrepe_pp
from .tables import Missing
from .tasks import Scored, Task
from .thinking import ThinkWhen, source_of_traces, think_about

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from hf_mmembed.thinking import Thinker, TraceStore

__all__ = ["Results", "evaluate", "results_folder"]

logger = logging.getLogger(__name__)

FRAMES = 8
OWN_SUBSETS = "subsets.json"


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

    def means(self) -> dict[str, Mean]:
        """Averages over data sets, of the benchmark's first measure."""
        measure = measures_of(self.metadata["benchmark"])[0]
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
    fusion: Fusion = "joint",
    tie: Tie = "strict",
    frames: int = FRAMES,
    think: Thinker | TraceStore | None = None,
    think_when: ThinkWhen = "auto",
    name: str | None = None,
    batch_size: int = 32,
    longest_edge: int | None = None,
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
        out: Where results and predictions go. Defaults to ``results/<model>/<benchmark>``, the model by its name in
            tables, ``--`` for each ``/``. Where model and settings are the same, scores there stay until a data set has a
            new one; else the file is kept under another name.
        cache: Where embeddings go. Defaults to ``embeddings`` in `out`.
        instruction_in: ``"user"`` (the published protocol up to 2025), ``"system"`` or ``"none"``; see `instructions`.
        fusion: ``"joint"``: the model reads picture and text of an input together; ``"sum"``: apart, and their
            embeddings are added, as by UniME after its first stage.
        tie: ``"strict"`` (a tie is never won by the right candidate) or ``"legacy"`` (as the official code).
        frames: Frames per video; recorded with the score. Defaults to 8.
        think: Score everything a second time, the model reading what a reasoner writes (or wrote) about its inputs; the
            tokens and milliseconds of thinking per query, and how many queries have a trace, and a whole one, stand
            beside the scores. A data set of which a store has a part of the traces gets no such score. Needs an
            `MMEmbedder`, best one that was trained to. Give a thinker a store on the disk, and an interrupted run goes on.
        think_when: ``"auto"``: about queries of families where it pays by the thinker's templates. ``"always"``: about
            every query and document. Of traces that are there, ``"always"`` wants one for each query.
        name: What to call the model in tables. Defaults to its Hub id, or its directory's name; the result of a training
            is called after the training; see `model_name`. An `Encoder` has its own.
        batch_size: Inputs per forward pass, at most. An `Encoder` has its own.
        longest_edge: To what pictures are scaled down; recorded with the score; see `load_encoder`. For a directory or Hub
            id alone.
        device: Defaults to the best there is, or that of this process. For a directory or Hub id alone; a model that is
            open already stays where it is.
        trust_remote_code: Run code that comes with a checkpoint of others.

    Returns:
        All scores, and those that stay from earlier runs. What failed is in ``results.failed``, the rest is finished all
        the same.

    Raises:
        ValueError: There is no such benchmark or data set, or nothing of it in the folder; or the model is open already
            and would not follow an option.
        ImportError: The packages of the extra ``eval`` are not installed.

    Source:
        MMEB (arXiv 2410.05160), MMEB-V2 (arXiv 2507.04590), SugarCrepe (arXiv 2306.14610), SugarCrepe++ (arXiv
        2406.11171), and the repositories named in the readers.
    """
    if find_spec("pytrec_eval") is None:
        raise ImportError("evaluation needs the packages of the extra `eval`: pip install 'hf-mmembed[eval]'")
    choices = {"instruction_in": Protocol, "fusion": Fusion, "tie": Tie, "think_when": ThinkWhen}
    given = {"instruction_in": instruction_in, "fusion": fusion, "tie": tie, "think_when": think_when}
    for argument, value in given.items():
        if value not in get_args(choices[argument]):
            raise ValueError(f"{argument} is {value!r}; use {' or '.join(map(repr, get_args(choices[argument])))}")
    root = Path(data_dir)
    if benchmark not in BENCHMARKS:
        raise ValueError(f"no benchmark {benchmark!r}; known: {', '.join(BENCHMARKS)}")
    if not root.is_dir():
        raise ValueError(f"no folder {root}")
    everything, wordings = _subsets(benchmark, root)
    chosen = choose(everything, subsets)
    read = _reader(benchmark, root, instruction_in, frames, wordings)
    here = world()
    options = {
        "name": name,
        "device": device,
        "batch_size": batch_size,
        "trust_remote_code": trust_remote_code,
        "longest_edge": longest_edge,
    }
    encoder = _encoder(model, **options)
    if think is not None and isinstance(encoder, SentenceEncoder) and not encoder.ours:
        raise ValueError(f"{encoder.name} is no embedder of hf_mmembed, so it cannot read what a reasoner writes")
    thinking = source_of_traces(think)
    if fusion == "sum":
        encoder = SumOfModalities(encoder)
    folder = Path(out) if out is not None else results_folder(encoder.name, benchmark)
    embeddings = EmbeddingCache((Path(cache) if cache is not None else folder / "embeddings") / encoder.key)
    metadata: dict[str, Any] = {
        "model_name": encoder.name,
        **encoder.metadata,
        "benchmark": benchmark,
        "hf_mmembed_version": __version__,
        "instruction_in": instruction_in,
        "fusion": fusion,
        "tie": tie,
        "num_frames": frames if benchmark == "mmeb-v2" else None,
        "thinking": None if think is None else _reasoner(think) | {"when": think_when},
        "reference_split": None,
        **({"subsets": [asdict(subset) for subset in everything]} if wordings or benchmark == "retrieval" else {}),
        "missing": [],
        "failed": {},
    }
    former = _former_thinking(folder, metadata)
    earlier = folder / "results.json"
    differing = differences(earlier, metadata)
    results = Results(metadata, {} if differing else earlier_scores(earlier))
    here.wait()  # all have read the file

    def score(task: Task, items: Sequence[Item], name: str) -> Scored:
        vectors, places = embed_items(items, encoder, embeddings, name=name)
        scored = task.score(vectors, places, tie)
        if here.main:
            write_predictions(name, scored.predictions, folder)
        return scored

    def finish() -> None:
        if differing and here.main:
            put_aside(earlier, differing)
            differing.clear()
        _finish(results, here.main, folder)

    for subset in chosen:
        try:
            found, task = _read(subset, read, old=subsets is None)
            row: dict[str, Any] = {**score(task, task.items, found.name).metrics, **task.notes}
            rows = results.metrics.setdefault(found.modality, {})
            rows.setdefault(found.name, row)  # an earlier one stays until this one is whole
            if thinking is not None:
                thought = think_about(task.items, thinking, think_when, found)
                scored = score(task, thought.items, f"{found.name}-thinking")
                row["thinking"] = scored.metrics | {
                    "tokens_per_query": thought.tokens_per_query,
                    "ms_per_query": thought.ms_per_query or former.get(found.name),
                    **thought.counts,
                }
            rows[found.name] = row
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
        finish()
    if len(metadata["missing"]) == len(chosen) and not metadata["failed"]:
        raise ValueError(
            f"{root} holds no data set of {benchmark}: looked for {', '.join(s.name for s in chosen[:4])}, ... in the "
            'official layout (see README, "Evaluate")'
        )
    finish()
    if here.main and (other := not_official(metadata, results.metrics)):
        logger.warning(
            "this is not the official data, so it is not set beside published systems, nor is .eval_results written: %s",
            ", ".join([*other[:4], *["..."] * (len(other) > 4)]),
        )
    if here.main and any(mean.value is not None for mean in results.means().values()):
        plot(results.as_dict(), folder / "results.png")
    return results


def results_folder(name: str, benchmark: str) -> Path:
    """Where the results of a model go by default."""
    return Path("results", name.replace("/", "--"), benchmark)


def _finish(results: Results, write: bool, folder: Path) -> None:
    """Brings the metadata up to date, and the files."""
    metadata = results.metadata
    metadata["report_generated_date"] = datetime.now(UTC).isoformat(timespec="seconds")
    if metadata["benchmark"] == "mmeb-v2":
        metadata["visdoc_split"] = visdoc_split(results.metrics)
    metadata["reference_split"] = reference_split(metadata, results.metrics)
    metadata["partial"] = results.partial
    subsets = subsets_of(results.as_dict())
    metadata["summary"] = {
        column.title: {name: mean.value for name, mean in aggregate(column.metrics, subsets, column.measure).items()}
        for column in columns(results.as_dict())
    }
    if write:
        write_results(results.as_dict(), folder)


def _reasoner(think: Thinker | TraceStore) -> dict[str, Any]:
    """Who writes, for the record."""
    origin = think.reasoner.origin if hasattr(think, "reasoner") else next(iter(think.origins()), None)
    return {} if origin is None else asdict(origin)


def _former_thinking(folder: Path, metadata: Mapping[str, Any]) -> dict[str, float | None]:
    """What an earlier run of the same thinking measured: its traces are there, so they are not timed again."""
    file = folder / "results.json"
    if metadata["thinking"] is None or not file.is_file():
        return {}
    earlier = read_results(file)
    if earlier["metadata"].get("thinking") != metadata["thinking"]:
        return {}
    rows = {name: row for found in earlier["metrics"].values() for name, row in found.items()}
    return {name: row["thinking"]["ms_per_query"] for name, row in rows.items() if "thinking" in row}


def _encoder(model: Any, **options: Any) -> Encoder:
    """The model as it is asked for; ValueError where it is open already and would not follow."""
    if isinstance(model, (str, Path)):
        return load_encoder(model, **options | {"device": options["device"] or world().device})
    ready = hasattr(model, "key") and hasattr(model, "metadata")
    on = str(getattr(getattr(model, "model", model), "device", ""))
    if options["device"] in (on, on.partition(":")[0]):  # "cuda" is any of them
        options["device"] = None
    for option in ("longest_edge", "device", *["name"] * ready):
        if (value := options[option]) is not None:
            raise ValueError(
                f"{option}={value!r} has no effect on a model that is open already{f' on {on}' if on else ''}; "
                f"open it that way, best with load_encoder(..., {option}={value!r}), or give its directory or Hub id"
            )
    return model if ready else SentenceEncoder(model, options["name"], batch_size=options["batch_size"])


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
        return subset, _read_on_all(subset, read)
    except Missing:
        if not old or subset.name not in OLD_SPLITS:
            raise
    former = replace(subset, name=OLD_SPLITS[subset.name])
    return former, _read_on_all(former, read)


def _read_on_all(subset: Subset, read: Callable[[Subset], Task]) -> Task:
    """The data set, or the error that any process met: they share its work, so all go on to it or all to the next."""
    here = world()
    missing = failure = None
    try:
        task = read(subset)
    except Missing as error:
        missing = str(error)
    except ValueError as error:
        failure = str(error)
    except OSError as error:  # a folder that may not be listed, a disk that fails: the other data sets may be well
        failure = f"{subset.name} cannot be read: {error}"
    if (failure := here.agree(failure)) is not None:
        raise ValueError(failure)
    if (missing := here.agree(missing)) is not None:
        raise Missing(missing)
    return task
