"""Vision towers compute the numbers of transformers' modules, with fewer calls."""

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
from transformers import AutoModel, AutoProcessor
from transformers.activations import QuickGELUActivation

from hf_mmembed.model.vision_mmembed import AttentionByLength, InPlaceQuickGELU, LinearPatchConv

QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


def attentions(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, AttentionByLength)]


def stock(module: nn.Module) -> type[nn.Module]:
    """The library's class of a module."""
    return type(module).__bases__[1]


@pytest.fixture(scope="module")
def loaded(embedder):
    """`loaded(family)`: a model, and a batch of three pictures of one size between two of another."""

    def load(family: str):
        processor = AutoProcessor.from_pretrained(embedder(family))
        pictures = [noise(48, 24), noise(32, 32), noise(33, 32), noise(32, 33), noise(24, 48)]
        return AutoModel.from_pretrained(embedder(family)).eval(), processor(images=pictures, return_tensors="pt")

    return load


def vectors(model, batch, **options):
    with torch.no_grad():
        return model(**batch, **options).embeddings


@pytest.mark.parametrize("family", [*QWEN, "qwen3_5", "qwen3_5_moe"])
def test_attention_gives_the_library_s_numbers(family, loaded):
    model, batch = loaded(family)
    ours = vectors(model, batch)
    assert attentions(model)
    for attention in attentions(model):
        attention.__class__ = stock(attention)
    assert torch.allclose(ours, vectors(model, batch), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_in_each_type(dtype, loaded):
    model, _ = loaded("qwen2_vl")
    attention = attentions(model)[0].to(dtype)
    patches, head = 24, attention.qkv.in_features // attention.num_heads
    torch.manual_seed(0)
    states = torch.randn(patches, attention.qkv.in_features, dtype=dtype)
    angles = torch.randn(patches, head // 2).repeat(1, 2)  # one for each pair of dimensions
    arguments = {
        "cu_seqlens": torch.tensor([0, 4, 12, 20, 24], dtype=torch.int32),
        "position_embeddings": (angles.cos(), angles.sin()),
    }
    with torch.no_grad():
        ours, theirs = attention(states, **arguments), stock(attention).forward(attention, states, **arguments)
    assert ours.dtype == theirs.dtype == dtype
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-6 if dtype == torch.float32 else 2e-2)


def test_neighbours_of_equal_length_attend_in_one_call(loaded, monkeypatch):
    model, batch = loaded("qwen2_vl")
    shapes = []
    attend = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda q, k, v, **kw: shapes.append(tuple(q.shape)) or attend(q, k, v, **kw)
    )
    grids = batch["image_grid_thw"].prod(dim=1).tolist()
    assert grids[1] == grids[2] == grids[3] != grids[0] == grids[4]
    with torch.no_grad():
        model.backbone.visual(batch["pixel_values"], grid_thw=batch["image_grid_thw"])
    assert [(shape[0], shape[2]) for shape in shapes] == [(1, grids[0]), (3, grids[1]), (1, grids[4])] * 2


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_gradients_and_other_implementations_take_the_library_s_way(implementation, loaded, monkeypatch):
    model, batch = loaded("qwen2_vl")
    model.set_attn_implementation(implementation)
    kind = stock(attentions(model)[0])
    forward, calls = kind.forward, []
    monkeypatch.setattr(kind, "forward", lambda self, *args, **kw: calls.append(1) or forward(self, *args, **kw))
    expected = vectors(model, batch)
    assert len(calls) == (0 if implementation == "sdpa" else 2)
    calls.clear()
    embeddings = model(**batch).embeddings
    embeddings.sum().backward()
    assert len(calls) == 2 and attentions(model)[0].qkv.weight.grad.abs().max() > 0
    assert torch.allclose(embeddings, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("trained", ["nothing", "input", "weights", "adapter"])
def test_a_frozen_tower_takes_the_library_s_way_only_where_gradients_flow(trained, loaded, monkeypatch):
    model, _ = loaded("qwen2_vl")
    model.requires_grad_(trained == "weights")
    if trained == "adapter":
        model.add_adapter(LoraConfig(target_modules=["qkv", "fc1"]))
    block = model.backbone.visual.blocks[0]
    calls = []
    for kind in (stock(block.attn), stock(block.mlp), QuickGELUActivation):
        monkeypatch.setattr(
            kind,
            "forward",
            lambda self, *args, forward=kind.forward, **kw: calls.append(1) or forward(self, *args, **kw),
        )
    states = torch.randn(8, block.attn.qkv.in_features, requires_grad=trained == "input")
    angles = torch.randn(8, block.attn.qkv.in_features // block.attn.num_heads // 2).repeat(1, 2)
    arguments = {"cu_seqlens": torch.tensor([0, 4, 8]), "position_embeddings": (angles.cos(), angles.sin())}
    mixed, wide = block.attn(states, **arguments), block.mlp(states)
    assert len(calls) == (0 if trained == "nothing" else 3)
    assert mixed.requires_grad == wide.requires_grad == (trained != "nothing")
    with torch.no_grad():
        assert torch.allclose(mixed, block.attn(states, **arguments), rtol=0, atol=2e-5)
        assert torch.allclose(wide, block.mlp(states), rtol=0, atol=2e-5)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_over_a_frozen_tower(reentrant, loaded):
    model, batch = loaded("qwen2_vl")
    decoder = model.backbone.get_decoder()

    def gradient() -> torch.Tensor:
        model.zero_grad()
        model(**batch).embeddings.sum().backward()
        return decoder.layers[0].mlp.up_proj.weight.grad.clone()

    expected = gradient()
    model.backbone.visual.requires_grad_(False)
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model.train()  # otherwise nothing is computed twice
    assert torch.allclose(gradient(), expected, rtol=0, atol=2e-5)
    assert all(weight.grad is None for weight in model.backbone.visual.parameters())


def test_a_frozen_feed_forward_compiles(loaded):
    model, _ = loaded("qwen2_vl")
    mlp = model.backbone.visual.blocks[0].mlp.requires_grad_(False)
    states = torch.randn(7, mlp.fc1.in_features)
    compiled = torch.compile(mlp, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(states), stock(mlp).forward(mlp, states), rtol=0, atol=2e-5)


def test_a_copy_computes_with_its_own_weights(loaded):
    model, batch = loaded("qwen2_vl")
    expected = vectors(model, batch)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301 - as process pools do
        assert torch.equal(vectors(twin, batch), expected)
        with torch.no_grad():
            attentions(twin)[0].proj.weight.zero_()
            twin.backbone.get_decoder().layers[-1].mlp.down_proj.weight.zero_()
        assert (vectors(twin, batch) - expected).abs().max() > 1e-3
        assert (vectors(twin, batch, whole_states=False) - vectors(twin, batch)).abs().max() < 1e-6
    assert torch.equal(vectors(model, batch), expected)


def test_a_replica_computes_with_its_own_weights(loaded):
    """As in `nn.DataParallel`, whose replicas share everything in `__dict__` but parameters and buffers."""
    model, _ = loaded("qwen2_vl")
    block, last = model.backbone.visual.blocks[0], model.backbone.get_decoder().layers[-1]
    for module in (block.attn, block.mlp, last.self_attn.q_proj, last.self_attn.o_proj, last.mlp):
        replica = module._replicate_for_data_parallel()
        assert "forward" not in vars(replica) and type(replica) is type(module)


@pytest.mark.parametrize("family", QWEN)
def test_a_vision_tower_on_the_disk(family, loaded, embedder, tmp_path):
    model, batch = loaded(family)
    places = {"backbone.visual": "disk", "backbone.language_model": "cpu"}
    offloaded = AutoModel.from_pretrained(embedder(family), device_map=places, offload_folder=tmp_path)
    assert next(offloaded.backbone.visual.parameters()).is_meta
    assert torch.allclose(vectors(offloaded, batch), vectors(model, batch), rtol=0, atol=1e-6)


def test_hooks_of_the_feed_forward_run(loaded):
    model, batch = loaded("qwen2_vl")
    seen = []
    model.backbone.visual.blocks[0].mlp.fc1.register_forward_hook(lambda *_: seen.append(1))
    vectors(model, batch)
    assert seen


def test_activation_keeps_its_input_and_has_gradients():
    states = torch.randn(4, 5, requires_grad=True)
    before = states.detach().clone()
    expected = QuickGELUActivation()(states)
    with torch.no_grad():
        assert torch.allclose(InPlaceQuickGELU()(states), expected, rtol=0, atol=1e-7)
    assert torch.equal(states, before)
    [gradient] = torch.autograd.grad(InPlaceQuickGELU()(states).sum(), states)
    assert torch.equal(gradient, torch.autograd.grad(expected.sum(), states)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_feed_forward_is_the_library_s_with_one_pass_for_the_activation(dtype, loaded, monkeypatch):
    model, _ = loaded("qwen2_vl")
    mlp = model.to(dtype).backbone.visual.blocks[0].mlp
    nn.init.normal_(mlp.fc1.bias)
    states = torch.randn(7, mlp.fc1.in_features, dtype=dtype)
    theirs = stock(mlp).forward(mlp, states)
    passes = []
    silu = F.silu
    monkeypatch.setattr(F, "silu", lambda *args, **kwargs: passes.append(1) or silu(*args, **kwargs))
    with torch.no_grad():
        assert torch.allclose(mlp(states), theirs, rtol=0, atol=1e-6 if dtype == torch.float32 else 2e-2)
    assert passes
    mlp(states).sum().backward()
    assert mlp.fc1.weight.grad.abs().max() > 0 and len(passes) == 1


def test_adapters_in_the_feed_forward_count(loaded):
    model, batch = loaded("qwen2_vl")
    model.add_adapter(LoraConfig(target_modules=["fc1"], init_lora_weights=False))
    mlp = model.backbone.visual.blocks[0].mlp
    states = torch.randn(7, mlp.fc2.out_features)
    with torch.no_grad():
        assert torch.equal(mlp(states), stock(mlp).forward(mlp, states))
        bare = mlp.fc2(mlp.act(mlp.fc1.base_layer(states)))
        assert (mlp(states) - bare).abs().max() > 1e-4


def test_patch_embedding_is_a_matrix_product_with_the_convolution_s_numbers(loaded):
    model, _ = loaded("qwen2_vl")
    [conv] = [module for module in model.modules() if isinstance(module, LinearPatchConv)]
    patches = torch.randn(5, *conv.weight.shape[1:], dtype=torch.float64)
    conv = conv.double()
    assert torch.allclose(conv(patches), nn.Conv3d.forward(conv, patches), atol=1e-12)
    clip = torch.randn(1, conv.in_channels, *(2 * side for side in conv.kernel_size), dtype=torch.float64)
    assert torch.equal(conv(clip), nn.Conv3d.forward(conv, clip))
