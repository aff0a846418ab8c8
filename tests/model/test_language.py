"""Language models compute the numbers of transformers' modules, with less memory and for fewer tokens."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig
from PIL import Image
from torch import nn
from transformers import AutoConfig, AutoModel, AutoProcessor, DynamicCache, LlavaConfig, StaticCache

from hf_mmembed.model import MMEmbedConfig, MMEmbedModel
from hf_mmembed.model.language_mmembed import BLOCKS, GatedInPlace, GroupedAttention, OnePassNorm
from hf_mmembed.model.pooled_mmembed import only_pooled
from tests.tiny_families import FAMILIES

LEAN = [family for family in FAMILIES if family != "gemma3"]


@pytest.fixture(scope="module")
def loaded(embedder):
    def load(family: str = "qwen2_vl"):
        return AutoModel.from_pretrained(embedder(family)).eval()

    return load


@pytest.fixture(scope="module")
def mixture(embedder):
    """`mixture(family, side)`: a batch of texts and a picture, padded on that side."""

    def prepare(family: str = "qwen2_vl", side: str = "right"):
        processor = AutoProcessor.from_pretrained(embedder(family))
        processor.tokenizer.padding_side = side
        pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
        text = ["a red circle", None, "a much longer text about a blue star"]
        return processor(text=text, images=[None, Image.fromarray(pixels), None], return_tensors="pt")

    return prepare


def parts(model: nn.Module, way: type) -> list:
    return [module for module in model.modules() if isinstance(module, way)]


def stock(module: nn.Module) -> type[nn.Module]:
    """The library's class of a module."""
    return type(module).__bases__[1]


def as_the_library(model: nn.Module) -> nn.Module:
    for way in (GroupedAttention, OnePassNorm, GatedInPlace):
        for module in parts(model, way):
            module.__class__ = stock(module)
    return model


def vectors(model, batch, **options):
    with torch.no_grad():
        return model(**batch, **options).embeddings


@pytest.mark.parametrize("share_prefix", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", LEAN)
def test_embeddings_are_the_library_s(family, side, share_prefix, loaded, mixture, monkeypatch):
    monkeypatch.setattr("hf_mmembed.model.pooled_mmembed.LEAST_PADDING_SHARE", 0)
    model, batch = loaded(family), mixture(family, side)
    blocks = model.backbone.get_decoder().layers
    assert all(isinstance(block.self_attn, GroupedAttention) for block in blocks)
    assert len(parts(blocks, OnePassNorm)) == len(blocks) * (4 if hasattr(blocks[0].self_attn, "q_norm") else 2)
    assert len(parts(blocks, GatedInPlace)) == (0 if family == "qwen3_vl_moe" else len(blocks))
    options = {"share_prefix": share_prefix}
    whole, pooled = vectors(model, batch, **options), vectors(model, batch, **options, whole_states=False)
    expected = vectors(as_the_library(model), batch, share_prefix=False)
    assert torch.allclose(whole, expected, rtol=0, atol=2e-6)
    assert torch.allclose(pooled, expected, rtol=0, atol=2e-6)
    assert torch.allclose(vectors(model, batch, **options, whole_states=False), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_5_moe"])
def test_feed_forwards_beside_linear_attention_are_lean_too(family, loaded, mixture):
    model, batch = loaded(family), mixture(family)
    blocks = model.backbone.get_decoder().layers
    assert len(parts(blocks, GatedInPlace)) == len(blocks)
    ours = vectors(model, batch, whole_states=False)
    assert torch.allclose(ours, vectors(as_the_library(model), batch, share_prefix=False), rtol=0, atol=2e-6)


@pytest.fixture(scope="module")
def deep():
    """Four blocks, and a padded batch of which no two rows are equally long."""
    text = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "head_dim": 8,
            "num_key_value_heads": 2, "intermediate_size": 48, "vocab_size": 100, "pad_token_id": 0}  # fmt: skip
    torch.manual_seed(0)
    vision = {"model_type": "clip_vision_model", "num_hidden_layers": 1}
    model = MMEmbedModel(MMEmbedConfig(LlavaConfig(vision_config=vision, text_config=text))).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.2)
    mask = (torch.arange(12) < torch.tensor([12, 5, 8])[:, None]).long()
    return model, {"input_ids": torch.randint(1, 90, (3, 12)), "attention_mask": mask}


def test_blocks_but_the_last_read_no_padding(deep):
    model, batch = deep
    expected = vectors(model, batch)
    read, hooks = [], []
    for block in model.backbone.get_decoder().layers:
        for part in (block.input_layernorm, block.self_attn.v_proj, block.self_attn.o_proj, block.mlp.up_proj):
            hooks.append(part.register_forward_hook(lambda _, inputs, __: read.append(tuple(inputs[0].shape[:2]))))
    pooled = vectors(model, batch, whole_states=False)
    for hook in hooks:
        hook.remove()
    assert read == [(1, 25)] * 12 + [(3, 12), (3, 12), (3, 1), (3, 1)]
    assert torch.allclose(pooled, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("reason", ["eager", "training", "gradients", "argument"])
def test_padding_stays_where_attention_is_the_library_s(reason, deep):
    model, batch = copy.deepcopy(deep[0]), dict(deep[1])
    expected = vectors(model, batch)
    read = []
    norm = model.backbone.get_decoder().layers[1].input_layernorm
    norm.register_forward_pre_hook(lambda _, inputs: read.append(tuple(inputs[0].shape[:2])))
    if reason == "eager":
        model.set_attn_implementation("eager")
    elif reason == "training":
        model.train()
    elif reason == "argument":
        batch["output_attentions"] = True
    with torch.set_grad_enabled(reason == "gradients"):
        embeddings = model(**batch, whole_states=False, share_prefix=False).embeddings
    assert read == [(3, 12)]
    assert torch.allclose(embeddings, expected, rtol=0, atol=2e-6)


def masks(batch: int, length: int, keys: int) -> dict[str, torch.Tensor | None]:
    seen = torch.arange(keys) <= torch.arange(keys - length, keys)[:, None]
    seen = (seen & (torch.rand(batch, 1, 1, keys) > 0.3)) | (torch.arange(keys) == 0)
    additive = torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))
    biases = additive + torch.arange(4.0)[:, None, None]  # one for each head
    return {"none": None, "boolean": seen, "of all rows": seen[:1], "additive": additive, "of heads": biases}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mask", ["none", "boolean", "of all rows", "additive", "of heads"])
@pytest.mark.parametrize(("length", "before"), [(6, 0), (6, 4), (1, 4), (1, 0)])
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "llava"])
def test_attention_with_each_mask_and_cache(family, length, before, mask, dtype, loaded):
    model = loaded(family).to(dtype)
    attention = parts(model, GroupedAttention)[0]
    torch.manual_seed(0)
    batch, heads, size = 3, attention.k_proj.out_features // attention.head_dim, attention.head_dim
    angles = torch.randn(batch, length, size // 2).repeat(1, 1, 2)
    given = masks(batch, length, before + length)[mask]
    past = [torch.randn(batch, heads, before, size, dtype=dtype) for _ in range(2)]

    def run(forward):
        cache = DynamicCache()
        cache.update(*past, attention.layer_idx)
        with torch.no_grad():
            output, weights = forward(
                hidden_states=states.clone(),
                position_embeddings=(angles.cos().to(dtype), angles.sin().to(dtype)),
                attention_mask=given.to(dtype) if mask in ("additive", "of heads") else given,
                past_key_values=cache if before else None,
            )
        assert weights is None and (not before or cache.get_seq_length(attention.layer_idx) == before + length)
        return output

    states = torch.randn(batch, length, attention.q_proj.in_features, dtype=dtype)
    ours, theirs = run(attention), run(lambda **kwargs: stock(attention).forward(attention, **kwargs))
    assert ours.dtype == theirs.dtype == dtype and ours.shape == theirs.shape
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-6 if dtype == torch.float32 else 2e-2)


def test_a_cache_longer_than_what_it_holds(loaded):
    model = loaded("llava")
    ids = torch.randint(1, 90, (1, 6))

    def run(cache):
        with torch.no_grad():
            return model.backbone.get_decoder()(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state

    text = model.config.backbone_config.get_text_config()
    assert torch.allclose(run(StaticCache(text, max_cache_len=20)), run(DynamicCache()), rtol=0, atol=1e-6)


@pytest.mark.parametrize("whole", [True, False])
def test_keys_are_not_copied_and_the_last_block_asks_once(whole, loaded, mixture, monkeypatch):
    model, batch = loaded(), mixture()
    shapes = []
    attend = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F,
        "scaled_dot_product_attention",
        lambda q, k, v, **kw: shapes.append((tuple(q.shape), tuple(k.shape))) or attend(q, k, v, **kw),
    )
    texts = {name: batch[name] for name in ("input_ids", "attention_mask")}
    vectors(model, texts, whole_states=whole, share_prefix=False)
    rows, length = batch["input_ids"].shape
    keys = (rows, 2, length, 8)
    assert shapes == [((rows, 4, length, 8), keys), ((rows, 4, length if whole else 1, 8), keys)]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_gradients_and_other_implementations_take_the_library_s_way(implementation, loaded, mixture, monkeypatch):
    model, batch = loaded(), mixture()
    model.set_attn_implementation(implementation)
    attention = parts(model, GroupedAttention)[0]
    kind = stock(attention)
    forward, calls = kind.forward, []
    monkeypatch.setattr(kind, "forward", lambda self, *args, **kw: calls.append(1) or forward(self, *args, **kw))
    expected = vectors(model, batch, share_prefix=False)
    assert len(calls) == (0 if implementation == "sdpa" else 2)
    calls.clear()
    embeddings = model(**batch).embeddings
    embeddings.sum().backward()
    assert len(calls) == 2 and attention.q_proj.weight.grad.abs().max() > 0
    assert torch.allclose(embeddings, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("way", [OnePassNorm, GatedInPlace])
def test_a_compiler_sees_the_library_s_way(way, loaded, monkeypatch):
    module = parts(loaded(), way)[0]
    calls = []
    monkeypatch.setattr(stock(module), "forward", lambda self, states: calls.append(1) or states)
    states = torch.randn(2, 3, 32)
    with torch.no_grad():
        module(states)
        assert not calls
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert module(states) is states and calls


def test_norm_against_float64(loaded):
    norm = parts(loaded(), OnePassNorm)[0]
    nn.init.normal_(norm.weight)
    states = torch.randn(3, 5, norm.weight.shape[0])
    states[0, 0] *= 1e-6  # where the smallest addend counts
    exact = states.double()
    exact = exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon) * norm.weight.double()
    before = states.clone()
    with torch.no_grad():
        assert torch.allclose(norm(states).double(), exact, rtol=1e-6, atol=1e-8)
        coarse = norm(states.bfloat16())  # of norms that are kept in float32
        assert coarse.dtype == torch.float32 and torch.equal(coarse, stock(norm).forward(norm, states.bfloat16()))
        half = norm.to(torch.bfloat16)
        assert torch.equal(half(states.bfloat16()), stock(half).forward(half, states.bfloat16()))
    assert torch.equal(states, before)
    states.requires_grad_()
    norm.to(torch.float32)(states).sum().backward()
    assert norm.weight.grad.abs().max() > 0 and states.grad.abs().max() > 0


def test_feed_forward_keeps_what_others_see(loaded):
    mlp = parts(loaded(), GatedInPlace)[0]
    states = torch.randn(3, 5, mlp.gate_proj.in_features)
    before, seen = states.clone(), []
    expected = stock(mlp).forward(mlp, states)
    with torch.no_grad():
        assert torch.allclose(mlp(states), expected, rtol=0, atol=1e-7)
        mlp.gate_proj.register_forward_hook(lambda _, __, output: seen.append(output))
        assert torch.allclose(mlp(states), expected, rtol=0, atol=1e-7)
        assert torch.equal(seen[0], F.linear(states, mlp.gate_proj.weight))
        mlp.gate_proj._forward_hooks.clear()
        mlp.act_fn.register_forward_hook(lambda _, __, output: seen.append(output))
        assert torch.allclose(mlp(states), expected, rtol=0, atol=1e-7) and len(seen) == 2
    assert torch.equal(states, before)


def test_adapters_count(loaded, mixture):
    model, batch = loaded(), mixture()
    bare = vectors(model, batch, whole_states=False)
    model.add_adapter(LoraConfig(target_modules=["q_proj", "gate_proj"], init_lora_weights=False))
    adapted = vectors(model, batch, whole_states=False)
    assert (adapted - bare).abs().max() > 1e-4
    assert torch.allclose(vectors(as_the_library(model), batch, whole_states=False), adapted, rtol=0, atol=2e-6)


@pytest.mark.parametrize("family", ["qwen2_vl", "llava"])
def test_a_language_model_on_the_disk(family, loaded, mixture, embedder, tmp_path):
    batch = mixture(family)
    model = loaded(family)
    places = {f"backbone.{name}": "cpu" for name, _ in model.backbone.named_children()}
    places["backbone.language_model"] = "disk"
    offloaded = AutoModel.from_pretrained(embedder(family), device_map=places, offload_folder=tmp_path)
    assert next(offloaded.backbone.get_decoder().layers.parameters()).is_meta
    expected = vectors(model, batch, whole_states=False)
    assert torch.allclose(vectors(offloaded, batch, whole_states=False), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mask", ["of all rows", "of heads"])
def test_a_mask_of_our_own_reaches_the_last_block(mask, deep):
    model, batch = deep
    given = masks(3, 12, 12)[mask]
    inputs = {"input_ids": batch["input_ids"], "attention_mask": given}
    with torch.no_grad():
        expected = model.backbone.get_decoder()(**inputs).last_hidden_state[:, 7]
        with only_pooled((torch.arange(12) < 8).long().expand(3, 12)):
            pooled = model.backbone.get_decoder()(**inputs).last_hidden_state[:, 7]
    assert torch.allclose(pooled, expected, rtol=0, atol=1e-5)


def changed(model: nn.Module, what: str) -> None:
    """Do to a model what somebody might who knows the library's classes only."""
    blocks = model.backbone.get_decoder().layers
    if what == "cut":
        model.backbone.get_decoder().layers = blocks[:3]
    elif what == "cut and wrapped again":
        model.backbone.get_decoder().layers = blocks[:3]
        model._read_backbone()
    elif what == "another block":
        blocks[1] = as_the_library(copy.deepcopy(blocks[1]))
        blocks[1]._forward_pre_hooks.clear(), blocks[1]._forward_hooks.clear()
    elif what == "both ways":
        for attention in parts(model, GroupedAttention):
            attention.is_causal = False
    elif what == "compiled":
        blocks[-1].self_attn.q_proj.compile(backend="eager")
    elif what == "activation":
        blocks[1].mlp.act_fn = nn.ReLU()
    elif what == "one in training":
        blocks[1].train()


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize(
    "what", ["cut", "cut and wrapped again", "another block", "both ways", "compiled", "activation", "one in training"]
)
def test_a_model_that_was_changed_afterwards(what, padded, deep):
    model, batch = copy.deepcopy(deep[0]), dict(deep[1])
    if not padded:
        batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    before = vectors(model, batch)
    changed(model, what)
    pooled, whole = (vectors(model, batch, whole_states=whole, share_prefix=False) for whole in (False, True))
    expected = vectors(as_the_library(model), batch, share_prefix=False)
    assert torch.allclose(whole, expected, rtol=0, atol=2e-6)
    assert torch.allclose(pooled, expected, rtol=0, atol=2e-6)
    same = what in ("another block", "compiled", "one in training") or (what == "both ways" and padded)
    assert ((before - expected).abs().max() < 1e-5) == same


@pytest.mark.parametrize("family", ["qwen2_vl", "llava"])
def test_a_backbone_that_is_offloaded_already(family, generative, mixture, tmp_path):
    batch = mixture(family)
    expected = vectors(MMEmbedModel.from_backbone(AutoModel.from_pretrained(generative(family))), batch)
    names = dict(AutoModel.from_pretrained(generative(family)).named_children())
    places = dict.fromkeys(names, "disk") | {"language_model": "cpu"}
    backbone = AutoModel.from_pretrained(generative(family), device_map=places, offload_folder=tmp_path)
    model = MMEmbedModel.from_backbone(backbone)
    assert torch.allclose(vectors(model, batch, whole_states=False), expected, rtol=0, atol=2e-6)


def test_a_batch_of_nothing_but_padding(deep):
    model, batch = deep
    batch = {**batch, "attention_mask": torch.zeros_like(batch["attention_mask"])}
    assert vectors(model, batch, whole_states=False).isfinite().all()


def test_a_copy_leaves_out_padding_too(deep):
    model, batch = deep
    expected = vectors(model, batch, whole_states=False)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301 - as process pools do
        read = []
        twin.backbone.get_decoder().layers[1].mlp.register_forward_pre_hook(
            lambda _, x, to=read: to.append(x[0].shape)
        )
        assert torch.equal(vectors(twin, batch, whole_states=False), expected)
        assert read == [(1, 25, 32)]


def test_a_backbone_wrapped_twice_is_prepared_once(generative):
    backbone = AutoModel.from_pretrained(
        generative("qwen2_vl"), config=AutoConfig.from_pretrained(generative("qwen2_vl"))
    )
    MMEmbedModel.from_backbone(backbone)
    blocks = backbone.get_decoder().layers
    kinds = [type(block.self_attn) for block in blocks]
    hooks = [[len(part._forward_pre_hooks) for part in block.modules()] for block in blocks]
    MMEmbedModel.from_backbone(backbone)
    assert [[len(part._forward_pre_hooks) for part in block.modules()] for block in blocks] == hooks
    assert [of_block for of_block, *_ in hooks] == [1, 0]
    assert [type(block.self_attn) for block in blocks] == kinds
    assert all(type(block).__name__ in BLOCKS for block in blocks)
