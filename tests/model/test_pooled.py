"""Blocks compute what the pooled token needs and no more, and nothing about the result changes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoModel, AutoProcessor, LlavaConfig, PretrainedConfig

from hf_mmembed.model import MMEmbedConfig, MMEmbedModel
from hf_mmembed.model.language_mmembed import BLOCKS
from hf_mmembed.model.pooled_mmembed import blocks_for_pooled, only_pooled, pack, told_about_rows
from hf_mmembed.model.prefix_mmembed import CAUSAL_FAMILIES, shared_prefix_length
from tests.tiny_families import FAMILIES


@pytest.fixture(scope="module")
def loaded(embedder):
    def load(family: str, **choices: str):
        folder = embedder(family, **choices)
        return AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)

    return load


def mixture(processor):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    text = ["a red circle", None, "a much longer text about a blue star"]
    return processor(text=text, images=[None, Image.fromarray(pixels), None], return_tensors="pt")


@pytest.mark.parametrize("share_prefix", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_are_the_same(family, side, share_prefix, loaded, monkeypatch):
    monkeypatch.setattr("hf_mmembed.model.pooled_mmembed.LEAST_PADDING_SHARE", 0)
    model, processor = loaded(family)
    processor.tokenizer.padding_side = side
    batch = mixture(processor)
    last = model.backbone.get_decoder().layers[-1]
    read = {}
    for kind in {type(part) for part in model.modules() if isinstance(part, torch.nn.Linear)}:

        def forward(layer, x, linear=kind.forward):
            read[layer] = tuple(x.shape[:-1])
            return linear(layer, x)

        monkeypatch.setattr(kind, "forward", forward)
    with torch.no_grad():
        whole = model(**batch, share_prefix=share_prefix)
        assert len(read[last.self_attn.q_proj]) == 2
        pooled = model(**batch, share_prefix=share_prefix, whole_states=False)
    assert torch.allclose(pooled.embeddings, whole.embeddings, rtol=0, atol=2e-6)
    assert pooled.last_hidden_state is None and pooled.pooler_output is pooled.embeddings
    attention, mlp = last.self_attn, last.mlp
    inside = [part for part in mlp.modules() if isinstance(part, torch.nn.Linear)]  # experts have none
    assert inside or family == "qwen3_vl_moe"
    assert {read[part] for part in (attention.q_proj, attention.o_proj, *inside)} == {(3, 1)}
    assert len(read[attention.k_proj]) == len(read[attention.v_proj]) == 2
    first = model.backbone.get_decoder().layers[0]
    real, padded = real_tokens(batch, share_prefix and family in CAUSAL_FAMILIES), read[last.self_attn.k_proj]
    assert real < padded[0] * padded[1]
    without_padding = type(first).__name__ in BLOCKS
    assert without_padding or family in ("gemma3", "qwen3_vl_moe")
    assert read[first.self_attn.k_proj] == ((1, real) if without_padding else padded)
    inside = [part for part in first.mlp.modules() if isinstance(part, torch.nn.Linear)]
    assert {read[part] for part in inside} == {(1, real) if without_padding else (real, 1)} or not inside


def real_tokens(batch, prefix_is_shared: bool) -> int:
    """How many tokens are no padding, behind the common prefix where that is read apart."""
    mask = batch["attention_mask"]
    prefix, _ = shared_prefix_length(batch["input_ids"], mask) if prefix_is_shared else (0, None)
    return int(mask.sum()) - prefix * len(mask)


def test_mlps_read_all_tokens_where_hardly_any_is_padding_or_gradients_are_on(loaded):
    model, _ = loaded("qwen2_vl")
    first = model.backbone.get_decoder().layers[0].mlp
    read = []
    first.register_forward_pre_hook(lambda _, inputs: read.append(tuple(inputs[0].shape[:2])))
    ids, mask = torch.full((2, 40), 5), torch.ones(2, 40, dtype=torch.long)
    options = {"share_prefix": False, "whole_states": False}
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask, **options)
        mask[0, :4] = 0
        model(input_ids=ids, attention_mask=mask, **options)
        mask[0, :5] = 0
        model(input_ids=ids, attention_mask=mask, **options)
    model(input_ids=ids, attention_mask=mask, **options)
    assert read == [(2, 40), (2, 40), (1, 75), (2, 40)]


@pytest.mark.parametrize("choices", [{"pooling": "mean"}, {"readout": "pre_mlp"}], ids=str)
def test_other_readouts_are_the_same(choices, loaded):
    model, processor = loaded("qwen2_vl", **choices)
    batch = mixture(processor)
    with torch.no_grad():
        whole, pooled = (model(**batch, whole_states=whole) for whole in (True, False))
    assert torch.allclose(pooled.embeddings, whole.embeddings, rtol=0, atol=1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_the_same(checkpointing, loaded):
    model, processor = loaded("qwen2_vl")
    model.train()
    if checkpointing:
        model.activation_checkpointing_enable()
    batch = mixture(processor)

    def gradient(**options):
        model.zero_grad()
        first, second, _ = model(**batch, **options).embeddings
        (first @ second).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    expected = gradient()
    assert expected.norm() > 0
    assert torch.allclose(gradient(whole_states=False), expected, rtol=1e-4, atol=1e-6 * expected.abs().max().item())


@pytest.mark.parametrize("options", [{}, {"share_prefix": True, "whole_states": False}], ids=str)
@pytest.mark.parametrize("gradients", [False, True])
def test_rows_may_each_have_their_own_adapter(gradients, options, loaded):
    model, processor = loaded("qwen2_vl")
    batch, names = mixture(processor), ["default", "other", "__base__"]
    with torch.no_grad():
        expected = {"__base__": model(**batch).embeddings}
        config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        model = get_peft_model(model, config)
        model.add_adapter("other", config)
        for name in names[:2]:
            model.set_adapter(name)
            expected[name] = model.eval()(**batch).embeddings
    with torch.set_grad_enabled(gradients):
        mixed = model(**batch, adapter_names=names, **options).embeddings
    for row, name in enumerate(names):
        assert torch.allclose(mixed[row], expected[name][row], rtol=0, atol=2e-6), name


def llava(text: dict) -> PretrainedConfig:
    text = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
            "vocab_size": 100, "pad_token_id": 0, "num_experts_per_tok": 2, **text}  # fmt: skip
    return LlavaConfig(vision_config={"model_type": "clip_vision_model", "num_hidden_layers": 1}, text_config=text)


@pytest.mark.parametrize(
    "text",
    [
        {"model_type": "qwen3_vl_moe_text", "num_experts": 4, "moe_intermediate_size": 16,
         "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}},
        {"model_type": "gpt_oss", "num_local_experts": 4, "intermediate_size": 16},
        {"model_type": "gpt2"},
    ],
    ids=lambda text: text["model_type"],
)  # fmt: skip
def test_mixtures_of_experts_and_blocks_of_other_names_are_pooled(text):
    torch.manual_seed(0)
    model = MMEmbedModel(MMEmbedConfig(llava(text))).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.1)
    batch = {"input_ids": torch.randint(1, 90, (3, 12)), "attention_mask": torch.ones(3, 12, dtype=torch.long)}
    batch["attention_mask"][1, 8:] = 0
    with torch.no_grad():
        whole, pooled = (model(**batch, whole_states=whole).embeddings for whole in (True, False))
    assert torch.allclose(pooled, whole, rtol=0, atol=1e-6)


def test_an_mlp_that_is_told_about_every_token_reads_them_all():
    class Told(torch.nn.Module):
        def forward(self, states, kinds):
            return states * kinds[..., None]

    mlp, states, kinds = Told(), torch.rand(2, 3, 4), torch.arange(6.0).view(2, 3)
    block = torch.nn.ModuleDict({"mlp": mlp})
    backbone = SimpleNamespace(get_decoder=lambda: SimpleNamespace(layers=[block]))
    blocks_for_pooled(backbone)
    with only_pooled(torch.ones(2, 3)):
        assert mlp(states, kinds).equal(states * kinds[..., None])
        assert mlp(states, kinds=kinds).equal(states * kinds[..., None])


def test_what_is_asked_ends_with_its_context_and_is_asked_of_its_thread_alone():
    states, mask = torch.rand(2, 3, 4), torch.tensor([[1, 1, 1], [1, 0, 0]])
    with torch.no_grad(), ThreadPoolExecutor(1) as other:
        with pytest.raises(torch.OutOfMemoryError), only_pooled(mask):
            assert other.submit(pack, states).result() is None
            assert pack(states).shape == (1, 4, 4)
            raise torch.OutOfMemoryError
        assert pack(states) is None


@pytest.mark.parametrize("told", ["adapter_names", "alora_offsets"])
def test_what_peft_tells_layers_about_each_row_is_noticed(told):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    model[0].register_forward_pre_hook(partial(lambda *_, **__: None, **{told: []}), with_kwargs=True)
    assert not told_about_rows(model)
    model.peft_config = {"default": LoraConfig()}
    assert told_about_rows(model)
