"""The embedder reads out the right state, and does what users of AutoModel expect of a model."""

from __future__ import annotations

import json
import shutil

import numpy as np
import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

from hf_mmembed.model import MMEmbedConfig, MMEmbedModel
from hf_mmembed.model.modeling_mmembed import pool
from tests.tiny_families import FAMILIES


def picture(height=20, width=32, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def batches(embedder):
    """`batches(family)`: the directory, a batch of an image with text and a text, and its embeddings."""
    known = {}

    def batch(family):
        if family not in known:
            path = embedder(family)
            processor = AutoProcessor.from_pretrained(path)
            inputs = processor(text=["a dog", "b"], images=[picture(), None], task="query", return_tensors="pt")
            known[family] = path, inputs, embed(AutoModel.from_pretrained(path), inputs)
        return known[family]

    return batch


def embed(model, inputs):
    with torch.no_grad():
        return model(**inputs).embeddings


@given(st.integers(1, 5), st.integers(1, 7), st.integers(0, 2**32 - 1), st.booleans())
def test_pooling_is_that_of_a_loop(batch, length, seed, left):
    rng = np.random.default_rng(seed)
    states = torch.from_numpy(rng.normal(size=(batch, length, 3)))
    lengths = rng.integers(1, length + 1, batch)
    mask = torch.zeros(batch, length, dtype=torch.long)
    for row, real in enumerate(lengths):
        mask[row, length - real :] = 1 if left else 0
        mask[row, :real] = mask[row, :real] if left else 1
    for row in range(batch):
        real = states[row][mask[row].bool()]
        assert torch.equal(pool(states, mask, "last")[row], real[-1])
        assert torch.allclose(pool(states, mask, "mean")[row], real.mean(dim=0), atol=1e-12)
    assert torch.equal(pool(states, None, "last"), states[:, -1])
    assert torch.allclose(pool(states, None, "mean"), states.mean(dim=1))


@pytest.mark.parametrize("family", [*FAMILIES, "qwen3_5", "qwen3_5_moe"])
def test_the_readouts_are_states_of_the_generative_model(generative, embedder, family):
    """Against transformers' own model: the final state, and the one that enters the last block's MLP branch."""
    processor = AutoProcessor.from_pretrained(embedder(family))
    inputs = processor(text=["a dog"], images=[picture()], task="query", return_tensors="pt")
    parent = AutoModelForImageTextToText.from_pretrained(generative(family)).eval()
    decoder = parent.model.get_decoder()
    block, seen = decoder.layers[-1], {}
    norm = getattr(block, "pre_feedforward_layernorm", block.post_attention_layernorm)
    norm.register_forward_pre_hook(lambda module, arguments: seen.update(state=arguments[0]))
    with torch.no_grad():
        final = parent.model(**inputs).last_hidden_state
        expected = {"final": final, "pre_mlp": decoder.norm(seen["state"])}
    for readout, states in expected.items():
        output = embed_all(AutoModel.from_pretrained(embedder(family, readout=readout)), inputs)
        assert torch.allclose(output.last_hidden_state, states, atol=1e-5 * states.abs().max().item())
        unit = torch.nn.functional.normalize(states[:, -1], dim=-1)
        assert (output.embeddings - unit).abs().max() <= 1e-6
        assert output.pooler_output is output.embeddings
    assert (expected["final"] - expected["pre_mlp"]).abs().max() > 1e-3


def test_where_more_than_the_mlp_follows_attention_there_is_only_the_final_state(generative, embedder):
    with pytest.raises(ValueError, match="Gemma4TextDecoderLayer has per_layer_input_gate too; use readout 'final'"):
        embedder("gemma4", readout="pre_mlp")
    processor = AutoProcessor.from_pretrained(embedder("gemma4"))
    inputs = processor(text=["a dog"], images=[picture()], task="query", return_tensors="pt")
    parent = AutoModelForImageTextToText.from_pretrained(generative("gemma4")).eval()
    with torch.no_grad():
        states = parent.model(**inputs).last_hidden_state
    unit = torch.nn.functional.normalize(states[:, -1], dim=-1)
    assert (embed(AutoModel.from_pretrained(embedder("gemma4")), inputs) - unit).abs().max() <= 1e-6


def embed_all(model, inputs):
    with torch.no_grad():
        return model(**inputs)


def test_a_shorter_embedding_is_a_renormalised_head(embedder, batches):
    _, inputs, full = batches("qwen2_vl")
    short = AutoModel.from_pretrained(embedder("qwen2_vl", embedding_dim=8))
    assert short.config.projection_dim == 8
    expected = torch.nn.functional.normalize(full[:, :8], dim=-1)
    assert torch.allclose(embed(short, inputs), expected, atol=1e-6)


def test_mean_pooling_is_stored(embedder, batches):
    _, inputs, full = batches("qwen2_vl")
    mean = AutoModel.from_pretrained(embedder("qwen2_vl", pooling="mean"))
    output = embed_all(mean, inputs)
    expected = pool(output.last_hidden_state, inputs["attention_mask"], "mean")
    assert torch.allclose(output.embeddings, torch.nn.functional.normalize(expected, dim=-1), atol=1e-6)
    assert (output.embeddings - full).abs().max() > 1e-3


@pytest.mark.parametrize("prompt", ["saha", "saha-legacy"])
def test_image_tokens_have_rows_and_columns(embedder, prompt):
    """M-RoPE: the tokens of a picture of 4 x 8 patches of 4 pixels, merged two by two, lie on a grid."""
    path = embedder("qwen2_vl", prompt=prompt)
    model = AutoModel.from_pretrained(path)
    inputs = AutoProcessor.from_pretrained(path)(images=[picture(16, 32)], return_tensors="pt")
    positions, _ = model.backbone.get_rope_index(
        inputs["input_ids"], inputs["mm_token_type_ids"], inputs["image_grid_thw"]
    )
    _, rows, columns = positions[:, 0, inputs["mm_token_type_ids"][0] == 1]
    assert (rows - rows[0]).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert (columns - columns[0]).tolist() == [0, 1, 2, 3] * 2


@pytest.mark.parametrize("prompt", ["saha-legacy", "vlm2vec", "unime"])
def test_several_images_in_one_input_without_the_template_s_image_style(embedder, prompt):
    path = embedder("qwen2_vl", prompt=prompt)
    model, processor = AutoModel.from_pretrained(path), AutoProcessor.from_pretrained(path)
    first, second = picture(16, 32), picture(20, 20, seed=1)
    batch = processor(text=["a", "b", None], images=[[first, second], None, [second, first]], return_tensors="pt")
    alone = processor(text=["a"], images=[[first, second]], return_tensors="pt")
    rows = embed(model, batch)
    assert torch.allclose(rows[0], embed(model, alone)[0], atol=5e-6)
    swapped = embed(model, processor(text=["a"], images=[[second, first]], return_tensors="pt"))
    assert (rows[0] - swapped[0]).abs().max() > 1e-4


def test_there_is_no_head_and_no_cache(embedder, batches):
    path, inputs, _ = batches("qwen2_vl")
    model = AutoModel.from_pretrained(path)
    assert not any("lm_head" in name for name in model.state_dict())
    assert set(embed_all(model, inputs).keys()) == {"embeddings", "pooler_output", "last_hidden_state"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtype(batches, dtype):
    path, inputs, expected = batches("qwen2_vl")
    model = AutoModel.from_pretrained(path, dtype=dtype)
    output = embed_all(model, inputs)
    assert model.dtype == output.last_hidden_state.dtype == dtype
    assert output.embeddings.dtype == torch.float32
    assert torch.allclose(output.embeddings.norm(dim=1), torch.ones(2), atol=1e-6)
    assert ((output.embeddings * expected).sum(dim=1) > 0.999).all()


def test_device_map(batches):
    path, inputs, expected = batches("qwen2_vl")
    for placement in ("cpu", "auto", {"": "cpu"}):
        assert torch.equal(embed(AutoModel.from_pretrained(path, device_map=placement), inputs), expected)
    # Accelerate splits by blocks; these must not be cut in two.
    assert {"Qwen2VLVisionBlock", "Qwen2VLDecoderLayer"} <= set(AutoModel.from_pretrained(path)._no_split_modules)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_implementation_as_a_whole_and_by_part(batches, family):
    path, inputs, expected = batches(family)
    parts = {"text_config": "eager", "vision_config": "sdpa"}

    def chosen(model):
        config = model.config.backbone_config
        return config.text_config._attn_implementation, config.vision_config._attn_implementation

    for choice, of_parts in (("eager", ("eager", "eager")), (parts, ("eager", "sdpa"))):
        model = AutoModel.from_pretrained(path, attn_implementation=choice)
        assert chosen(model) == of_parts
        assert torch.allclose(embed(model, inputs), expected, atol=2e-6)
    model = AutoModel.from_pretrained(path, attn_implementation={"backbone_config": parts})
    assert chosen(model) == ("eager", "sdpa")
    model.set_attn_implementation({"text_config": "sdpa", "vision_config": "eager"})
    assert chosen(model) == ("sdpa", "eager")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("pooling", "max", "pooling is 'max'; use one of 'last', 'mean'"),
        ("readout", "x", "readout is 'x'; use one of 'final', 'pre_mlp'"),
        ("embedding_dim", 0, "embedding_dim is 0; use 1 to 32"),
        ("embedding_dim", 33, "embedding_dim is 33; use 1 to 32"),
        ("embedding_dim", "8", "embedding_dim is '8'; use 1 to 32"),
    ],
)
def test_impossible_choices_at_loading_are_refused(batches, field, value, message):
    with pytest.raises(ValueError, match=message):
        AutoModel.from_pretrained(batches("qwen2_vl")[0], **{field: value})


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_changes_no_gradient(batches, family):
    path, inputs, _ = batches(family)
    model = AutoModel.from_pretrained(path).train()

    def gradient():
        model.zero_grad()
        first, second = model(**inputs).embeddings
        (first @ second).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    plain = gradient()
    assert plain.norm() > 0
    model.activation_checkpointing_enable()
    assert sum(getattr(module, "gradient_checkpointing", False) for module in model.modules()) >= 4
    assert torch.allclose(gradient(), plain, rtol=1e-4, atol=1e-6 * plain.abs().max().item())


@pytest.mark.parametrize("family", FAMILIES)
def test_sharded_saving_and_reloading(batches, family, tmp_path):
    path, inputs, expected = batches(family)
    AutoModel.from_pretrained(path).save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(embed(AutoModel.from_pretrained(tmp_path), inputs), expected)


def test_resizing_the_token_embedding(batches, tmp_path):
    path, inputs, expected = batches("qwen2_vl")
    model = AutoModel.from_pretrained(path)
    size = model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(size + 8)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert again.config.get_text_config().vocab_size == again.get_input_embeddings().num_embeddings == size + 8
    assert torch.equal(embed(again, inputs), expected)
    embedding = nn.Embedding(size, 32)
    again.set_input_embeddings(embedding)
    assert again.get_input_embeddings() is embedding


@pytest.mark.parametrize("kind", [{}, {"use_dora": True}, {"modules_to_save": ["down_proj"]}], ids=str)
def test_peft_adapters(batches, tmp_path, kind):
    path, inputs, base = batches("qwen2_vl")
    targets = r".*language_model.*\.(q_proj|v_proj)"
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False, **kind)
    adapted = peft.get_peft_model(AutoModel.from_pretrained(path), config)
    for name, parameter in adapted.named_parameters():
        if "magnitude" in name or "modules_to_save" in name:
            parameter.data *= 1 + torch.rand_like(parameter)
    expected = embed(adapted, inputs)
    assert (expected - base).abs().max() > 1e-2
    adapted.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(path)
    loaded.load_adapter(tmp_path)
    assert torch.allclose(embed(loaded, inputs), expected, atol=1e-6)
    loaded.save_pretrained(tmp_path / "again")
    other = AutoModel.from_pretrained(path)
    other.load_adapter(tmp_path / "again", adapter_name="a")
    of_peft = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(path), tmp_path / "again").eval()
    for model in (other, of_peft, *(AutoModel.from_pretrained(folder) for folder in (tmp_path, tmp_path / "again"))):
        assert torch.allclose(embed(model, inputs), expected, atol=1e-6)
    assert torch.allclose(embed(adapted.merge_and_unload(), inputs), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("base", "adapter"), [("bfloat16", "float32"), ("float16", "float32"), ("float64", "float64")]
)
def test_an_adapter_is_read_as_it_was_written_over_a_base_of_less_precision(batches, tmp_path, base, adapter):
    path, inputs, _ = batches("qwen2_vl")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], use_dora=True, init_lora_weights=False)
    model = AutoModel.from_pretrained(path, dtype=adapter)
    peft.get_peft_model(model, config).save_pretrained(tmp_path)
    written = load_file(tmp_path / "adapter_model.safetensors")
    later = AutoModel.from_pretrained(path, dtype=base)
    later.load_adapter(tmp_path)
    for opened in (later, AutoModel.from_pretrained(tmp_path, dtype=base)):
        assert {p.dtype for name, p in opened.named_parameters() if "lora_" not in name} == {getattr(torch, base)}
        read = {name.removesuffix(".weight"): weight for name, weight in opened.get_adapter_state_dict().items()}
        assert len(read) == len(written)
        for name, weight in written.items():
            found = read[name.removeprefix("base_model.model.").removesuffix(".weight")]
            assert found.dtype == weight.dtype and torch.equal(found, weight), name
        assert embed(opened, inputs).isfinite().all()


def test_an_incomplete_adapter_is_an_error_that_names_it(batches, tmp_path):
    path, _, _ = batches("qwen2_vl")
    adapted = peft.get_peft_model(AutoModel.from_pretrained(path), peft.LoraConfig(target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    name = sorted(weights)[0]
    for left in (weights.keys() - {name}, weights.keys()):
        tensors = {key: weights[key] for key in left} | ({name: torch.zeros(3, 3)} if name in left else {})
        save_file(tensors, tmp_path / "adapter_model.safetensors", {"format": "pt"})
        message = rf"the adapter {tmp_path}: 1 weights are missing .* than adapter_config\.json .*q_proj\.lora_A"
        with pytest.raises(ValueError, match=message):
            AutoModel.from_pretrained(path).load_adapter(tmp_path)
        with pytest.raises(ValueError, match=message):
            AutoModel.from_pretrained(tmp_path)


def test_an_adapter_whose_base_lacks_weights_is_an_error_that_names_the_base(batches, tmp_path):
    path, _, _ = batches("qwen2_vl")
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(path, base)
    config = peft.LoraConfig(target_modules=["q_proj"])
    peft.get_peft_model(AutoModel.from_pretrained(base), config).save_pretrained(adapter)
    weights = load_file(base / "model.safetensors")
    weights.pop("backbone.language_model.norm.weight")
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    for open_adapter in (AutoModel.from_pretrained, MMEmbedModel.from_pretrained):
        with pytest.raises(ValueError, match=rf"{base}: 1 weights are missing .* than config\.json .*norm\.weight"):
            open_adapter(adapter)


@pytest.mark.parametrize(
    ("family", "images"), [("llava", None), ("qwen2_vl", [Image.new("RGB", (40, 24), "red"), None])]
)
def test_compile(batches, family, images):
    path, _, _ = batches(family)
    inputs = AutoProcessor.from_pretrained(path)(text=["a dog", "b"], images=images, task="query", return_tensors="pt")
    model = AutoModel.from_pretrained(path)
    expected = embed(model, inputs)
    assert torch.allclose(embed(torch.compile(model, backend="eager"), inputs), expected, atol=1e-6)


def test_sentence_transformers_files_are_written_once(batches, tmp_path):
    path, _, _ = batches("qwen2_vl")
    model = AutoModel.from_pretrained(path)
    model.save_pretrained(tmp_path)
    files = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")
    assert all(json.loads((tmp_path / name).read_text()) for name in files)
    (tmp_path / files[2]).write_text('{"prompts": {"query": "mine"}}')
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / files[2]).read_text())["prompts"] == {"query": "mine"}
    assert not list(tmp_path.glob("*.tmp"))


def test_from_backbone_shares_the_weights(generative):
    backbone = AutoModel.from_pretrained(generative("qwen2_vl"))
    model = MMEmbedModel.from_backbone(backbone, readout="pre_mlp", embedding_dim=4)
    assert model.backbone is backbone and not model.training
    assert (model.config.readout, model.config.embedding_dim) == ("pre_mlp", 4)
    assert not any(parameter.is_meta for parameter in model.parameters())


def test_a_backbone_is_read_out_as_the_last_model_made_of_it_says(generative):
    inputs = {"input_ids": torch.arange(3, 13)[None]}
    of_their_own = {
        readout: embed(MMEmbedModel.from_backbone(AutoModel.from_pretrained(generative("qwen2_vl")), readout=readout), inputs)
        for readout in ("final", "pre_mlp")
    }  # fmt: skip
    assert not torch.allclose(of_their_own["final"], of_their_own["pre_mlp"], atol=1e-3)
    backbone = AutoModel.from_pretrained(generative("qwen2_vl"))
    for readout in ("final", "pre_mlp", "final"):
        found = embed(MMEmbedModel.from_backbone(backbone, readout=readout), inputs)
        assert torch.allclose(found, of_their_own[readout], atol=1e-6), readout


def test_a_backbone_whose_blocks_have_no_mlp_is_refused(generative):
    backbone = AutoModel.from_pretrained(generative("qwen2_vl"))
    del backbone.language_model.layers[-1].mlp
    with pytest.raises(ValueError, match="needs a last block with an `mlp`, but Qwen2VLDecoderLayer has none"):
        MMEmbedModel.from_backbone(backbone, readout="pre_mlp")


def test_an_mlp_that_is_told_more_than_the_states_cannot_be_left_out(generative):
    class Experts(nn.Module):  # as ERNIE's
        def forward(self, hidden_states, types):
            return hidden_states, types

    backbone = AutoModel.from_pretrained(generative("qwen2_vl"))
    backbone.language_model.layers[-1].mlp = Experts()
    with pytest.raises(ValueError, match="but Experts takes hidden_states, types; use readout 'final'"):
        MMEmbedModel.from_backbone(backbone, readout="pre_mlp")


def test_config_may_be_built_by_hand():
    config = MMEmbedConfig(
        {
            "model_type": "qwen2_vl",
            "text_config": {**FAMILIES["qwen2_vl"].text, "vocab_size": 64, "pad_token_id": 0},
            "vision_config": FAMILIES["qwen2_vl"].vision,
        }
    )
    model = MMEmbedModel(config).eval()
    assert embed(model, {"input_ids": torch.arange(6)[None]}).shape == (1, 32)
