"""The shared prefix: found exactly, and without any effect on the result."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hf_mmembed.model import MMEmbedModel, MMEmbedProcessor
from hf_mmembed.model import modeling_mmembed as modeling
from hf_mmembed.model.prefix_mmembed import (
    CAUSAL_FAMILIES,
    PrefixMemory,
    shared_prefix_length,
    states_with_shared_prefix,
)
from tests.tiny_families import FAMILIES, NEWER

IMAGE = 9


def pictures(*sizes: tuple[int, int]) -> list[Image.Image]:
    generator = torch.Generator().manual_seed(0)
    return [
        Image.fromarray(torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator).numpy())
        for width, height in sizes
    ]


@given(
    rows=st.lists(st.lists(st.sampled_from([1, 2, IMAGE]), min_size=1, max_size=7), min_size=2, max_size=5),
    left=st.booleans(),
)
def test_length_is_that_of_a_plain_search(rows, left):
    width = max(map(len, rows))
    padding = [[0] * (width - len(row)) for row in rows]
    ids = torch.tensor([pad + row if left else row + pad for row, pad in zip(rows, padding, strict=True)])
    expected = 0
    while all(len(row) > expected + 1 and row[expected] == rows[0][expected] != IMAGE for row in rows):
        expected += 1
    length, starts = shared_prefix_length(ids, (ids > 0).long(), IMAGE)
    assert length == expected
    assert starts.tolist() == [len(pad) if left else 0 for pad in padding]


@pytest.fixture(scope="module")
def loaded(embedder):
    def load(family: str):
        folder = embedder(family)
        return MMEmbedModel.from_pretrained(folder).eval(), MMEmbedProcessor.from_pretrained(folder)

    return load


BATCHES = {
    "texts": (["a red circle", "two", "a much longer text about a blue star"], None),
    "pictures": (None, pictures((40, 24), (24, 40), (32, 32))),
    "layouts": (
        ["a", "a", "b b", "a", "c"],
        [[p] * n for p, n in zip(pictures(*[(40, 24)] * 5), [1, 2, 1, 1, 0], strict=True)],
    ),
    "mixture": (["a red circle", None, "with a picture"], [None, *pictures((40, 24), (24, 40))]),
}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("family", FAMILIES)
def test_sharing_changes_nothing(family, batch, side, loaded):
    model, processor = loaded(family)
    processor.tokenizer.padding_side = side
    text, images = BATCHES[batch]
    features = processor(text=text, images=images, return_tensors="pt")
    with torch.no_grad():
        whole = model(**features, share_prefix=False)
        shared = model(**features)
    real = features["attention_mask"].bool()
    assert torch.allclose(whole.embeddings, shared.embeddings, rtol=0, atol=5e-6)
    assert torch.allclose(whole.last_hidden_state[real], shared.last_hidden_state[real], rtol=0, atol=2e-4)


def test_the_last_block_may_be_on_another_device_than_the_mask(loaded):
    model, processor = loaded("qwen2_vl")
    backbone = copy.deepcopy(model.backbone)

    def elsewhere(module, arguments, output):
        output.last_hidden_state = output.last_hidden_state.to("meta")

    backbone.register_forward_hook(elsewhere)
    features = processor(text=["red", "blue", "a green circle"], return_tensors="pt")
    with torch.no_grad():
        states, mask = states_with_shared_prefix(backbone, features["input_ids"], features["attention_mask"])
    assert states.device.type == "meta" and states.shape[:2] == mask.shape


@pytest.mark.parametrize("family", sorted(CAUSAL_FAMILIES & FAMILIES.keys()))
def test_backbone_reads_the_system_prompt_once(family, loaded):
    model, processor = loaded(family)
    widths = []
    model.backbone.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    features = processor(text=["red", "blue", "green"], return_tensors="pt")
    with torch.no_grad():
        model(**features)
    [width] = widths
    assert width < features["input_ids"].shape[1] // 2


@pytest.mark.parametrize("family", ["qwen2_vl", "idefics3"])
def test_gradients_are_the_same_where_sharing_is_asked_for(family, loaded):
    model, processor = loaded(family)
    model = copy.deepcopy(model).double().requires_grad_(True)
    images = [None, *pictures((40, 24), (24, 40))]
    features = processor(text=["red", None, "a blue circle"], images=images, return_tensors="pt")
    gradients, widths = {}, []
    model.backbone.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    for share in (False, True, None):
        model.zero_grad()
        embeddings = model(**features, share_prefix=share).embeddings.double()
        (embeddings @ embeddings.T)[0].sum().backward()
        gradients[share] = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    whole, shared, unasked = widths
    assert shared < whole == unasked
    assert gradients[True].keys() == gradients[False].keys()
    for name, expected in gradients[False].items():
        # The embeddings are rounded to float32 on their way out.
        assert torch.allclose(gradients[True][name], expected, rtol=1e-5, atol=1e-7), name


def test_no_sharing_with_gradient_checkpointing(loaded):
    model, processor = loaded("qwen2_vl")
    model = copy.deepcopy(model).requires_grad_(True).train()
    model.activation_checkpointing_enable()
    features = processor(text=["red", "blue"], return_tensors="pt")
    model(**features, share_prefix=True).embeddings.sum().backward()
    assert all(p.grad is not None for p in model.backbone.get_decoder().parameters())


def test_families_that_look_both_ways_are_left_alone(loaded):
    model, processor = loaded("gemma3")
    features = processor(text=["red", "blue"], return_tensors="pt")
    with torch.no_grad():
        assert modeling.states_with_shared_prefix(model.backbone, **features) is None


def test_equal_rows_leave_something_to_read(loaded):
    model, processor = loaded("qwen2_vl")
    features = processor(text=["red", "red"], return_tensors="pt")
    with torch.no_grad():
        shared, whole = model(**features), model(**features, share_prefix=False)
    assert torch.allclose(whole.embeddings, shared.embeddings, rtol=0, atol=5e-6)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "idefics3"])
def test_memory_over_a_series_of_batches_changes_nothing(family, loaded):
    model, processor = loaded(family)
    memory = PrefixMemory()
    # The second and third batch have more, the fourth less in common than the first; the fifth another beginning.
    texts = [
        ["red", "blue"],
        ["a red one", "a red two"],
        ["a red cat", "a red dog"],
        ["red", "blue"],
        ["x" * 60, "x" * 61],
    ]
    for batch in texts:
        features = processor(text=batch, images=None, task="query", return_tensors="pt")
        with torch.no_grad():
            whole = model(**features, share_prefix=False).embeddings
            shared = model(**features, prefix_memory=memory).embeddings
        assert torch.allclose(whole, shared, rtol=0, atol=5e-6), batch
    with_picture = processor(text=[None, None], images=pictures((40, 24), (24, 40)), return_tensors="pt")
    with torch.no_grad():
        whole = model(**with_picture, share_prefix=False).embeddings
        shared = model(**with_picture, prefix_memory=memory).embeddings
    assert torch.allclose(whole, shared, rtol=0, atol=5e-6)


@pytest.mark.parametrize("family", sorted(CAUSAL_FAMILIES & NEWER.keys()))
def test_linear_attention_shares_what_no_padding_follows(family, loaded):
    model, processor = loaded(family)
    memory, widths = PrefixMemory(), []
    model.backbone.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    # The last text has less in common with the others than these have among themselves.
    batches = [{"text": ["a red cat", "a red dog"]}, {"text": ["a red dog"] * 2}, {"text": ["a red dog", "blue"]}]
    batches.append({"text": ["", "and a text"], "images": pictures((40, 24), (24, 40))})
    for side in ("left", "right"):
        processor.tokenizer.padding_side = side
        for batch in batches:
            features = processor(**batch, task="query", return_tensors="pt")
            with torch.no_grad():
                whole = model(**features, share_prefix=False)
                shared = model(**features, prefix_memory=memory)
            padded = not features["attention_mask"].all()
            assert (widths[-1] < widths[-2]) == (side == "right" or not padded), (side, batch)
            assert torch.allclose(whole.embeddings, shared.embeddings, rtol=0, atol=5e-6), (side, batch)
            real = features["attention_mask"].bool()
            assert torch.allclose(whole.last_hidden_state[real], shared.last_hidden_state[real], rtol=0, atol=2e-4)
    model(**features, share_prefix=True).embeddings.sum().backward()
    assert widths[-1] == widths[-3]
    assert model.backbone.get_decoder().layers[0].linear_attn.in_proj_qkv.weight.grad.abs().max() > 0


@pytest.mark.parametrize("types", [{}, {"mm_token_type_ids": None}], ids=str)
def test_the_library_says_that_the_types_of_tokens_are_missing(types, loaded):
    model, processor = loaded("qwen2_vl")
    features = processor(text=["red", "red"], images=pictures((40, 24), (24, 40)), return_tensors="pt")
    features = {name: value for name, value in features.items() if name != "mm_token_type_ids"} | types
    with torch.no_grad(), pytest.raises(ValueError, match="`mm_token_type_ids` is missing"):
        model(**features)


def test_a_row_that_is_all_padding_leaves_the_others_alone(loaded):
    model, processor = loaded("qwen2_vl")
    features = processor(text=["red", "red", "blue"], return_tensors="pt")
    with torch.no_grad():
        expected = model(**features).embeddings
        features["attention_mask"][1] = 0
        assert torch.allclose(model(**features).embeddings[[0, 2]], expected[[0, 2]], rtol=0, atol=5e-6)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_a_mask_of_another_type_is_a_mask(dtype, loaded):
    model, processor = loaded("qwen2_vl")
    features = processor(text=["red", "two blue circles"], return_tensors="pt")
    with torch.no_grad():
        expected = model(**features).embeddings
        features["attention_mask"] = features["attention_mask"].to(dtype)
        for whole in (True, False):
            assert torch.allclose(model(**features, whole_states=whole).embeddings, expected, rtol=0, atol=5e-6)


def test_memory_computes_a_prefix_once(loaded):
    model, processor = loaded("qwen2_vl")
    memory, calls = PrefixMemory(), []
    hook = model.backbone.get_decoder().register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        for batch in (["red", "blue"], ["green", "yellow"], ["two", "circles"]):
            model(**processor(text=batch, return_tensors="pt"), prefix_memory=memory)
    hook.remove()
    assert len(calls) == 4


@pytest.mark.parametrize("kept", [[0], [1], [0, 2]], ids=str)
def test_a_language_model_may_lack_blocks_that_its_config_counts(kept, loaded):
    model, processor = loaded("qwen2_vl")
    model = copy.deepcopy(model)
    decoder = model.backbone.get_decoder()
    if 2 in kept:
        decoder.layers.append(copy.deepcopy(decoder.layers[1]))
        decoder.layers[2].self_attn.layer_idx = 2
        decoder.config.num_hidden_layers, decoder.config.layer_types = 3, ["full_attention"] * 3
    decoder.layers = torch.nn.ModuleList(decoder.layers[place] for place in kept)
    features = processor(text=["red", "blue", "a green circle"], return_tensors="pt")
    with torch.no_grad():
        shared, whole = model(**features), model(**features, share_prefix=False)
    assert torch.allclose(whole.embeddings, shared.embeddings, rtol=0, atol=5e-6)


def endings(prefix: torch.Tensor) -> torch.Tensor:
    """Two rows that begin with `prefix` and differ in one last token."""
    return torch.stack([torch.cat([prefix, torch.tensor([last])]) for last in (70, 71)])


def test_a_prefix_that_differs_in_the_middle_is_another(loaded):
    backbone, memory = loaded("qwen2_vl")[0].backbone, PrefixMemory()
    first = torch.arange(20, 60)
    second = first.clone()
    second[5] = 90
    ids = endings(first)
    mask = torch.ones_like(ids)
    for prefix in (first, second):
        ids.copy_(endings(prefix))  # whoever makes batches may keep their place in memory
        with torch.no_grad():
            expected = backbone(input_ids=ids, attention_mask=mask).last_hidden_state
            shared, _ = states_with_shared_prefix(backbone, ids, mask, memory)
        assert torch.allclose(shared, expected, rtol=0, atol=2e-4)


def test_states_of_padding_are_zero(loaded):
    backbone = loaded("qwen2_vl")[0].backbone
    ids = endings(torch.arange(20, 60))
    mask = torch.ones_like(ids)
    mask[1, -1] = 0
    ids[0, 37:] = 90
    with torch.no_grad():
        states, _ = states_with_shared_prefix(backbone, ids, mask)
    assert torch.equal(states.any(dim=-1), mask.bool())


def test_what_sharing_was_not_made_for_is_not_shared(loaded, monkeypatch):
    backbone = loaded("qwen2_vl")[0].backbone
    text = backbone.config.get_text_config(decoder=True)
    ids = endings(torch.arange(20, 60))

    def shared(**more) -> bool:
        with torch.no_grad():
            return states_with_shared_prefix(backbone, ids, torch.ones_like(ids), **more) is not None

    assert shared() and shared(mm_token_type_ids=torch.zeros_like(ids))
    assert not shared(mm_token_type_ids=torch.zeros_like(ids)[:1])  # one row for all
    assert not shared(output_attentions=True)
    for name, value, expected in (
        ("sliding_window", 41, True),
        ("sliding_window", 40, False),
        ("_attn_implementation", "flash_attention_2", False),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(text, name, value)
            assert shared() == expected


def test_rows_padded_on_different_sides_are_not_shared(loaded):
    backbone = loaded("qwen2_vl")[0].backbone
    ids = torch.zeros(2, 45, dtype=torch.int64)
    ids[0, 4:] = ids[1, :41] = torch.arange(20, 61)
    assert states_with_shared_prefix(backbone, ids, (ids > 0).long()) is None
