"""UniME's recipes: the published values, and everything up to the first step of both stages."""

from __future__ import annotations

import pytest
from datasets import Dataset

from hf_mmembed.data.pairs import read_pairs
from hf_mmembed.distillation import SimilarityDistillationLoss, load_distillation_recipe, prepare_distillation
from hf_mmembed.distillation.sentences import as_sentence_pairs
from hf_mmembed.model.presets import PRESETS
from hf_mmembed.sentence_transformer import MMEmbedder
from hf_mmembed.training import InBatchHardNegativeLoss, SoftLabelLoss
from hf_mmembed.training.recipes import load_recipe, prepare, train
from tests import tiny_families
from tests.distillation.conftest import SENTENCES, TEACHER
from tests.training.conftest import make_pairs

FAMILY = {
    "unime-tiny": "qwen2_vl",
    "unime-llava-1.6-7b": "llava_next",
    "unime-phi-3.5-v": "llava",  # whose Phi-3-mini was turned into a Llama
    "unime-v2-qwen2-vl-2b": "qwen2_vl",
}
STAGE_1 = {"global_batch_size": 768, "num_train_epochs": 2, "learning_rate": 5e-4, "lora_rank": 32}
STAGE_2 = {
    "loss": "in-batch-hard-negatives", "hard_negatives": 8, "false_negative_margin": 0.1, "temperature": 0.02,
    "global_batch_size": 1024, "max_steps": 1000, "lora_rank": 16, "bf16": True,
}  # fmt: skip
V2 = {
    "loss": "soft-labels", "temperature": 0.02, "global_batch_size": 1024, "max_steps": 2000, "learning_rate": 1e-4,
    "warmup_steps": 200, "lora_rank": 16, "lora_alpha": 64, "lora_dropout": 0.1, "use_dora": True, "bf16": True,
}  # fmt: skip
HERE = {"training.use_cpu": True, "training.dataloader_num_workers": 0, "dtype": "auto"}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A tiny checkpoint of the recipe's family."""
    made = {
        family: tiny_families.build(family, tmp_path_factory.mktemp("backbone") / family)
        for family in set(FAMILY.values())
    }
    return lambda name: str(made[FAMILY[name]])


@pytest.mark.parametrize(("name", "learning_rate"), [("unime-llava-1.6-7b", 2e-5), ("unime-phi-3.5-v", 1e-4)])
def test_published_values_of_unime(name, learning_rate):
    first, second = load_distillation_recipe(name), load_recipe(name)
    assert first.training | STAGE_1 == first.training
    assert (first.teacher, first.prompt) == ("intfloat/e5-mistral-7b-instruct", "unime")
    assert second.training | STAGE_2 | {"learning_rate": learning_rate} == second.training
    assert (second.prompt, second.mining) == ("vlm2vec", None)
    assert first.model == second.model and first.output.startswith(second.output)


def test_published_values_of_unime_v2():
    recipe = load_recipe("unime-v2-qwen2-vl-2b")
    assert recipe.training | V2 == recipe.training
    assert recipe.image_size["longest_edge"] == 336 * 336


@pytest.mark.parametrize("name", FAMILY)
def test_stage_2_is_built_up_to_the_first_step(name, backbone, tmp_path):
    recipe = load_recipe(name, {"model": backbone(name), "output": str(tmp_path), **HERE})
    size = recipe.training["global_batch_size"]
    pairs = make_pairs(size, pictures=False)
    judged = name == "unime-v2-qwen2-vl-2b"
    if judged:
        rows = [{**row, "neg_text": ["no"], "pos_score": 0.9, "neg_score": [0.1]} for row in pairs]
        pairs = read_pairs(Dataset.from_list(rows))
    trainer = prepare(recipe, pairs=pairs)
    assert type(trainer.loss) is (SoftLabelLoss if judged else InBatchHardNegativeLoss)
    assert trainer.loss.temperature == recipe.training["temperature"]
    batch = next(iter(trainer.get_train_dataloader()))
    assert len(batch["facts"].rows) == size and (len(batch["facts"].negative_rows) == size) == judged
    assert trainer.model.processor.prompt == PRESETS[recipe.prompt or "saha"]
    assert_only_an_adapter_trains(trainer)


@pytest.mark.parametrize("name", [name for name in FAMILY if "v2" not in name])
def test_stage_1_is_built_up_to_the_first_step(name, backbone, tmp_path):
    changes = {"model": backbone(name), "teacher": str(TEACHER), "output": str(tmp_path), **HERE}
    recipe = load_distillation_recipe(name, changes)
    size = recipe.training["global_batch_size"]
    trainer = prepare_distillation(recipe, pairs=as_sentence_pairs((SENTENCES * (size // 5 + 1))[: 2 * size]))
    assert type(trainer.loss) is SimilarityDistillationLoss
    assert len(next(iter(trainer.get_train_dataloader()))["facts"].rows) == size
    assert_only_an_adapter_trains(trainer)


def assert_only_an_adapter_trains(trainer):
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert trained and all("language_model" in name and "lora_" in name for name in trained)
    assert all(any(f".{layer}." in name for name in trained) for layer in trainer.args.lora_target_modules)


def test_prompt_and_image_size_of_a_recipe_stay_with_the_merged_result(embedder, tmp_path):
    """The second stage starts from an embedder that has the prompt of the first."""
    recipe = load_recipe(
        "unime-tiny",
        {"model": str(embedder("qwen2_vl", prompt="unime")), "output": str(tmp_path), "prompt": "vlm2vec", **HERE,
         "image_size": {"shortest_edge": 256, "longest_edge": 1024}, "training.max_steps": 1,
         "training.global_batch_size": 10, "training.save_as": "merged", "training.report_to": "none"},
    )  # fmt: skip
    model = MMEmbedder(str(train(recipe, pairs=make_pairs(12))), device="cpu")
    assert model.processor.prompt == PRESETS["vlm2vec"]
    assert model.processor.image_processor.size["longest_edge"] == 1024
