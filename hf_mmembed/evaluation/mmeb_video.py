"""Reads the video data sets of MMEB-V2 from local annotations and saved frames.

In: a folder with the annotations (``video-tasks/data/*.jsonl``, or the annotation repositories as downloaded or saved)
and ``video-tasks/frames``. Out: a `Ranking`; a video is the tuple of its sampled frames. The paths drift between the
published configurations, so several are tried. Formats: the parsers in ``src/data/eval_dataset`` of the VLM2Vec repository.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .instructions import WORDINGS, Protocol, Wording, built_item
from .items import ImageFile, Item
from .media import Pictures, frames_in, sample_frames
from .subsets import Subset
from .tables import Row, find, read_rows
from .tasks import Ranking

__all__ = ["CLIP_FRAMES", "read_v2_video"]

CLIP_FRAMES = 8
"""Frames of a candidate clip in moment retrieval, also where videos get more."""

_LABELS = Path(__file__).with_name("video_labels.json")
_MVBENCH = (
    "episodic_reasoning action_sequence action_prediction action_antonym fine_grained_action unexpected_action "
    "object_existence object_interaction object_shuffle moving_direction action_localization scene_transition "
    "action_count moving_count moving_attribute state_change fine_grained_pose character_order egocentric_navigation "
    "counterfactual_inference"
).split()


_Content = tuple[str | None, tuple[ImageFile, ...]]


@dataclass(frozen=True)
class _Query:
    """One query with its candidates: texts or frames by name, those named in `right` being relevant."""

    text: str | None
    images: tuple[ImageFile, ...]
    candidates: Mapping[str, _Content]
    right: tuple[str, ...]
    wording: str | None = None


_Queries = Callable[[list[Row], "_Frames", Path], Iterator[_Query]]


@dataclass(frozen=True)
class _Reader:
    """How a data set is laid out.

    Attributes:
        annotations: File names below ``video-tasks/data``, and repositories.
        frames: Folders below ``video-tasks/frames``.
        columns: What its annotations must have.
        queries: Makes the queries of its rows.
        everything: Whether every query ranks all candidates.
        limit: Only so many rows count.
    """

    annotations: tuple[str, ...]
    frames: tuple[str, ...]
    columns: tuple[str, ...]
    queries: _Queries
    everything: bool = False
    limit: int | None = None


@dataclass(frozen=True)
class _Frames:
    """Saved frames below one folder, so many of each video."""

    root: Path
    number: int

    def __call__(self, *names: str, number: int | None = None) -> tuple[ImageFile, ...]:
        return sample_frames(frames_in(self.root.joinpath(*names)), number or self.number)


def read_v2_video(root: Path, subset: Subset, protocol: Protocol, *, frames: int) -> Ranking:
    """One video data set of MMEB-V2.

    Args:
        root: The folder of the benchmark.
        subset: Which data set.
        protocol: Where instructions go.
        frames: How many frames a video is sampled to; all of its frames where it has fewer. VLM2Vec uses 8, the models
            above 60 points use 64: their scores do not compare.

    Raises:
        Missing: It is not there.
        ValueError: It is broken, or frames are missing; the message names them.
    """
    reader = _READERS[subset.name]
    file = find(root, _annotation_places(reader.annotations))
    rows = _mvbench(file) if subset.name == "MVBench" else read_rows(file, reader.columns)
    rows = rows[: reader.limit]
    folder = find(root, [f"{top}/{place}" for place in reader.frames for top in ("video-tasks/frames", "frames")])
    try:
        queries = list(reader.queries(rows, _Frames(folder, frames), file))
    except (LookupError, TypeError) as error:
        raise ValueError(f"{file} has a row that does not fit its columns: {error!r}") from error
    task = _ranking(queries, subset, protocol, everything=reader.everything)
    counts = [len(item.images) for item in task.items if item.images]
    notes = {"rows": len(rows), "duplicates_dropped": len(rows) - len(queries), "num_frames": frames}
    notes |= {"frames_min": min(counts), "frames_max": max(counts)}
    return Ranking(task.queries, task.candidates, task.relevance, task.pools, "quicksort", notes)


def _annotation_places(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        if "/" in name:
            repository = name.partition("/")[2]
            yield from (f"annotation/{name}", f"annotations/{name}", name, f"video-tasks/data/{repository}")
        else:
            yield from (f"video-tasks/data/{name}", f"data/{name}")


def _ranking(queries: Sequence[_Query], subset: Subset, protocol: Protocol, *, everything: bool) -> Ranking:
    wording = WORDINGS[subset.name]
    place_of: dict[Item, int] = {}
    asked: list[Item] = []
    pools: list[list[int]] = []
    relevance: list[dict[int, int]] = []
    for query in queries:
        own = WORDINGS[query.wording] if query.wording else wording
        asked.append(_spaced(built_item(query.text, query.images, own.query, protocol, "query")))
        places = {
            name: place_of.setdefault(_candidate(*content, wording, protocol), len(place_of))
            for name, content in query.candidates.items()
        }
        pools.append(list(places.values()))
        relevance.append({places[name]: 1 for name in query.right})
    if subset.meta_task == "Video classification" and everything:
        for label in _labels()[subset.name]:
            place_of.setdefault(Item(label), len(place_of))
    return Ranking(asked, list(place_of), relevance, None if everything else pools)


def _candidate(text: str | None, images: tuple[ImageFile, ...], wording: Wording, protocol: Protocol) -> Item:
    if not images:
        return Item(text or "")
    return _spaced(built_item(text, images, wording.target, protocol, "document", candidate=True))


def _spaced(item: Item) -> Item:
    """The official "user" text stands after the video's marker and a blank."""
    if item.images and item.text and item.instruction is None:
        return Item(" " + item.text, item.images, None, item.role)
    return item


@cache
def _labels() -> dict[str, list[str]]:
    return json.loads(_LABELS.read_text(encoding="utf-8"))


def _classified(rows: list[Row], frames: _Frames, file: Path) -> Iterator[_Query]:
    for row in rows:
        label = row["pos_text"]
        yield _Query(None, frames(str(row["video_id"])), {label: (label, ())}, (label,))


def _ssv2(rows: list[Row], frames: _Frames, file: Path) -> Iterator[_Query]:
    for number, row in enumerate(rows):
        labels = list(row["neg_text"])  # holds the right one too, at any place
        if row["pos_text"] not in labels:
            raise ValueError(f"{file}, row {number}: {row['pos_text']!r} is not among its candidates in neg_text")
        texts: dict[str, _Content] = {label: (label, ()) for label in labels}
        yield _Query(None, frames(str(row["video_id"])), texts, (row["pos_text"],))


def _captioned(video: str, caption: str) -> _Queries:
    """Text to video: a row is a caption (the first of several) and its video, in these columns."""

    def queries(rows: list[Row], frames: _Frames, file: Path) -> Iterator[_Query]:
        for row in rows:
            text, name = row[caption], Path(row[video]).stem
            yield _Query(text if isinstance(text, str) else text[0], (), {name: (None, frames(name))}, (name,))

    return queries


def _answered(video: str, options: Callable[[Row], tuple[str, dict[str, str], str]]) -> _Queries:
    """Question answering.

    `video` is the folder of the frames, with columns in braces; `options` gives the question as asked, the candidates'
    texts by name, and the right name.
    """

    def queries(rows: list[Row], frames: _Frames, file: Path) -> Iterator[_Query]:
        for number, row in enumerate(rows):
            question, texts, right = options(row)
            if right not in texts:
                raise ValueError(f"{file}, row {number}: the answer {right!r} is none of the options {list(texts)}")
            yield _Query(
                question, frames(video.format(**row)), {name: (text, ()) for name, text in texts.items()}, (right,)
            )

    return queries


def _without_letter(option: str) -> str:
    return option[option.find(". ") :].strip(". ")


def _lettered(question: str, options: Sequence[str]) -> tuple[str, list[str]]:
    named = [f"({chr(ord('A') + index)}) {option}" for index, option in enumerate(options)]
    return "\n".join([question, "Options:", *named]), named


def _video_mme(row: Row) -> tuple[str, dict[str, str], str]:
    options = list(row["options"])
    right = options["ABCD".index(row["answer"])]
    return "\n".join([row["question"], *options]), {option: _without_letter(option) for option in options}, right


def _egoschema(row: Row) -> tuple[str, dict[str, str], str]:
    options = list(row["option"])
    texts = {option: _without_letter(option) for option in options}
    return row["question"] + " ".join(options), texts, options[int(row["answer"])]


def _nextqa(row: Row) -> tuple[str, dict[str, str], str]:
    options = [row[f"a{index}"] for index in range(5)]
    question, _ = _lettered(row["question"], options)
    return question, {option: option for option in options}, options[int(row["answer"])]


def _mvbench_row(row: Row) -> tuple[str, dict[str, str], str]:
    options = list(row["candidates"])
    question, named = _lettered(row["question"], options)
    name_of = dict(zip(options, named, strict=True))
    return question, {name: name for name in named}, name_of.get(row["answer"]) or row["answer"]


def _activitynet(row: Row) -> tuple[str, dict[str, str], str]:
    return f"{row['question']}? (A) yes; (B) no.", {"yes": "yes", "no": "no"}, row["answer"]


def _mvbench(folder: Path) -> list[Row]:
    """MVBench is twenty tables, one per kind of question."""
    if folder.is_file() or (folder / "state.json").is_file():
        return read_rows(folder, ("subset", *_QUESTION, "candidates"))
    rows = []
    for name in _MVBENCH:
        file = find(folder, [f"{name}.json", f"json/{name}.json", f"{name}.jsonl", name])
        rows += [{**row, "subset": name} for row in read_rows(file, (*_QUESTION, "candidates"), split="train")]
    return rows


def _moments(rows: list[Row], frames: _Frames, file: Path) -> Iterator[_Query]:
    """Candidates are the folders beside the video's own frames; those called ``positive...`` are right."""
    for number, row in enumerate(rows):
        video = Path(row["video_path"]).stem
        folder = frames.root / video
        if not folder.is_dir():
            raise ValueError(f"{file}, row {number}: no folder of frames {folder}")
        clips = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name != "query")
        right = tuple(clip for clip in clips if clip.startswith("positive"))
        if not right:
            raise ValueError(f"{file}, row {number}: no folder positive* among the clips in {folder}")
        offered: dict[str, _Content] = {clip: (None, frames(video, clip, number=CLIP_FRAMES)) for clip in clips}
        yield _Query(row["query"], frames(video, "query"), offered, right)


def _moment_seeker(rows: list[Row], frames: _Frames, file: Path) -> Iterator[_Query]:
    """Queries are a text, a text and a picture, or a text and a video; rows that repeat another one are dropped."""
    pictures = Pictures([frames.root])
    seen: set[tuple[Any, ...]] = set()
    for row in rows:
        given = row["input_frames"] or ""
        positive, negative = (
            [entry["output_path"] for entry in row[name]] for name in ("positive_frames", "negative_frames")
        )
        key = (row["query"], given, frozenset(positive))
        if key in seen:
            continue
        seen.add(key)
        images: tuple[ImageFile, ...] = ()
        wording = None
        if given.endswith(".mp4"):
            images, wording = frames("video_frames", _flat(given)), "MomentSeeker/video"
        elif given.endswith(".jpg"):
            images, wording = (pictures[f"query_{given}"],), "MomentSeeker/image"
        # A clip that is also listed as its own negative stays right.
        clips: dict[str, _Content] = {
            path: (None, frames("video_frames", _flat(path))) for path in dict.fromkeys([*positive, *negative])
        }
        yield _Query(row["query"], images, clips, tuple(positive), wording)


def _flat(path: str) -> str:
    return path.split(".mp4")[0].replace("/", "_")


def _class(annotation: str, repository: str, folder: str) -> _Reader:
    places = (f"video_cls/{folder}",)
    return _Reader((annotation, repository), places, ("video_id", "pos_text"), _classified, everything=True)


def _retrieved(annotation: str, repository: str, video: str, caption: str) -> _Reader:
    title = repository.partition("/")[2]
    places = (f"video_ret/{title}", f"video_ret/data/ziyan/video_retrieval/{title}/frames")
    return _Reader((annotation, repository), places, (video, caption), _captioned(video, caption), everything=True)


_QUESTION = ("question", "answer", "video")


def _asked(annotation: str, title: str, video: str, options: Any, *columns: str) -> _Reader:
    repositories = (f"VLM2Vec/{title}", f"VLM2Vec/{title}/MC", f"VLM2Vec/{title}/Subset")
    places = tuple(f"{top}/{name}" for top in ("video_qa", "video_qa/video_qa") for name in (title, title.lower()))
    return _Reader((annotation, *repositories), places, columns, _answered(video, options))


def _moment(annotation: str, title: str) -> _Reader:
    places = (f"video_mret/{title}", f"video_mret/{title.replace('-', '_')}")
    return _Reader((annotation, f"VLM2Vec/{title}"), places, ("query", "video_path"), _moments)


_READERS = {
    "K700": _class("k700.jsonl", "VLM2Vec/Kinetics-700", "K700"),
    "HMDB51": _class("hmdb51.jsonl", "VLM2Vec/HMDB51", "HMDB51"),
    "UCF101": _class("ucf101.jsonl", "VLM2Vec/UCF101", "UCF101"),
    "Breakfast": _class("breakfast.jsonl", "VLM2Vec/Breakfast", "Breakfast"),
    "SmthSmthV2": _Reader(
        ("ssv2.jsonl", "VLM2Vec/SmthSmthV2"),
        ("video_cls/SSv2", "video_cls/SmthSmthV2"),
        ("video_id", "pos_text", "neg_text"),
        _ssv2,
        limit=1000,
    ),
    "MSR-VTT": _retrieved("msr-vtt.jsonl", "VLM2Vec/MSR-VTT", "video_id", "caption"),
    "MSVD": _retrieved("msvd.jsonl", "VLM2Vec/MSVD", "video_id", "caption"),
    "DiDeMo": _retrieved("didemo.jsonl", "VLM2Vec/DiDeMo", "video", "caption"),
    "VATEX": _retrieved("vatex.jsonl", "VLM2Vec/VATEX", "videoID", "enCap"),
    "YouCook2": _retrieved("youcook2-val.jsonl", "lmms-lab/YouCook2", "id", "sentence"),
    "QVHighlight": _moment("qvhighlight.jsonl", "QVHighlight"),
    "Charades-STA": _moment("charades_sta.jsonl", "Charades-STA"),
    "MomentSeeker": _Reader(
        ("momentseeker_1k6.jsonl", "momentseeker.jsonl", "VLM2Vec/MomentSeeker", "momentseeker_1k8.jsonl"),
        ("video_mret/MomentSeeker",),
        ("query", "input_frames", "positive_frames", "negative_frames"),
        _moment_seeker,
    ),
    "MVBench": _asked("mvbench", "MVBench", "{subset}/{video}", _mvbench_row, *_QUESTION),
    "Video-MME": _asked(
        "video-mme.jsonl", "Video-MME", "{videoID}", _video_mme, "question", "videoID", "options", "answer"
    ),
    "NExTQA": _asked("nextqa.jsonl", "NExTQA", "{video}", _nextqa, *_QUESTION, *(f"a{i}" for i in range(5))),
    "EgoSchema": _asked(
        "egoschema.jsonl", "EgoSchema", "{video_idx}", _egoschema, "question", "video_idx", "option", "answer"
    ),
    "ActivityNetQA": _asked(
        "activitynetqa.jsonl", "ActivityNetQA", "v_{video_name}", _activitynet, "question", "video_name", "answer"
    ),
}
