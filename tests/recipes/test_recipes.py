from __future__ import annotations

import os
import re
from dataclasses import MISSING, fields
from functools import wraps
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft.tuners.lora import LoraLayer
from sentence_transformers import SentenceTransformer

from hf_mmembed import PRESETS, MMEmbedder
from hf_mmembed.data.pairs import read_pairs
from hf_mmembed.mining import Clusters, content_ids, dataset, digests, mine_pairs
from hf_mmembed.training import recipes
from hf_mmembed.training.arguments import SaHaTrainingArguments
from hf_mmembed.training.checkpoints import publish
from hf_mmembed.training.models import open_for_training
from hf_mmembed.training.recipes import load_recipe, prepare, recipe_names, train
from hf_mmembed.training.run_file import digests_of
from tests.forks import in_processes
from tests.training.conftest import make_pairs

PUBLISHED = {
    "global_batch_size": 8 * 16 * 16, "max_steps": 1500, "learning_rate": 5e-5, "warmup_steps": 100, "temperature": 0.02,
    "lora_rank": 8, "lora_alpha": 64, "lora_dropout": 0.1, "use_dora": True, "bf16": True,
}  # fmt: skip


def test_the_recipes_that_ship():
    assert recipe_names() == [
        *("saha-qwen2-vl-2b", "saha-qwen2-vl-7b", "saha-tiny"),
        *("unime-llava-1.6-7b", "unime-phi-3.5-v", "unime-tiny", "unime-v2-qwen2-vl-2b"),
    ]


@pytest.mark.parametrize("name", ["saha-qwen2-vl-2b", "saha-qwen2-vl-7b"])
def test_published_values(name):
    recipe = load_recipe(name)
    assert recipe.training | PUBLISHED == recipe.training
    assert (recipe.mining["k"], recipe.mining["mult"], recipe.prompt) == (15, 3, "saha")
    assert recipe.image_size == {"shortest_edge": 448 * 448, "longest_edge": 448 * 448}


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith("saha")])
def test_everything_is_built_up_to_the_first_step(name, generative, tmp_path):
    """With a tiny random backbone of the same family; the number of pairs per step is that of the recipe."""
    recipe = load_recipe(
        name,
        {
            "model": str(generative("qwen2_vl")),
            "output": str(tmp_path / "run"),
            "image_size": {"shortest_edge": 256, "longest_edge": 1024},
            "training.use_cpu": True,
            "training.dataloader_num_workers": 0,
            "dtype": "auto",
            "mining.model": None,
        },
    )
    size, k = recipe.training["global_batch_size"], recipe.mining["k"]
    pairs = make_pairs(size + 16, pictures=False)
    clusters = Clusters(np.arange(len(pairs) // (k + 1) * (k + 1)).reshape(-1, k + 1), "random")
    trainer = prepare(recipe, pairs=pairs, clusters=clusters)
    batch = next(iter(trainer.get_train_dataloader()))
    rows = batch["facts"].rows.numpy()
    assert len(rows) == size
    assert {frozenset(c) for c in clusters.rows.tolist() if set(c) & set(rows)} == {
        frozenset(c) for c in clusters.rows.tolist() if set(c) <= set(rows)
    }
    assert trainer.summary()["pairs per step"] == size
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert trained and all("language_model" in name and "lora_" in name for name in trained)
    assert any("magnitude" in name for name in trained) == recipe.training["use_dora"]
    assert trainer.args.bf16 == recipe.training.get("bf16", False)


def test_mine_and_train_and_open(generative, tmp_path):
    """A recipe from beginning to end, with mining, re-mining and a merged result that reads inputs as trained."""
    recipe = load_recipe(
        "saha-tiny",
        {
            "model": str(generative("qwen2_vl")),
            "output": str(tmp_path / "run"),
            "mining.k": 1,
            "mining.rules": {"rank": 0.1, "margin": None},
            "prompt": "e5v",
            "image_size": {"shortest_edge": 256, "longest_edge": 1024},
            "training.use_cpu": True,
            "training.dataloader_num_workers": 0,
            "training.global_batch_size": 4,
            "training.max_steps": -1,
            "training.num_train_epochs": 2,
            "training.remine_every_epoch": True,
            "training.save_as": "merged",
        },
    )
    result = train(recipe, pairs=make_pairs(12))
    model = SentenceTransformer(str(result), trust_remote_code=True, device="cpu")
    assert model.encode_query([{"text": "red thing"}]).shape == (1, 32)
    processor = MMEmbedder(result, device="cpu").processor
    assert processor.prompt == PRESETS["e5v"] and processor.image_processor.size.longest_edge == 1024
    for epoch in (0, 1):
        clusters = Clusters.load(tmp_path / "run" / "clusters" / f"epoch-{epoch}")
        assert clusters.strategy == "saha"
        assert {name: clusters.settings["rules"][name] for name in ("rank", "query_similarity", "margin")} == {
            "rank": 0.1, "query_similarity": 0.95, "margin": None}  # fmt: skip


def test_the_device_of_the_model_searches(embedder, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        recipes, "mine_pairs", lambda *_, **options: asked.append(options["device"]) or SimpleNamespace(clusters=None)
    )
    model = MMEmbedder(embedder("qwen2_vl"), device="cpu")
    for options in ({"k": 1}, {"k": 1, "device": "meta"}):
        recipes.mine_clusters(model, tmp_path, pairs=make_pairs(), options=options)
    assert asked == [model.device, "meta"]


@pytest.mark.parametrize(("instruction", "ids"), [("", None), ("Find it.", None), (None, "known")])
def test_known_ids_are_those_of_the_usual_instructions(embedder, tmp_path, monkeypatch, instruction, ids):
    monkeypatch.setattr(recipes, "mine_pairs", lambda *_, ids=None, **__: SimpleNamespace(clusters=ids))
    model = MMEmbedder(embedder("qwen2_vl"), device="cpu")
    options = {"canonical_instruction": instruction}
    assert recipes.mine_clusters(model, tmp_path, pairs=make_pairs(), options=options, ids="known") == ids


def test_pictures_are_read_once_to_tell_who_is_who(embedder, tmp_path, monkeypatch):
    read = []
    for module in (recipes, dataset):
        monkeypatch.setattr(module, "content_ids", lambda pairs, **_: read.append(pairs) or content_ids(pairs))
    changes = {
        "model": str(embedder("qwen2_vl")), "output": str(tmp_path), "mining.k": 1, "training.global_batch_size": 4,
        "training.use_cpu": True, "dtype": "auto",
    }  # fmt: skip
    prepare(load_recipe("saha-qwen2-vl-2b", changes), pairs=make_pairs())
    assert len(read) == 1


def test_a_run_that_starts_again_reads_no_picture_again(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "open_for_training", lambda *_, **__: None)
    monkeypatch.setattr(recipes, "SaHaTrainer", lambda *_, ids, **__: ids)
    values = {"output": str(tmp_path / "run"), "mining": None, "training": {"global_batch_size": 4, "use_cpu": True}}
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"some")
    os.utime(picture, (1_600_000_000, 1_600_000_000))
    table = Dataset.from_dict({"query_image": [{"bytes": None, "path": str(picture)}], "pos_text": ["p"]})

    def fingerprint():
        return prepare(recipes.Recipe("", {}, **values), pairs=read_pairs(table), resume=True).fingerprint

    first = fingerprint()
    monkeypatch.delattr(digests, "read_digest")
    assert fingerprint() == first


def test_a_run_goes_on_with_the_clusters_that_it_began_with(embedder, tmp_path, monkeypatch):
    """Mined again, a row may be elsewhere: the run could never be resumed."""
    values = {
        "model": str(embedder("qwen2_vl")), "output": str(tmp_path), "mining.k": 1, "training.global_batch_size": 4,
        "training.use_cpu": True, "dtype": "auto",
    }  # fmt: skip
    recipe, pairs = load_recipe("saha-qwen2-vl-2b", values), make_pairs()
    begun = prepare(recipe, pairs=pairs).clusters
    other = Clusters(begun[::-1].copy(), "saha")
    monkeypatch.setattr(recipes, "mine_pairs", wraps(mine_pairs)(lambda *_, **__: SimpleNamespace(clusters=other)))

    def clusters(resume=True, **changes):
        asked = load_recipe("saha-qwen2-vl-2b", {**values, **changes})
        return prepare(asked, pairs=pairs, resume=resume).clusters

    assert (clusters() == other.rows).all(), "there is no checkpoint yet"
    staged = tmp_path / "staged"
    staged.mkdir()
    publish(staged, tmp_path / "checkpoint-1")
    assert (clusters() == begun).all()
    with pytest.raises(ValueError, match="resume it, or choose another"):
        clusters(resume=False)
    for change in ({"mining.seed": 1}, {"mining.rules": {"rank": 0.5}}, {"mining.strategy": "top-k"}):
        assert (clusters(**change) == other.rows).all(), change
    for name, expected in (("weights", begun), ("settings", other.rows)):  # those of a fresh adapter are chance
        digest = {name: "another"}
        monkeypatch.setattr(recipes, "digests_of", lambda model, digest=digest: {**digests_of(model), **digest})
        assert (clusters() == expected).all()


def test_a_run_whose_recipe_gives_an_instruction_goes_on_with_its_clusters(embedder, tmp_path, monkeypatch):
    mined = []
    monkeypatch.setattr(
        recipes, "mine_pairs", wraps(mine_pairs)(lambda *a, **options: mined.append(1) or mine_pairs(*a, **options))
    )
    values = {
        "model": str(embedder("qwen2_vl")), "output": str(tmp_path / "run"), "mining.k": 1,
        "training.global_batch_size": 4, "training.use_cpu": True, "dtype": "auto",
    }  # fmt: skip

    def times(instruction):
        asked = load_recipe("saha-qwen2-vl-2b", {**values, "mining.canonical_instruction": instruction})
        prepare(asked, pairs=make_pairs(), resume=True)
        return len(mined)

    assert times("Find it.") == 1
    (tmp_path / "staged").mkdir()
    publish(tmp_path / "staged", tmp_path / "run" / "checkpoint-1")
    assert times("Find it.") == 1
    assert times({"odd": "Look for it."}) == 2 and times({"odd": "Look for it."}) == 2
    assert times(None) == 3


def _rank_read(rank, directory):
    read = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "open_for_training", lambda *_, **__: None)
        patch.setattr(recipes, "SaHaTrainer", lambda *_, ids, **__: ids)
        patch.setattr(recipes, "content_ids", lambda pairs, **_: read.append(pairs) or content_ids(pairs))
        asked = recipes.Recipe("", {}, str(directory), mining=None, training={"global_batch_size": 4, "use_cpu": True})
        return prepare(asked, pairs=make_pairs()).fingerprint, len(read)


def test_one_of_two_processes_reads_the_pictures(tmp_path):
    fingerprint = content_ids(make_pairs()).fingerprint
    results = in_processes(_rank_read, tmp_path, store=tmp_path / "store")
    assert results == [(fingerprint, 1), (fingerprint, 0)]


def test_kept_embeddings_belong_to_the_readout_that_made_them(embedder, tmp_path, monkeypatch):
    identities = []
    monkeypatch.setattr(
        recipes, "mine_pairs", lambda *_, model, **__: identities.append(model) or SimpleNamespace(clusters=None)
    )
    for choices in ({}, {}, {"readout": "pre_mlp"}):
        model = MMEmbedder(embedder("qwen2_vl", **choices), device="cpu")
        recipes.mine_clusters(model, tmp_path, pairs=make_pairs(), options={"k": 1})
    first, same, other = identities
    assert first == same != other and first["weights"] == other["weights"]


def test_adapters_that_have_learned_nothing_are_off_while_mining(embedder, tmp_path, monkeypatch):
    args = SaHaTrainingArguments(str(tmp_path), global_batch_size=4, lora_rank=2, use_dora=True, use_cpu=True)
    model = open_for_training(embedder("qwen2_vl"), args, device="cpu")
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    mined = []

    def mine(pairs, embedder, directory, *, model, **_):
        mined.append(([layer for layer in layers if not layer.disable_adapters], embedder.encode_query(["red thing"])))
        raise ValueError("nothing can be embedded")

    monkeypatch.setattr(recipes, "mine_pairs", mine)
    for learned in ([], layers[:1]):
        for layer in learned:
            torch.nn.init.ones_(layer.lora_B["default"].weight)
        with pytest.raises(ValueError, match="nothing can be embedded"):
            recipes.mine_clusters(model, tmp_path, pairs=make_pairs(), options={"k": 1})
        on, found = mined.pop()
        assert on == learned
        np.testing.assert_allclose(found, model.encode_query(["red thing"]), atol=1e-6)
        assert not any(layer.disable_adapters for layer in layers)
        assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == trained


def test_another_model_mines_as_it_is(generative, tmp_path, monkeypatch):
    mined = []

    def mine(model, directory, *, pairs, options, ids):
        mined.append(model)
        return Clusters(np.arange(12).reshape(6, 2), "random")

    monkeypatch.setattr("hf_mmembed.training.recipes.mine_clusters", mine)
    changes = {
        "model": str(generative("qwen2_vl")), "output": str(tmp_path / "run"), "mining.model": str(generative("qwen2_vl")),
        "image_size": {"shortest_edge": 256, "longest_edge": 1024}, "training.global_batch_size": 4, "training.use_cpu": True,
    }  # fmt: skip
    trainer = prepare(load_recipe("saha-qwen2-vl-7b", changes), pairs=make_pairs())
    [miner] = mined
    assert miner is not trainer.model
    assert {parameter.dtype for parameter in miner.parameters()} == {torch.bfloat16}, "no weight is to be trained"
    assert miner.processor.image_processor.size.longest_edge == 1024
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [", "not valid YAML"),
        ("- a", "must hold a mapping, not list"),
        ("modle: x", "unknown key modle; did you mean model?"),
        ("training: {learning_rat: 1}", "unknown key training.learning_rat; did you mean training.learning_rate?"),
        ("training: {output_dir: x}", "unknown key training.output_dir"),
        ("model: x", "lacks data, output"),
        ("data: pairs.jsonl", "data is 'pairs.jsonl'; it must be a mapping"),
        ("{model: x, output: y, data: {split: z}}", "lacks data.source"),
        (
            "{model: x, output: y, data: {source: z, colums: {}}}",
            "unknown key data.colums; did you mean data.columns?",
        ),
        ("mining: [saha]", "mining is ['saha']; it must be a mapping or none"),
        ("mining: {kk: 3}", "unknown key mining.kk; did you mean mining.k?"),
        ("mining: {rules: {rang: 0.1}}", "unknown key mining.rules.rang; did you mean mining.rules.rank?"),
        ("mining: {rules: {rank: low}}", "mining.rules.rank is 'low'; it must be float or none"),
        ("mining: {rules: {rank: 2}}", "mining.rules: rank is a share, at least 0 and below 1, got 2"),
        ("mining: {strategy: random, rules: {rank: 0.1}}", "mining.rules: random has no rules to change"),
        ("mining: {k: many}", "mining.k is 'many'; it must be int"),
        ("mining: {strategy: sahara}", "mining.strategy is 'sahara'; it must be 'saha' or 'saha-paper' or 'random'"),
        ("training: {max_steps: 1.5}", "training.max_steps is 1.5; it must be int"),
        ("training: {learning_rate: high}", "training.learning_rate is 'high'; it must be float"),
        ("training: {bf16: 1}", "training.bf16 is 1; it must be bool"),
        ("training: {lora_target_modules: q_proj}", "lora_target_modules is 'q_proj'; it must be a list of str"),
        ("training: {global_batch_size: true}", "global_batch_size is True; it must be int or none"),
        ("image_size: 448", "image_size is 448; it must be a mapping or none"),
    ],
)
def test_a_wrong_recipe_says_what_is_wrong(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_recipe(path)


def test_a_value_that_has_no_parts_is_named():
    with pytest.raises(ValueError, match=re.escape("model.name: model is 'mmembed-tiny', which has no parts")):
        load_recipe("saha-tiny", {"model.name": "x"})


@pytest.mark.parametrize("name", recipe_names())
def test_every_type_of_value_that_the_arguments_have_by_default_is_known(name):
    defaults = {f"training.{item.name}": item.default for item in fields(SaHaTrainingArguments)
                if item.name != "output_dir" and item.default is not MISSING}  # fmt: skip
    assert load_recipe(name, defaults).training["max_steps"] == -1


def test_a_number_needs_no_point(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("model: x\ndata: {source: y}\noutput: '1e-3'\ntraining: {learning_rate: 5e-4}")
    recipe = load_recipe(path)
    assert (recipe.training["learning_rate"], recipe.output) == (0.0005, "1e-3")


def test_an_unknown_recipe_names_those_that_ship(tmp_path):
    with pytest.raises(FileNotFoundError, match="saha-tiny"):
        load_recipe(tmp_path / "none.yaml")
