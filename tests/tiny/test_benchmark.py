"""The drawn benchmark: its layout, that an oracle of the world scores 100 on it, and that it is what it says it is."""

from __future__ import annotations

import json

import pytest

from hf_mmembed.data.captions import SYNONYMS
from hf_mmembed.data.scenes import COLORS, NOVEL_COMBINATIONS, SHAPES
from hf_mmembed.evaluation import evaluate
from hf_mmembed.evaluation.mmeb_image import read_v1
from hf_mmembed.evaluation.subsets import read_subsets
from hf_mmembed.tiny.benchmark import DRAWN_SUBSETS, draw_benchmark
from tests.evaluation import layouts

ROWS = 12


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    draw_benchmark(folder, rows=ROWS, candidates=6, pixels=64)
    return folder


def test_twelve_data_sets_in_four_meta_tasks(drawn):
    assert len(DRAWN_SUBSETS) == 12
    listed, _ = read_subsets(drawn / "mmeb-v1" / "subsets.json")
    assert listed == DRAWN_SUBSETS
    assert {(s.meta_task, s.distribution) for s in listed} == {
        (task, side) for task in ("Classification", "VQA", "Retrieval", "Grounding") for side in ("IND", "OOD")
    }
    for subset in listed:
        task = read_v1(drawn / "mmeb-v1", subset, "user")
        assert len(task.queries) == ROWS and all(len(set(pool)) > 1 for pool in task.pools)


def test_every_reader_reads_it(drawn, tmp_path):
    for benchmark, count in (("mmeb-v1", 12), ("sugarcrepe", 7), ("sugarcrepe-pp", 5)):
        encoder = layouts.guesser()
        results = evaluate(encoder, benchmark, drawn / benchmark, out=tmp_path / benchmark)
        [scores] = results.metrics.values()
        assert len(scores) == count and not results.failed
        assert not results.partial


def test_the_same_seed_gives_the_same_files(drawn, tmp_path):
    draw_benchmark(tmp_path, rows=ROWS, candidates=6, pixels=64)
    files = [file for file in sorted(drawn.rglob("*")) if file.is_file()]
    assert len(files) > 100
    for file in files:
        assert file.read_bytes() == (tmp_path / file.relative_to(drawn)).read_bytes(), file


def test_out_of_distribution_means_new_combinations(drawn):
    forms = {form: shape for shape in SHAPES for form in SYNONYMS.get(shape, (shape,))}
    tones = {form: color for color in COLORS for form in SYNONYMS.get(color, (color,))}
    for name, novel in (("DrawnCrop", False), ("DrawnCrop-Novel", True)):
        [subset] = [subset for subset in DRAWN_SUBSETS if subset.name == name]
        for query in read_v1(drawn / "mmeb-v1", subset, "user").queries:
            _, color, shape = query.text.split()
            assert ((forms[shape], tones[color]) in NOVEL_COMBINATIONS) == novel


def test_sugarcrepe_differs_by_what_its_file_says(drawn):
    for name in ("replace_obj", "swap_att", "add_obj", "add_att"):
        rows = json.loads((drawn / "sugarcrepe" / f"{name}.json").read_text()).values()
        assert len(rows) == ROWS
        for row in rows:
            true, false = row["caption"].split(), row["negative_caption"].split()
            if name.startswith("add"):
                assert len(false) > len(true)
            else:
                assert len(false) == len(true) and sum(a != b for a, b in zip(true, false, strict=True)) in (
                    1,
                    2,
                    3,
                    4,
                )
    for row in json.loads((drawn / "sugarcrepe-pp" / "swap_obj.json").read_text()):
        assert len({row["caption"], row["caption2"], row["negative_caption"]}) == 3
