"""The video half of MMEB-V2 in miniature: every kind of data set, in each of the published places."""

from __future__ import annotations

import pytest

from hf_mmembed.evaluation.mmeb_video import _labels, read_v2_video
from hf_mmembed.evaluation.subsets import MMEB_V2, choose
from hf_mmembed.evaluation.tables import Missing
from tests.evaluation import layouts
from tests.evaluation.test_mmeb_image import score

ASK = (
    "Given a video and a question, select the most accurate answer from the provided candidates. Return only the exact "
    "text of your chosen answer. Question:"
)


def read(root, name, protocol="user", frames=8):
    [subset] = choose(MMEB_V2, [name])
    return read_v2_video(root, subset, protocol, frames=frames)


def shown(item):
    return [layouts.number_in(image.read()) for image in item.images]


def test_class_names_are_those_of_the_data_sets():
    assert {name: len(set(labels)) for name, labels in _labels().items()} == {
        "Breakfast": 10,
        "HMDB51": 51,
        "UCF101": 101,
        "K700": 700,
    }


def test_classification_ranks_all_classes(tmp_path):
    rows = [{"video_id": "a", "pos_text": "tea"}, {"video_id": "b", "pos_text": "milk"}]
    layouts.write_jsonl(tmp_path / "video-tasks/data/breakfast.jsonl", rows)
    for video in "ab":
        # Frame 10 comes after frame 9; of 16 frames, 8 are taken, the first and the last among them.
        layouts.write_frames(tmp_path / "video-tasks/frames/video_cls/Breakfast" / video, range(1, 17))
    task = read(tmp_path, "Breakfast")
    assert task.pools is None and {item.text for item in task.candidates} == set(_labels()["Breakfast"])
    assert shown(task.queries[0]) == [1, 3, 5, 7, 9, 11, 13, 16]
    assert task.queries[0].text == " Recognize the breakfast type that the person is cooking in the video."
    assert task.notes["num_frames"] == task.notes["frames_min"] == 8
    all_frames = read(tmp_path, "Breakfast", "system", frames=64)
    assert all_frames.notes["num_frames"] == 64 and all_frames.notes["frames_max"] == 16
    assert shown(all_frames.queries[0]) == list(range(1, 17))  # a short video is not padded
    assert all_frames.queries[0].text is None and all_frames.queries[0].instruction.startswith("Recognize")


def test_ssv2_finds_the_right_one_at_any_place(tmp_path):
    rows = [{"video_id": 5, "pos_text": "#5", "neg_text": ["#4", "#6", "#5"]}] * 1001
    layouts.write_parquet(tmp_path / "VLM2Vec/SmthSmthV2/data/test-0.parquet", rows)
    layouts.write_frames(tmp_path / "video-tasks/frames/video_cls/SSv2/5", [5, 5])
    task = read(tmp_path, "SmthSmthV2")
    assert len(task.queries) == 1000 and task.relevance[0] == {2: 1}
    assert score(task, layouts.oracle(), tmp_path)["hit@1"] == 1
    assert score(task, layouts.constant(), tmp_path)["hit@1"] == 0


@pytest.mark.parametrize("place", ["video_ret/MSVD", "video_ret/data/ziyan/video_retrieval/MSVD/frames"])
def test_retrieval_asks_by_the_first_caption(tmp_path, place):
    rows = [{"video_id": f"v{n}", "video": f"v{n}.avi", "caption": [f"#{n}", "#63"]} for n in (1, 2, 3)]
    layouts.write_jsonl(tmp_path / "video-tasks/data/msvd.jsonl", rows)
    for n in (1, 2, 3):
        layouts.write_frames(tmp_path / "video-tasks/frames" / place / f"v{n}", [n] * 3)
    task = read(tmp_path, "MSVD")
    assert task.queries[0].text == "Find the video snippet that corresponds to the given summary: #1"
    assert task.candidates[0].text == " Understand the content of the provided video."
    assert (
        score(task, layouts.Fake(lambda i: layouts.one_hot(shown(i)[0] if i.images else layouts.meant(i))), tmp_path)[
            "hit@1"
        ]
        == 1
    )
    assert read(tmp_path, "MSVD", "system").candidates[0].text is None


def test_didemo_vatex_and_youcook_name_their_videos_differently(tmp_path):
    layouts.write_jsonl(tmp_path / "video-tasks/data/didemo.jsonl", [{"video": "test/x.mp4", "caption": "#1"}])
    layouts.write_jsonl(tmp_path / "video-tasks/data/vatex.jsonl", [{"videoID": "x", "enCap": ["#1", "#2"]}])
    layouts.write_jsonl(tmp_path / "video-tasks/data/youcook2-val.jsonl", [{"id": "x", "sentence": "#1"}])
    for name in ("DiDeMo", "VATEX", "YouCook2"):
        layouts.write_frames(tmp_path / "video-tasks/frames/video_ret" / name / "x", [1])
        task = read(tmp_path, name)
        assert task.queries[0].text.endswith(": #1") and len(task.candidates[0].images) == 1


def test_moments_are_the_folders_beside_the_query(tmp_path):
    layouts.write_jsonl(
        tmp_path / "video-tasks/data/charades_sta.jsonl", [{"query": "#9", "video_path": "somewhere/AB.mp4"}]
    )
    folder = tmp_path / "video-tasks/frames/video_mret/Charades_STA/AB"
    layouts.write_frames(folder / "query", range(1, 13))
    layouts.write_frames(folder / "negative_0", [4] * 12)
    layouts.write_frames(folder / "positive_0", [9] * 12)
    layouts.write_frames(folder / "positive_1", [10] * 2)
    task = read(tmp_path, "Charades-STA", frames=12)
    assert len(task.queries[0].images) == 12
    assert [len(item.images) for item in task.candidates] == [8, 8, 2]  # clips get 8 frames whatever videos get
    assert task.relevance == [{1: 1, 2: 1}] and task.pools == [[0, 1, 2]]
    (folder / "positive_0").rename(folder / "other")
    (folder / "positive_1").rename(folder / "another")
    with pytest.raises(ValueError, match="row 0: no folder positive"):
        read(tmp_path, "Charades-STA")


def test_moment_seeker_drops_repeated_rows_and_keeps_positives_right(tmp_path):
    clip = {name: {"output_path": f"clips/{name}.mp4"} for name in "abc"}
    row = {
        "query": "#1",
        "input_frames": "",
        "positive_frames": [clip["a"]],
        "negative_frames": [clip["a"], clip["b"]],
    }
    video = row | {"query": "#2", "input_frames": "movie/7.mp4", "positive_frames": [clip["b"], clip["c"]]}
    image = row | {"query": "#3", "input_frames": "img.jpg"}
    layouts.write_jsonl(tmp_path / "video-tasks/data/momentseeker_1k6.jsonl", [row, video, image, row])
    frames = tmp_path / "video-tasks/frames/video_mret/MomentSeeker"
    for name, number in {"clips_a": 1, "clips_b": 2, "clips_c": 3, "movie_7": 4}.items():
        layouts.write_frames(frames / "video_frames" / name, [number] * 2)
    (frames / "query_img.jpg").write_bytes(layouts.picture(8))
    task = read(tmp_path, "MomentSeeker")
    assert task.notes["rows"] == 4 and task.notes["duplicates_dropped"] == 1 and len(task.queries) == 3
    assert [query.text for query in task.queries] == [
        "Find the clip that corresponds to the given text: #1",
        " Find the clip that corresponds to the given sentence and video segment: #2",
        " Select the video clip that aligns with the given text and image: #3",
    ]
    assert task.relevance == [{0: 1}, {1: 1, 2: 1}, {0: 1}]
    assert task.pools == [[0, 1], [1, 2, 0], [0, 1]]


QA = {
    "Video-MME": (
        "video-mme.jsonl",
        {"question": "q?", "videoID": "x", "options": ["A. #5.", "B. #6.", "C. #7.", "D. #8."], "answer": "C"},
        "q?\nA. #5.\nB. #6.\nC. #7.\nD. #8.",
        ["#5", "#6", "#7", "#8"],
    ),
    "EgoSchema": (
        "egoschema.jsonl",
        {"question": "q?", "video_idx": "x", "option": ["A. #6", "B. #5", "C. #7"], "answer": "2"},
        "q?A. #6 B. #5 C. #7",
        ["#6", "#5", "#7"],
    ),
    "NExTQA": (
        "nextqa.jsonl",
        {"question": "q?", "video": "x", "answer": 2, "a0": "#1", "a1": "#2", "a2": "#7", "a3": "#3", "a4": "#4"},
        "q?\nOptions:\n(A) #1\n(B) #2\n(C) #7\n(D) #3\n(E) #4",
        ["#1", "#2", "#7", "#3", "#4"],
    ),
}


@pytest.mark.parametrize("name", QA)
@pytest.mark.parametrize("place", ["video_qa/{}", "video_qa/video_qa/{}"])
def test_question_answering(tmp_path, name, place):
    file, row, question, candidates = QA[name]
    layouts.write_jsonl(tmp_path / "video-tasks/data" / file, [row])
    folder = name.lower() if name == "EgoSchema" else name
    layouts.write_frames(tmp_path / "video-tasks/frames" / place.format(folder) / "x", [7])
    task = read(tmp_path, name)
    assert task.queries[0].text == f" {ASK} {question}"
    assert [item.text for item in task.candidates] == candidates
    assert task.relevance == [{2: 1}]  # right, and not at place 0
    seen = layouts.Fake(lambda item: layouts.one_hot(shown(item)[0] if item.images else layouts.meant(item)))
    assert score(task, seen, tmp_path)["hit@1"] == 1


def test_mvbench_is_many_tables(tmp_path):
    from hf_mmembed.evaluation.mmeb_video import _MVBENCH

    row = {"question": "q?", "video": "x.mp4", "candidates": ["#6", "#7"], "answer": "#7"}
    folder = tmp_path / "video-tasks/data/mvbench"
    folder.mkdir(parents=True)
    for name in _MVBENCH:
        (folder / f"{name}.json").write_text(layouts.json.dumps([row]))
        layouts.write_frames(tmp_path / "video-tasks/frames/video_qa/MVBench" / name / "x.mp4", [7])
    task = read(tmp_path, "MVBench")
    assert len(task.queries) == 20 and task.relevance[0] == {1: 1}
    assert [item.text for item in task.candidates] == ["(A) #6", "(B) #7"]


def test_activitynet_answers_yes_or_no(tmp_path):
    rows = [{"question": "is it", "video_name": "x", "answer": "no"}]
    layouts.write_jsonl(tmp_path / "video-tasks/data/activitynetqa.jsonl", rows)
    layouts.write_frames(tmp_path / "video-tasks/frames/video_qa/ActivityNetQA/v_x", [1])
    task = read(tmp_path, "ActivityNetQA")
    assert task.queries[0].text.endswith("is it? (A) yes; (B) no.") and task.relevance == [{1: 1}]


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(Missing, match=r"video-tasks/data/hmdb51.jsonl"):
        read(tmp_path, "HMDB51")
    layouts.write_jsonl(tmp_path / "video-tasks/data/hmdb51.jsonl", [{"video_id": "a", "pos_text": "run"}])
    with pytest.raises(Missing, match="video_cls/HMDB51"):
        read(tmp_path, "HMDB51")
    folder = tmp_path / "video-tasks/frames/video_cls/HMDB51"
    folder.mkdir(parents=True)
    with pytest.raises(ValueError, match=r"no folder of frames .*/a"):
        read(tmp_path, "HMDB51")
    (folder / "a").mkdir()
    with pytest.raises(ValueError, match="holds no frames"):
        read(tmp_path, "HMDB51")
