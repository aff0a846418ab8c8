"""mteb loads a checkpoint of ours, gives it the task's instruction, and computes the scores of its vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

from hf_mmembed import MMEmbedder

mteb = pytest.importorskip("mteb")

COLORS = ["red", "green", "blue", "white", "black"]
PICTURES = [PILImage.new("RGB", (40, 32), color) for color in COLORS]
TEXTS = [f"a {color} square" for color in COLORS]


def task(prompt):
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    unknown = dict.fromkeys(
        ("reference", "date", "domains", "task_subtypes", "license", "annotations_creators", "dialect")
    )

    class LocalSquares(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="LocalSquares", description="squares by their captions", category="t2i",
            dataset={"path": "local/none", "revision": "0"}, type="Any2AnyRetrieval", modalities=["text", "image"],
            eval_splits=["test"], eval_langs=["eng-Latn"], main_score="ndcg_at_5", sample_creation=None,
            bibtex_citation=None, prompt=prompt, **unknown,
        )  # fmt: skip

        def load_data(self, num_proc=None, **kwargs):
            features = Features({"id": Value("string"), "image": Image()})
            corpus = Dataset.from_dict({"id": [f"d{n}" for n in range(5)], "image": PICTURES}, features=features)
            queries = Dataset.from_dict({"id": [f"q{n}" for n in range(5)], "text": TEXTS})
            relevant = {f"q{n}": {f"d{n}": 1} for n in range(5)}
            split = {"queries": queries, "corpus": corpus, "relevant_docs": relevant, "top_ranked": None}
            self.dataset, self.data_loaded = {"default": {"test": split}}, True

    return LocalSquares()


def test_a_task_brings_its_instruction(embedder, monkeypatch):
    from hf_mmembed.evaluation.mteb_model import MTEBEncoder, model_meta

    checkpoint = embedder("qwen2_vl")
    meta = model_meta(checkpoint)
    assert meta.name == "local/qwen2_vl" and meta.modalities == ["text", "image"] and meta.loader is MTEBEncoder
    heard = []
    encode = MMEmbedder.encode
    monkeypatch.setattr(
        MMEmbedder,
        "encode",
        lambda self, *a, **k: heard.append((k.get("task"), k.get("prompt"))) or encode(self, *a, **k),
    )
    both = {"query": "Find the square.", "document": "A square."}
    for prompt, document in (("Find the square.", None), (both, "A square.")):
        heard.clear()
        results = mteb.evaluate(meta, [task(prompt)], cache=None, encode_kwargs={"batch_size": 2})
        assert {("query", "Find the square."), ("document", document)} <= set(heard)
        score = results.task_results[0].scores["test"][0]["ndcg_at_5"]
        model = MMEmbedder(checkpoint, device="cpu")
        queries = model.encode_query(TEXTS, prompt="Find the square.")
        documents = model.encode_document(PICTURES, **({"prompt": document} if document else {}))
        ranks = (-(queries @ documents.T)).argsort(axis=1).argsort(axis=1).diagonal()
        assert score == pytest.approx(float((1 / np.log2(ranks + 2)).mean()), abs=1e-4)


def test_two_trainings_have_two_names_and_a_cpu_computes_in_float32(embedder, tmp_path):
    from hf_mmembed.evaluation.mteb_model import MTEBEncoder, model_meta

    checkpoint = embedder("qwen2_vl", dtype="bfloat16")
    for training in ("saha", "unime/stage-1"):
        (tmp_path / training).mkdir(parents=True)
        (tmp_path / training / "model").symlink_to(checkpoint)
    names = [model_meta(tmp_path / training / "model").name for training in ("saha", "unime/stage-1")]
    assert names == ["local/saha", "local/unime--stage-1"]
    assert MTEBEncoder("local/saha", checkpoint=str(checkpoint), device="cpu").model.dtype == torch.float32


def test_the_command_line_takes_a_checkpoint(embedder, monkeypatch):
    import mteb.cli.build_cli
    from mteb.models.model_implementations import MODEL_REGISTRY

    from hf_mmembed.evaluation import mteb_model

    checkpoint = embedder("qwen2_vl")
    monkeypatch.setattr(mteb_model.sys, "argv", ["mteb", "run", "-m", str(checkpoint), "-t", "X"])
    asked = []
    monkeypatch.setattr(mteb.cli.build_cli, "main", lambda: asked.append(list(mteb_model.sys.argv)))
    try:
        mteb_model.main()
        assert asked == [["mteb", "run", "-m", "local/qwen2_vl", "-t", "X"]]
        model = mteb.get_model("local/qwen2_vl", device="cpu")
        assert isinstance(model.model, MMEmbedder) and model.mteb_model_meta.name == "local/qwen2_vl"
    finally:
        MODEL_REGISTRY.pop("local/qwen2_vl", None)
