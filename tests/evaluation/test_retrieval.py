"""Image-text retrieval with several captions per picture, against brute force, in every layout."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hf_mmembed.evaluation.retrieval import list_retrieval, read_retrieval
from tests.evaluation import layouts
from tests.evaluation.test_mmeb_image import score


def tasks(root, protocol="user"):
    return {subset.name: read_retrieval(root, subset, protocol) for subset in list_retrieval(root)}


def karpathy(folder, captions, filepath=None):
    images = [
        {"filename": f"{n}.png", "split": "test", "sentences": [{"raw": raw} for raw in texts]}
        | ({"filepath": filepath} if filepath else {})
        for n, texts in captions.items()
    ]
    images.append({"filename": "unused.png", "split": "train", "sentences": [{"raw": "#1"}]})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset_flickr30k.json").write_text(json.dumps({"images": images}))
    (folder / "captions_val.json").write_text("{}")  # sorts first


def test_recall_in_both_directions_against_brute_force(tmp_path):
    captions = {n: [f"caption {n}.{k}" for k in range(1 + n % 4)] for n in range(1, 25)}
    karpathy(tmp_path / "flickr30k", captions)
    layouts.write_pictures(tmp_path / "flickr30k" / "images", captions)
    found = tasks(tmp_path)
    assert list(found) == ["flickr30k_t2i", "flickr30k_i2t"]
    random = np.random.default_rng(0)
    direction = {}

    def vector(item):
        key = item.text.rsplit(" ", 1)[-1] if not item.images else f"{layouts.number_in(item.images[0].read())}"
        number = int(key.split(".")[0])
        direction.setdefault(key, random.standard_normal(8) + 1.2 * np.cos(np.arange(8) * number))
        return direction[key]

    encoder = layouts.Fake(vector)
    scores = {name: score(task, encoder, tmp_path) for name, task in found.items()}
    unit = {key: value / np.linalg.norm(value) for key, value in direction.items()}
    texts = [(f"{n}.{k}", n) for n, own in captions.items() for k in range(len(own))]
    similarity = np.array([[unit[key] @ unit[str(n)] for n in captions] for key, _ in texts])
    place = {n: column for column, n in enumerate(captions)}
    for k in (1, 5, 10):
        t2i = np.mean([place[n] in np.argsort(-row)[:k] for row, (_, n) in zip(similarity, texts, strict=True)])
        assert scores["flickr30k_t2i"][f"hit@{k}"] == pytest.approx(t2i)
        right = [[texts[t][1] == n for t in np.argsort(-similarity[:, place[n]])[:k]] for n in captions]
        assert scores["flickr30k_i2t"][f"hit@{k}"] == pytest.approx(np.mean([any(row) for row in right]))
    assert 0 < scores["flickr30k_t2i"]["hit@1"] < 1  # a test that could not fail would show nothing
    assert scores["flickr30k_i2t"]["num_data"] == 24 and scores["flickr30k_t2i"]["num_data"] == len(texts)


def test_wordings(tmp_path):
    karpathy(tmp_path / "coco", {1: ["#1"]}, filepath="val2014")
    layouts.write_pictures(tmp_path / "coco" / "val2014", [1])
    found = tasks(tmp_path)
    assert found["coco_t2i"].queries[0].text == "Find me an everyday image that matches the given caption: #1"
    assert found["coco_i2t"].candidates[0].text == "#1"
    apart = tasks(tmp_path, "system")
    assert apart["coco_t2i"].candidates[0].text is None
    assert apart["coco_i2t"].queries[0].instruction.startswith("Find an image caption")


def test_long_captions_and_imagefolders(tmp_path):
    layouts.write_pictures(tmp_path / "sharegpt4v", [1, 2])
    talk = [{"image": f"{n}.png", "conversations": [{"value": "?"}, {"value": f"a long story #{n}"}]} for n in (1, 2)]
    (tmp_path / "sharegpt4v" / "captions.json").write_text(json.dumps(talk))
    layouts.write_pictures(tmp_path / "urban1k" / "image", [3, 4])
    (tmp_path / "urban1k" / "caption").mkdir()
    for n in (3, 4):
        (tmp_path / "urban1k" / "caption" / f"{n}.txt").write_text(f"#{n}\n")
    layouts.write_pictures(tmp_path / "own", [5, 6])
    rows = [{"file_name": f"{n}.png", "text": text} for n, text in ((5, "#5"), (6, "#6"), (5, "again #5"), (5, "#5"))]
    layouts.write_jsonl(tmp_path / "own" / "metadata.jsonl", rows)
    found = tasks(tmp_path)
    assert len(found) == 6
    assert all(
        score(task, layouts.oracle(), tmp_path)["hit@1"] == 1 for name, task in found.items() if "own" not in name
    )
    assert found["own_i2t"].notes == {"pictures": 2, "captions": 3}
    assert found["own_i2t"].relevance == [{0: 1, 1: 1}, {2: 1}]


@pytest.mark.parametrize(("name", "captions"), [("share-captioner_coco.json", 1000), ("captions.json", 1001)])
def test_of_sharegpt4v_the_first_thousand_are_scored(tmp_path, name, captions):
    layouts.write_pictures(tmp_path / "set", [1])
    talks = [{"image": "1.png", "conversations": [{"value": "?"}, {"value": f"caption {n}"}]} for n in range(1001)]
    (tmp_path / "set" / name).write_text(json.dumps(talks))
    assert tasks(tmp_path)["set_t2i"].notes == {"pictures": 1, "captions": captions}


@pytest.mark.parametrize("folder", ["val2014", "images"])
def test_pictures_of_coco_lie_in_its_folders_or_all_in_one(tmp_path, folder):
    karpathy(tmp_path / "coco", {1: ["#1"]}, filepath="val2014")
    layouts.write_pictures(tmp_path / "coco" / folder, [1])
    [picture] = tasks(tmp_path)["coco_i2t"].queries
    assert layouts.number_in(picture.images[0].read()) == 1


def test_one_set_may_be_the_folder_itself(tmp_path):
    layouts.write_pictures(tmp_path, [5])
    layouts.write_jsonl(tmp_path / "metadata.jsonl", [{"file_name": "5.png", "text": "#5"}])
    assert len(tasks(tmp_path)) == 2


def test_bad_input_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no captions"):
        list_retrieval(tmp_path)
    layouts.write_jsonl(tmp_path / "x" / "metadata.jsonl", [{"file_name": "5.png", "text": "#5"}])
    with pytest.raises(ValueError, match=r"metadata.jsonl, row 0: no picture '5.png'"):
        tasks(tmp_path)
    layouts.write_jsonl(tmp_path / "x" / "metadata.jsonl", [{"a": "5.png"}])
    with pytest.raises(ValueError, match="row 0: needs a picture"):
        tasks(tmp_path)
