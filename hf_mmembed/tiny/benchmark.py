"""A benchmark of the drawn world in the layouts of MMEB-V1, SugarCrepe and SugarCrepe++, to be read by the same readers.

In: a seed. Out: three folders: ``mmeb-v1`` with twelve data sets in four meta-tasks, and ``sugarcrepe`` and
``sugarcrepe-pp``. The scenes are of the test split, but what ``DrawnEdit`` makes of them may be of any; those that hold
one of `NOVEL_COMBINATIONS`, which no training has seen, are out of distribution (OOD). Candidates that would be right
too, but are not the gold, are left out: the truth of every pairing is known (`truth.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from hf_mmembed.data.captions import caption, edit, noun_phrase, pick, relation_caption
from hf_mmembed.data.questions import ANSWERS, ask
from hf_mmembed.data.scenes import (
    COLORS,
    FILLS,
    GRID,
    NOVEL_COMBINATIONS,
    SHAPES,
    SIZES,
    Kind,
    Scene,
    Shape,
    draw,
    random_scene,
)
from hf_mmembed.evaluation import Subset
from hf_mmembed.files import write_atomically
from hf_mmembed.tiny.testset import Change, changed
from hf_mmembed.tiny.truth import answers, meaning_of_caption, meaning_of_scene

__all__ = ["DRAWN_SUBSETS", "draw_benchmark"]

_MARKER = "<|image_1|>\n"
_CHANGES: dict[str, Change] = {
    "replace_obj": "replace_object",
    "replace_att": "replace_attribute",
    "replace_rel": "replace_relation",
    "swap_obj": "swap_object",
    "swap_att": "swap_attribute",
}
_ONE: dict[Kind, float] = {"one": 1}
_TWO: dict[Kind, float] = {"two": 1}
_SEVERAL: dict[Kind, float] = {"two": 0.7, "three": 0.3}

_META_TASKS = {
    "Classification": ("DrawnShape", "DrawnColor"),
    "VQA": ("DrawnVQA",),
    "Retrieval": ("Drawn_t2i", "Drawn_i2t", "DrawnEdit"),
    "Grounding": ("DrawnCrop",),
}
_KNOWN_ONLY = ("Drawn_i2t", "DrawnEdit")
DRAWN_SUBSETS = tuple(
    Subset(f"{name}{suffix}", "image", meta_task, distribution=distribution)
    for meta_task, names in _META_TASKS.items()
    for distribution, suffix in (("IND", ""), ("OOD", "-Novel"))
    for name in names
    if not (suffix and name in _KNOWN_ONLY)
)
"""Twelve data sets: every meta-task in both distributions."""


@dataclass(frozen=True)
class _Row:
    """A query and its candidates, the gold first; pictures by path below ``images``."""

    text: str
    picture: str
    texts: list[str]
    pictures: list[str]


def draw_benchmark(out: Path, *, rows: int = 500, candidates: int = 100, seed: int = 0, pixels: int = 192) -> None:
    """Draws and writes the benchmark; the same seed gives the same files.

    Args:
        out: Folder to write to; created if needed.
        rows: Queries of each data set. Defaults to 500.
        candidates: Candidates of each query where there are no classes, at most. Defaults to 100.
        seed: Seed of scenes and wordings.
        pixels: Side of a picture. Defaults to 192.
    """
    root = out / "mmeb-v1"
    with tqdm(total=len(DRAWN_SUBSETS) + len(_CHANGES) + 2, desc="drawing", unit=" data sets", disable=None) as bar:
        for subset in DRAWN_SUBSETS:
            base, _, novel = subset.name.partition("-")
            rng = Random(f"benchmark/{seed}/{subset.name}")
            make = {name: function for names, function in _MAKERS.items() for name in names.split()}[base]
            easel = _Easel(root / "images", subset.name, rng, pixels)
            _write_rows(root / subset.name, list(make(base, rng, easel, bool(novel), rows, candidates)))
            bar.update()
        listed = [
            {"name": subset.name, "meta_task": subset.meta_task, "distribution": subset.distribution}
            for subset in DRAWN_SUBSETS
        ]
        write_atomically(root / "subsets.json", (json.dumps(listed, indent=1) + "\n").encode())
        for name in (*_CHANGES, "add_obj", "add_att"):
            _write_sugarcrepe(out, name, Random(f"benchmark/{seed}/{name}"), rows, pixels)
            bar.update()


class _Easel:
    """Draws scenes into files and names them."""

    def __init__(self, folder: Path, name: str, rng: Random, pixels: int) -> None:
        self.folder, self.name, self.rng, self.pixels = folder, name, rng, pixels
        self.count = 0

    def draw(self, scene: Scene) -> tuple[str, Image.Image]:
        picture = draw(scene, self.rng, pixels=self.pixels)
        return self.keep(picture), picture

    def keep(self, picture: Image.Image) -> str:
        path = f"{self.name}/{self.count:05}.png"
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        picture.save(self.folder / path)
        self.count += 1
        return path


def _scenes(rng: Random, number: int, *, novel: bool, kinds: dict[Kind, float] | None = None) -> list[Scene]:
    found: list[Scene] = []
    while len(found) < number:
        scene = random_scene(rng, "test", kinds)
        if novel == any(shape.attributes[:2] in NOVEL_COMBINATIONS for shape in scene.shapes):
            found.append(scene)
    return found


def _sample(rng: Random, gold: int, allowed: Sequence[int], candidates: int) -> list[int]:
    """The gold, then others."""
    others = [place for place in allowed if place != gold]
    return [gold, *rng.sample(others, min(candidates - 1, len(others)))]


def _classify(base: str, rng: Random, easel: _Easel, novel: bool, rows: int, candidates: int) -> Iterator[_Row]:
    attribute, classes = ("shape", SHAPES) if base == "DrawnShape" else ("color", tuple(COLORS))
    for scene in _scenes(rng, rows, novel=novel, kinds=_ONE):
        gold = getattr(scene.shapes[0], attribute)
        texts = [gold, *(name for name in classes if name != gold)]
        yield _Row(f"{_MARKER}what {attribute} is the object?\n", easel.draw(scene)[0], texts, [""] * len(texts))


def _question(base: str, rng: Random, easel: _Easel, novel: bool, rows: int, candidates: int) -> Iterator[_Row]:
    every = list(dict.fromkeys(answer for words in ANSWERS.values() for answer in words))
    for scene in _scenes(rng, rows, novel=novel):
        question = ask(scene, rng)
        assert question is not None  # the background can always be asked for
        texts = [question.answer, *(word for word in every if word != question.answer)]
        yield _Row(f"{_MARKER}{question.text}\n", easel.draw(scene)[0], texts, [""] * len(texts))


def _retrieve(base: str, rng: Random, easel: _Easel, novel: bool, rows: int, candidates: int) -> Iterator[_Row]:
    scenes = _scenes(rng, rows, novel=novel)
    captions = [caption(scene, rng) for scene in scenes]
    said = np.stack([meaning_of_caption(text) for text in captions])
    shown = np.stack([meaning_of_scene(scene) for scene in scenes])
    right = answers(said, shown) if base == "Drawn_t2i" else answers(shown, said)
    pictures = [easel.draw(scene)[0] for scene in scenes]
    for gold in range(rows):
        places = _sample(rng, gold, np.flatnonzero(~right[gold]).tolist(), candidates)
        if base == "Drawn_t2i":
            yield _Row(f"{captions[gold]}\n", "", [_MARKER] * len(places), [pictures[place] for place in places])
        else:
            yield _Row(_MARKER, pictures[gold], [captions[place] for place in places], [""] * len(places))


def _edit(base: str, rng: Random, easel: _Easel, novel: bool, rows: int, candidates: int) -> Iterator[_Row]:
    """A picture and a change; the hardest candidate is the picture itself."""
    scenes = _scenes(rng, rows, novel=novel)
    edits = [edit(scene, rng) for scene in scenes]
    shown = np.stack([meaning_of_scene(after, placed=False) for _, after in edits])
    right = answers(shown, shown)
    before = [easel.draw(scene)[0] for scene in scenes]
    after = [easel.draw(scene)[0] for _, scene in edits]
    for gold in range(rows):
        places = _sample(rng, gold, np.flatnonzero(~right[gold]).tolist(), candidates - 1)
        pictures = [after[place] for place in places]
        pictures.insert(1, before[gold])
        yield _Row(f"{_MARKER}{edits[gold][0]}.\n", before[gold], [_MARKER] * len(pictures), pictures)


def _crop(base: str, rng: Random, easel: _Easel, novel: bool, rows: int, candidates: int) -> Iterator[_Row]:
    """A picture and the name of one of its shapes; candidates are cut out of it and of others."""
    scenes = _scenes(rng, rows, novel=novel, kinds=_SEVERAL)
    drawn = [easel.draw(scene) for scene in scenes]
    crops: list[tuple[int, Shape, str]] = []
    for number, (scene, (_, picture)) in enumerate(zip(scenes, drawn, strict=True)):
        crops += [(number, shape, easel.keep(_cut(picture, shape))) for shape in scene.shapes]
    for number, scene in enumerate(scenes):
        named = [shape for shape in scene.shapes if not novel or shape.attributes[:2] in NOVEL_COMBINATIONS]
        target = pick(rng, named)
        gold = next(place for place, crop in enumerate(crops) if crop[0] == number and crop[1] is target)
        others = [place for place, (_, shape, _) in enumerate(crops) if shape.attributes[:2] != target.attributes[:2]]
        beside = [place for place in others if crops[place][0] == number]
        elsewhere = rng.sample(others, min(candidates, len(others)))
        places = list(dict.fromkeys([gold, *beside, *elsewhere]))[:candidates]
        name = noun_phrase(target, rng, article=False, size=0, fill=0)
        yield _Row(
            f"{_MARKER}the {name}\n", drawn[number][0], [_MARKER] * len(places), [crops[place][2] for place in places]
        )


def _cut(picture: Image.Image, shape: Shape) -> Image.Image:
    scale, reach = picture.width / GRID, 1.25 * shape.radius
    sides = (shape.x - reach, shape.y - reach, shape.x + reach, shape.y + reach)
    left, top, right, bottom = (min(picture.width, max(0, round(scale * side))) for side in sides)
    return picture.crop((left, top, right, bottom))


_MAKERS: dict[str, Callable[[str, Random, _Easel, bool, int, int], Iterator[_Row]]] = {
    "DrawnShape DrawnColor": _classify,
    "DrawnVQA": _question,
    "Drawn_t2i Drawn_i2t": _retrieve,
    "DrawnEdit": _edit,
    "DrawnCrop": _crop,
}


def _write_rows(folder: Path, rows: list[_Row]) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    columns = {
        "qry_text": [row.text for row in rows],
        "qry_img_path": [row.picture for row in rows],
        "tgt_text": [row.texts for row in rows],
        "tgt_img_path": [row.pictures for row in rows],
    }
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(pa.table(columns), sink)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "test-00000-of-00001.parquet", sink.getvalue().to_pybytes())


def _write_sugarcrepe(out: Path, name: str, rng: Random, rows: int, pixels: int) -> None:
    """One file of SugarCrepe and, where it has one, of SugarCrepe++, on the same pictures."""
    easel = _Easel(out / "sugarcrepe" / "val2017", name, rng, pixels)
    again = _Easel(out / "sugarcrepe-pp" / "val2017", name, rng, pixels)
    plain: dict[str, dict[str, Any]] = {}
    twice: list[dict[str, Any]] = []
    while len(plain) < rows:
        [scene] = _scenes(rng, 1, novel=rng.random() < 0.25, kinds=_TWO)
        texts = _captions(name, scene, rng)
        if texts is None:
            continue
        true, other, false = texts
        path, picture = easel.draw(scene)
        plain[str(len(plain))] = {"filename": path, "caption": true, "negative_caption": false}
        if name in _CHANGES:
            again.keep(picture)
            row = {"filename": path, "caption": true, "caption2": other, "negative_caption": false}
            twice.append({"id": len(twice), **row})
    write_atomically(out / "sugarcrepe" / f"{name}.json", (json.dumps(plain, indent=1) + "\n").encode())
    if twice:
        write_atomically(out / "sugarcrepe-pp" / f"{name}.json", (json.dumps(twice, indent=1) + "\n").encode())


def _captions(name: str, scene: Scene, rng: Random) -> tuple[str, str, str] | None:
    """Two true captions in other words, and a false one in the words of the first; None where the scene allows none."""
    first, second = scene.shapes
    if first.shape == second.shape or first.color == second.color:
        return None  # what is swapped or replaced has to differ
    wording = rng.getrandbits(32)
    true, other = relation_caption(scene, Random(wording)), relation_caption(scene, rng)
    if name in _CHANGES:
        false = relation_caption(changed(scene, _CHANGES[name], rng), Random(wording))
    elif name == "add_obj":
        present = {shape.attributes[:2] for shape in scene.shapes}
        absent = [(shape, color) for shape in SHAPES for color in COLORS if (shape, color) not in present]
        shape, color = pick(rng, absent)
        false = f"{true} and {noun_phrase(Shape(shape, color, 'small', 'solid'), rng, size=0, fill=0)}"
    else:
        # The first words are those of one shape; it gets a size or a fill that it has not.
        words = true.split(" ")
        if {*SIZES, *FILLS} & set(words):
            return None
        subject = first if first.color in words[:2] else second if second.color in words[:2] else None
        if subject is None:
            return None
        wrong = pick(rng, [w for w in (*SIZES, "striped") if w not in (subject.size, subject.fill)])
        false = " ".join(["a", wrong, *words[1:]])
    return (true, other, false) if len({true, other, false}) == 3 else None
