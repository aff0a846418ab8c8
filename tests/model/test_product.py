"""Products by oneDNN give torch's own numbers up to rounding, and torch keeps what is not theirs to do."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from hf_mmembed.model import product_mmembed as products
from hf_mmembed.model.product_mmembed import QuickLinear, onednn_is_faster, product, quicken_products
from hf_mmembed.tiny import checkpoint_path

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="LOUD: products by oneDNN are not tested, this torch has none"
)
ZEN_5 = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\n"


@pytest.fixture(autouse=True)
def faster(monkeypatch):
    """As on a machine where oneDNN is faster."""
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)


@pytest.fixture
def by_onednn(monkeypatch) -> list[tuple[int, ...]]:
    """Shapes of what oneDNN multiplied."""
    seen: list[tuple[int, ...]] = []
    really = products._by_onednn
    monkeypatch.setattr(
        products, "_by_onednn", lambda states, *rest: seen.append(tuple(states.shape)) or really(states, *rest)
    )
    return seen


@given(
    rows=st.integers(1, 300), into=st.integers(1, 70), out=st.integers(1, 70), bias=st.booleans(), seed=st.integers(0)
)
@settings(max_examples=60)
@torch.inference_mode()
def test_equals_the_product_in_float64(rows, into, out, bias, seed):
    generator = torch.Generator().manual_seed(seed % 2**32)
    states, weight = (torch.randn(size, generator=generator) for size in ((rows, into), (out, into)))
    added = torch.randn(out, generator=generator) if bias else None
    expected = states.double() @ weight.double().T + (0 if added is None else added.double())
    assert (product(states, weight, added) - expected).abs().max() < 1e-4


@torch.no_grad()
def test_states_of_any_shape_and_layout():
    weight, plain = torch.randn(24, 32), torch.nn.functional.linear
    for states in (torch.randn(2, 5, 9, 32), torch.randn(3, 1, 32).expand(3, 40, 32), torch.randn(32, 50).t()):
        assert torch.allclose(product(states, weight), plain(states, weight), atol=1e-4)
    square = torch.randn(24, 24)
    assert torch.allclose(product(torch.ones(40, 24), square.t()), plain(torch.ones(40, 24), square.t()), atol=1e-4)


@given(st.integers(16, 100_000))
def test_rows_are_filled_up_by_an_eighth_at_most(rows):
    filled = products._rounded_up(rows)
    assert rows <= filled <= rows * 9 / 8
    assert products._rounded_up(filled) == filled


def test_few_sizes_are_asked_for():
    assert len({products._rounded_up(rows) for rows in range(1024, 2048)}) == 8 + 1


@pytest.mark.parametrize(
    ("rows", "dtype", "why"),
    [(products.FEWEST_ROWS - 1, torch.float32, "few rows"), (64, torch.bfloat16, "not float32")],
)
def test_torch_keeps_what_is_small_or_in_another_type(by_onednn, rows, dtype, why):
    with torch.no_grad():
        product(torch.ones(rows, 8, dtype=dtype), torch.ones(4, 8, dtype=dtype))
    assert not by_onednn, why


@given(
    rows=st.integers(1, 300),
    into=st.integers(1, 40),
    out=st.integers(1, 40),
    wanted=st.tuples(st.booleans(), st.booleans(), st.booleans()).filter(any),
    seed=st.integers(0),
)
@settings(max_examples=60)
def test_gradients_equal_those_in_float64(rows, into, out, wanted, seed):
    generator = torch.Generator().manual_seed(seed % 2**32)
    parts = [torch.randn(size, generator=generator) for size in ((rows, into), (out, into), (out,))]
    upstream = torch.randn(rows, out, generator=generator)
    ours, exact = (
        [part.to(dtype, copy=True).requires_grad_(wants) for part, wants in zip(parts, wanted, strict=True)]
        for dtype in (torch.float32, torch.float64)
    )
    product(*ours).backward(upstream)
    torch.nn.functional.linear(*exact).backward(upstream.double())
    for part, expected, wants in zip(ours, exact, wanted, strict=True):
        assert (part.grad is not None) == wants
        if wants:
            assert (part.grad - expected.grad).abs().max() < 1e-4


def test_both_products_of_a_gradient_are_onednns(by_onednn):
    layer = nn.Linear(24, 32)
    quicken_products(layer)
    layer(torch.randn(4, 16, 24, requires_grad=True)).sum().backward()
    assert by_onednn == [(64, 24), (64, 32), (24, 64)]
    assert layer.bias.grad.tolist() == [64.0] * 32


@pytest.mark.parametrize("rows", [16, 17])
def test_the_product_may_be_modified_in_place(rows):
    """As PEFT does where the rows of a batch have adapters of their own."""
    states, weight = torch.randn(2, rows, 24), torch.randn(32, 24, requires_grad=True)

    def gradient(multiply):
        made = multiply(states, weight)
        made[0] += multiply(states[1], weight)
        return torch.autograd.grad(made.relu_().sum(), weight)[0]

    assert torch.allclose(gradient(product), gradient(torch.nn.functional.linear), atol=1e-4)


@torch.no_grad()
def test_a_bias_may_have_any_layout():
    states, weight = torch.randn(40, 24), torch.randn(32, 24)
    for bias in (torch.randn(64)[::2], torch.randn(1).expand(32), torch.randn(1), torch.randn(40, 32)):
        assert torch.allclose(product(states, weight, bias), states @ weight.t() + bias, atol=1e-4)


def test_sizes_that_do_not_fit_are_an_error():
    for states in (torch.randn(4, 8, 6), torch.randn(640)):
        with pytest.raises(RuntimeError, match="cannot be multiplied|size mismatch"):
            product(states, torch.randn(4, 4))


@pytest.mark.parametrize("sizes", [((64, 0), (48, 0)), ((64, 32), (0, 32)), ((0, 32), (48, 32))])
def test_nothing_times_something(sizes):
    states, weight = (torch.randn(size, requires_grad=True) for size in sizes)
    made = product(states, weight)
    made.sum().backward()
    assert made.shape == (sizes[0][0], sizes[1][0]) and weight.grad.shape == weight.shape


def test_what_linear_lets_be_modified_in_place_may_be():
    states, weight = torch.randn(2, 33, 24, requires_grad=True), torch.randn(32, 24, requires_grad=True)
    made = checkpoint(lambda part: product(part, weight), states, use_reentrant=True)
    made.mul_(2).sum().backward()
    assert torch.allclose(weight.grad, 2 * states.sum((0, 1)).expand(32, 24), atol=1e-4)
    with torch.no_grad():
        made = product(states, weight)
    made.mul_(torch.ones(32, requires_grad=True))


def test_tangents_are_torchs():
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(torch.ones(40, 24), torch.ones(40, 24))
        weight = torch.randn(32, 24)
        tangent = torch.autograd.forward_ad.unpack_dual(product(dual, weight)).tangent
    assert torch.allclose(tangent, weight.sum(1).expand(40, 32), atol=1e-4)


@pytest.mark.parametrize(("frozen", "kept"), [("weight", (32, 24)), ("states", (65, 24))])
def test_what_needs_no_gradient_is_not_kept(frozen, kept):
    parts = {"states": torch.randn(65, 24), "weight": torch.randn(32, 24)}
    for name, part in parts.items():
        part.requires_grad_(name != frozen)
    seen = []  # not the 72 rows that were multiplied
    with torch.autograd.graph.saved_tensors_hooks(lambda part: seen.append(tuple(part.shape)), lambda _: None):
        product(**parts)
    assert seen == [kept]


def test_gradients_can_be_differentiated():
    def penalty(multiply):
        torch.manual_seed(0)
        states, weight = torch.randn(64, 24, requires_grad=True), torch.randn(32, 24, requires_grad=True)
        (slope,) = torch.autograd.grad(multiply(states, weight).tanh().sum(), states, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), (states, weight))

    for ours, expected in zip(penalty(product), penalty(torch.nn.functional.linear), strict=True):
        assert torch.allclose(ours, expected, atol=1e-4)


def test_transforms_of_functions_are_torchs(by_onednn):
    states, weight = torch.randn(3, 64, 24), torch.randn(32, 24)
    of_all = torch.func.vmap(torch.func.grad(lambda part, by: product(part, by).sum()), in_dims=(0, None))
    assert torch.allclose(of_all(states, weight), weight.sum(0).expand_as(states), atol=1e-4)
    assert by_onednn == []


def test_torch_keeps_what_is_cast_traced_or_switched_off(by_onednn):
    layer = nn.Linear(8, 4)
    quicken_products(layer)
    states = torch.randn(64, 8)
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(states).dtype == torch.bfloat16
        with torch.backends.mkldnn.flags(enabled=False):
            layer(states)
        torch.jit.trace(layer, states, check_trace=False)
        assert by_onednn == []
        layer(states)
    assert by_onednn == [(64, 8)]


def test_plain_linear_layers_alone_are_changed():
    class Special(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(8, 8), Special(8, 8), nn.LayerNorm(8))
    names, weight = list(model.state_dict()), model[0].weight
    quicken_products(model)
    assert [type(part) for part in model] == [QuickLinear, Special, nn.LayerNorm]
    assert list(model.state_dict()) == names and model[0].weight is weight
    states = torch.randn(32, 8)
    with torch.no_grad():
        expected = model(states)
        copied = copy.deepcopy(model)
        assert type(copied[0]) is QuickLinear
        assert torch.equal(copied(states), expected)


def test_elsewhere_nothing_changes(monkeypatch):
    monkeypatch.setattr(products, "onednn_is_faster", lambda: False)
    model = nn.Sequential(nn.Linear(8, 8))
    quicken_products(model)
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize(
    ("told", "faster"),
    [
        (ZEN_5, torch.backends.cpu.get_cpu_capability() == "AVX512"),
        (ZEN_5.replace(": 26", ": 25"), False),
        (ZEN_5.replace("AuthenticAMD", "GenuineIntel"), False),
        ("processor\t: 0\nBogoMIPS\t: 243.75\n", False),
        (None, False),
    ],
)
def test_processors(monkeypatch, told, faster):
    def read(path, **_):
        if told is None:
            raise FileNotFoundError(path)
        return told

    monkeypatch.setattr(Path, "read_text", read)
    assert onednn_is_faster.__wrapped__() is faster


def test_the_shipped_model_embeds_as_before(by_onednn):
    from hf_mmembed import MMEmbedder

    model = MMEmbedder(str(checkpoint_path()), device="cpu")
    assert any(type(part) is QuickLinear for part in model.modules())
    texts = [f"{count} red circles above a blue star" for count in range(40)]
    vectors = model.encode(texts)
    assert by_onednn
    with torch.backends.mkldnn.flags(enabled=False):
        assert abs(model.encode(texts) - vectors).max() < 1e-5
