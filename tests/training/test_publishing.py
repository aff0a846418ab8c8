from __future__ import annotations

import shutil

import pytest

from hf_mmembed import MMEmbedder
from hf_mmembed.training.trainer import SaHaTrainer
from tests.hub.conftest import hub  # noqa: F401 - a fixture
from tests.training.conftest import make_pairs
from tests.training.runs import CLUSTERS, arguments

PUSHED = {"push_to_hub": True, "hub_model_id": "org/tuned", "save_as": "merged", "max_steps": 2}


def test_the_result_is_pushed_and_nothing_else(hub, embedder, tmp_path):  # noqa: F811
    args = arguments(tmp_path / "run", **PUSHED, hub_private_repo=True)
    trainer = SaHaTrainer(embedder("qwen2_vl"), args, make_pairs(), CLUSTERS)
    assert hub.repos["org/tuned"].private, "a missing token shows before the training"
    trainer.train()
    assert (tmp_path / "run" / "checkpoint-2" / "optimizer.pt").is_file()
    assert set(hub.files("org/tuned")) == {".gitattributes"}, "no checkpoint is pushed"
    result = trainer.save_result(tmp_path / "result")
    names = set(hub.files("org/tuned"))
    assert {"model.safetensors", "training.json", "recipe.yaml", "README.md", "golden/vectors.safetensors"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl")) or "checkpoint-" in name]
    assert b"| steps | 2 |" in hub.files("org/tuned")["README.md"]
    expected = MMEmbedder(result, device="cpu").encode_query(["red thing"])
    shutil.rmtree(tmp_path / "result")
    assert (MMEmbedder("org/tuned", device="cpu").encode_query(["red thing"]) == expected).all()

    commits = len(hub.repos["org/tuned"].commits)
    trainer.save_model(str(tmp_path / "saved"))  # pushes too, as in transformers
    assert len(hub.repos["org/tuned"].commits) == commits + 1
    assert set(hub.files("org/tuned")) == names and not list((tmp_path / "saved").glob("*.bin"))


def test_an_adapter_over_a_local_base_is_refused_before_the_training(hub, embedder, tmp_path):  # noqa: F811
    args = arguments(tmp_path / "run", **PUSHED | {"save_as": "adapter"})
    with pytest.raises(ValueError, match="an adapter over the local directory .* Set save_as to 'merged', or push"):
        SaHaTrainer(embedder("qwen2_vl"), args, make_pairs(), CLUSTERS)
    assert not hub.repos


def test_checkpoints_are_not_for_publishing(tmp_path):
    with pytest.raises(ValueError, match="hub_strategy is 'every_save', but only the result is pushed"):
        arguments(tmp_path, **PUSHED, hub_strategy="every_save")
