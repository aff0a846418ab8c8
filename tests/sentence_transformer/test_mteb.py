"""mteb runs an image-text retrieval task of its own kind, on a local dataset, through both classes."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from sentence_transformers import SentenceTransformer

from hf_mmembed import MMEmbedder

mteb = pytest.importorskip("mteb")

CAPTIONS = ["a red square", "a green square", "a blue square", "a white square", "a black square"]
PICTURES = [PILImage.new("RGB", (40, 32), caption.split()[1]) for caption in CAPTIONS]
TEXTS_AND_PICTURES = {"id": Value("string"), "text": Value("string"), "image": Image()}


def task(category: str, queries: Dataset):
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    unknown = dict.fromkeys(
        ("reference", "date", "domains", "task_subtypes", "license", "annotations_creators", "dialect")
    )

    class LocalRetrieval(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name=f"Local{category.upper()}", description="pictures of squares by their captions", category=category,
            dataset={"path": "local/none", "revision": "0"}, type="Any2AnyRetrieval", modalities=["text", "image"],
            eval_splits=["test"], eval_langs=["eng-Latn"], main_score="ndcg_at_5", sample_creation=None,
            bibtex_citation=None, prompt={"query": "Find the picture."}, **unknown,
        )  # fmt: skip

        def load_data(self, num_proc=None, **kwargs):
            if self.data_loaded:
                return
            corpus = Dataset.from_dict(
                {"id": [f"d{n}" for n in range(5)], "image": PICTURES},
                features=Features({"id": Value("string"), "image": Image()}),
            )
            relevant = {f"q{n}": {f"d{n}": 1} for n in range(5)}
            split = {"queries": queries, "corpus": corpus, "relevant_docs": relevant, "top_ranked": None}
            self.dataset = {"default": {"test": split}}
            self.data_loaded = True

    return LocalRetrieval()


def ndcg_at_5(scores: np.ndarray) -> float:
    ranks = (-scores).argsort(axis=1).argsort(axis=1).diagonal()
    return float((1 / np.log2(ranks + 2)).mean())


@pytest.mark.parametrize("kind", [MMEmbedder, SentenceTransformer])
@pytest.mark.parametrize("category", ["t2i", "it2i"])
def test_scores_are_those_of_the_vectors(embedder, category, kind):
    from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper

    path = str(embedder("qwen2_vl"))
    model = kind(path, prompts={"query": "Find the picture."}, device="cpu", trust_remote_code=True)
    ids = [f"q{n}" for n in range(5)]
    if category == "t2i":
        rows = CAPTIONS
        queries = Dataset.from_dict({"id": ids, "text": CAPTIONS})
    else:
        turned = PICTURES[1:] + PICTURES[:1]
        rows = [{"text": text, "image": image} for text, image in zip(CAPTIONS, turned, strict=True)]
        queries = Dataset.from_dict(
            {"id": ids, "text": CAPTIONS, "image": turned}, features=Features(TEXTS_AND_PICTURES)
        )
    wrapper = SentenceTransformerEncoderWrapper(model)
    # mteb reads the modalities of a model from the Hub; of a local one it has to be told.
    wrapper.mteb_model_meta = wrapper.mteb_model_meta.model_copy(
        update={"name": "local/mmembed", "revision": "0", "modalities": ["text", "image"]}
    )
    results = mteb.evaluate(wrapper, [task(category, queries)], cache=None, encode_kwargs={"batch_size": 2})
    scores = results.task_results[0].scores["test"][0]
    expected = ndcg_at_5(model.encode_query(rows) @ model.encode_document(PICTURES).T)
    assert scores["ndcg_at_5"] == pytest.approx(expected, abs=1e-4)
