"""What training reads in MMEB-train is what evaluation reads in MMEB, and what the authors of the prompts published."""

from __future__ import annotations

import pytest

from hf_mmembed.data.pairs import document_of, query_of, read_pairs
from hf_mmembed.evaluation.items import as_input
from hf_mmembed.evaluation.mmeb_image import read_v1
from hf_mmembed.evaluation.subsets import MMEB_V1, choose
from hf_mmembed.inputs import as_messages
from hf_mmembed.model import PRESETS, MMEmbedProcessor
from tests.evaluation import layouts

ASK = "<|image_1|>\nRepresent the given image with the following question: "
FIND = "Find me an everyday image that matches the given caption: "
SHOW = "<|image_1|>\nRepresent the given image.\n"


def rows(subset, split="original"):
    """Two pairs of a subset as texts and pictures, in the words of `split`."""
    if subset == "MSCOCO_t2i":
        return [
            (f"{FIND}A {colour} box.\n", "", SHOW, f"{number}.png") for number, colour in enumerate(("red", "blue"))
        ]
    asked = {"original": [f"{ASK}What is it?\n", f"{ASK}Who is it?\n"],
             "diverse_instruction": ["Here is <|image_1|>, and you are asked: What is it?\n",
                                     "<|image_1|>\nIf asked 'Who is it?', answer.\n"]}[split]  # fmt: skip
    return [(query, "0.png", answer, "") for query, answer in zip(asked, ("a box", "a man"), strict=True)]


def write_train(root, subset, split="original"):
    names = ("qry", "qry_image_path", "pos_text", "pos_image_path")
    found = [dict(zip(names, row, strict=True)) for row in rows(subset, split)]
    layouts.write_parquet(root / subset / f"{split}-00000-of-00001.parquet", found)
    layouts.write_pictures(root, [0, 1])


@pytest.fixture(scope="module")
def processor(embedder):
    return MMEmbedProcessor.from_pretrained(embedder("qwen2_vl"))


@pytest.mark.parametrize("prompt", ["saha", "saha-legacy", "unime", "vlm2vec"])
def test_evaluation_reads_what_training_read_and_both_what_was_published(processor, tmp_path, prompt):
    processor.prompt = PRESETS[prompt]

    def read(item, role):
        return processor.apply_chat_template(as_messages(item), task=role)

    for subset in ("OK-VQA", "MSCOCO_t2i"):
        write_train(tmp_path / "train", subset)
        (row, _), (pair, _) = rows(subset), read_pairs(tmp_path / "train", split="original", subset=subset)
        names = ("qry_text", "qry_img_path", "tgt_text", "tgt_img_path")
        test = {name: [cell] if name.startswith("tgt") else cell for name, cell in zip(names, row, strict=True)}
        layouts.write_v1(tmp_path / "eval", subset, [test])
        layouts.write_pictures(tmp_path / "eval", [0])
        task = read_v1(tmp_path / "eval", *choose(MMEB_V1, [subset]), "user")
        query, document = read(query_of(pair), "query"), read(document_of(pair), "document")
        assert query == read(as_input(task.queries[0]), "query")
        assert document == read(as_input(task.candidates[0]), "document")
        published = [text.replace("<|image_1|>", "<|image_pad|>") for text in (row[0], row[2])]
        if prompt == "vlm2vec":
            assert [query, document] == published
        elif prompt == "saha-legacy":
            end = processor.prompt.ending("query", has_image=bool(row[1]))
            assert f"user\n{published[0]}{end}<|im_end|>" in query and f"user\n{published[1]}<|im_end|>" in document


def test_other_words_keep_their_white_space_around_the_same_contents(tmp_path):
    for split in ("original", "diverse_instruction"):
        write_train(tmp_path, "OK-VQA", split)
    pairs = read_pairs(tmp_path, split="diverse_instruction")
    assert pairs["query_text"][:] == ["What is it?\n", "Who is it?\n"]
    assert pairs["query_instruction"][:] == ["Here is, and you are asked: ", "\nIf asked '', answer. "]
