from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from hf_mmembed.inputs import as_messages
from hf_mmembed.mining.ids import content_ids
from hf_mmembed.training.arguments import SaHaTrainingArguments
from hf_mmembed.training.chunks import Facts, NonFiniteLossError
from hf_mmembed.training.collator import ROW, PairCollator
from hf_mmembed.training.losses import MaskedInfoNCELoss
from hf_mmembed.training.models import add_lora
from tests.forks import in_processes
from tests.training.conftest import double_precision, make_pairs


def brute_force(queries, documents, negatives, facts, *, temperature, symmetric, margin):
    """The definition, one number at a time."""
    ids = facts.document_ids.tolist()
    all_ids = ids + facts.negative_ids.tolist()
    candidates = documents.tolist() + negatives.tolist()
    known = [set(row) - {-1} for row in facts.positives.tolist()]

    def dot(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True))

    def loss(own, others, positive, excluded):
        scores = [dot(own, other) for other in others]
        kept = [
            j == positive or (j not in excluded and not (margin is not None and scores[j] > scores[positive] + margin))
            for j in range(len(others))
        ]
        partition = sum(math.exp(s / temperature) for s, keep in zip(scores, kept, strict=True) if keep)
        return math.log(partition) - scores[positive] / temperature

    result = []
    for i, query in enumerate(queries.tolist()):
        value = loss(query, candidates, i, {j for j, d in enumerate(all_ids) if d in known[i]})
        if symmetric:
            excluded = {k for k in range(len(ids)) if ids[i] in known[k]}
            value = (value + loss(documents[i].tolist(), queries.tolist(), i, excluded)) / 2
        result.append(value)
    return result


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 7),
    st.integers(0, 4),
    st.booleans(),
    st.sampled_from([None, 0.1, -0.2]),
    st.integers(0, 10_000),
)
def test_equals_the_definition(n, m, symmetric, margin, seed):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda rows: normalize(torch.randn(rows, 4, generator=generator, dtype=torch.float64), dim=-1)  # noqa: E731
    query_ids = torch.randint(0, 4, (n,), generator=generator)
    document_ids = torch.randint(0, 5, (n,), generator=generator)
    elsewhere = torch.randint(-1, 5, (n,), generator=generator)
    positives = [sorted(set(document_ids[query_ids == q].tolist())) for q in query_ids.tolist()]
    width = max(map(len, positives))
    facts = Facts(
        rows=torch.arange(n),
        document_ids=document_ids,
        positives=torch.cat(
            [torch.tensor([own + [-1] * (width - len(own)) for own in positives]), elsewhere[:, None]], dim=1
        ),
        negative_ids=torch.randint(0, 8, (m,), generator=generator),
        negative_rows=torch.zeros(m, dtype=torch.int64),
    )
    queries, documents, negatives = draw(n), draw(n), draw(m)
    loss = MaskedInfoNCELoss.__new__(MaskedInfoNCELoss)
    torch.nn.Module.__init__(loss)
    loss.temperature, loss.symmetric, loss.false_negative_margin = 0.1, symmetric, margin
    expected = brute_force(queries, documents, negatives, facts, temperature=0.1, symmetric=symmetric, margin=margin)
    np.testing.assert_allclose(
        loss.losses(queries, documents, negatives, facts, slice(0, n)), expected, rtol=1e-10, atol=1e-10
    )
    # A process computes its own pairs against everybody's.
    half = n // 2
    parts = [loss.losses(queries, documents, negatives, facts, part) for part in (slice(0, half), slice(half, n))]
    np.testing.assert_allclose(torch.cat(parts), expected, rtol=1e-10, atol=1e-10)


def test_metrics_are_those_of_what_is_not_masked():
    """The first pair's second document answers it too, so its hardest negative is the third, or the hard one."""
    generator = torch.Generator().manual_seed(0)
    queries, noise, negatives = (
        normalize(torch.randn(rows, 4, generator=generator, dtype=torch.float64), dim=-1) for rows in (3, 3, 1)
    )
    documents = normalize(queries + 0.3 * noise, dim=-1)  # the positive scores highest
    positives = torch.tensor([[0, 1], [1, -1], [2, -1]])
    facts = Facts(torch.arange(3), torch.arange(3), positives, torch.tensor([3]), torch.zeros(1, dtype=torch.int64))
    loss = MaskedInfoNCELoss.__new__(MaskedInfoNCELoss)
    torch.nn.Module.__init__(loss)
    loss.temperature, loss.symmetric, loss.false_negative_margin = 0.1, False, None
    loss.losses(queries, documents, negatives, facts, slice(0, 3))
    scores = queries.numpy() @ torch.cat([documents, negatives]).numpy().T
    positive = scores.diagonal()
    hardest = np.array([max(scores[0, 2:]), max(scores[1, [0, 2, 3]]), max(scores[2, [0, 1, 3]])])
    expected = {
        "positive": positive.mean(),
        "hardest_negative": hardest.mean(),
        "hardness": (positive - hardest).mean(),
        "masked": 1 / 3,
    }
    assert {name: float(value) for name, value in loss.metrics.items()} == pytest.approx(expected, rel=1e-6)


def batch_of(pairs, rows=None):
    rows = range(len(pairs)) if rows is None else rows
    return PairCollator(content_ids(pairs))([{**pairs[row], ROW: row} for row in rows])


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}


def assert_equal_gradients(found, expected, tolerance=1e-10):
    assert found.keys() == expected.keys() and found
    scale = max(float(g.abs().max()) for g in expected.values())
    assert scale > 0
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=tolerance * scale, msg=name)


def without_cache(loss, sides, facts, *, chunked):
    """The same loss with every graph alive: the whole batch at once, or chunk by chunk in the order of the cache."""
    loss._sides = [loss._planned(side) for side in sides]
    reps = []
    for side in loss._sides:
        chunks = side["chunks"] if chunked else [list(range(len(side["conversations"])))]
        if not chunked:
            side["order"] = torch.arange(len(side["conversations"]))
        reps.append(
            [
                loss.model(
                    {**loss._prepare(side["conversations"], {"task": side["side"].task}, chunk), "share_prefix": False}
                )["sentence_embedding"]
                for chunk in chunks
            ]
        )
    loss.calculate_loss(reps, facts).backward()


def prepared(model, setting, directory):
    """The model in training mode, with what the test is about: "dropout" is that of a LoRA adapter."""
    model.train()
    if "dropout" in setting:
        add_lora(model, SaHaTrainingArguments(str(directory), lora_rank=2, lora_dropout=0.3))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        model.to(torch.float64)
    if "checkpointing" in setting:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


SETTINGS = ["plain", "dropout", "checkpointing", "dropout and checkpointing"]


@pytest.mark.parametrize("setting", ["plain", "dropout", "attention", "jitter", "noise", "checkpointing"])
def test_the_prefix_is_shared_where_nothing_is_drawn_or_forgotten(fresh, setting, tmp_path):
    model = prepared(fresh("qwen2_vl", torch.float64), setting, tmp_path)
    backbone = model.transformers_model.backbone
    if setting == "attention":
        backbone.language_model.layers[0].self_attn.attention_dropout = 0.1
    if setting == "jitter":
        backbone.config.text_config.router_jitter_noise = 0.1
    if setting == "noise":  # NEFTune
        backbone.get_input_embeddings().neftune_noise_alpha = 5.0
    told = []
    model.register_forward_pre_hook(lambda _, inputs: told.append(inputs[0]["share_prefix"]))
    MaskedInfoNCELoss(model, mini_batch_size=2)(*batch_of(make_pairs(4)).values()).backward()
    # Two sides of two chunks, without gradients and with them.
    assert told == 8 * [setting == "plain"]


@pytest.mark.parametrize(("family", "setting"), [*(("qwen2_vl", s) for s in SETTINGS), ("idefics3", "plain")])
def test_gradients_equal_those_of_the_whole_batch(fresh, family, setting, tmp_path):
    model = prepared(fresh(family, torch.float64), setting, tmp_path)
    sides, facts = batch_of(make_pairs(6, negatives=True)).values()
    found = []
    with double_precision():
        for size in (4, 2):
            loss = MaskedInfoNCELoss(model, mini_batch_size=size, symmetric=True)
            torch.manual_seed(3)
            model.zero_grad()
            loss(sides, facts).backward()
            found.append(gradients(model))
            torch.manual_seed(3)
            model.zero_grad()
            # The masks of dropout are drawn chunk by chunk, so only then can the reference draw the same.
            without_cache(loss, sides, facts, chunked="dropout" in setting)
            assert_equal_gradients(found[-1], gradients(model))
    if "dropout" not in setting:
        assert_equal_gradients(*found)


def _rank_gradients(rank, model, parts, setting):
    """Gradients through the cache and DistributedDataParallel, and those of the plain loss, averaged by hand."""
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    loss = MaskedInfoNCELoss(model, mini_batch_size=2, symmetric=True)
    loss.model = wrapped
    with double_precision():
        torch.manual_seed(rank)
        value = loss(*parts[rank].values())
        value.backward()
        found = gradients(model)
        model.zero_grad()
        loss.model = model
        torch.manual_seed(rank)
        without_cache(loss, *parts[rank].values(), chunked="dropout" in setting)
    expected = gradients(model)
    for gradient in expected.values():
        torch.distributed.all_reduce(gradient)
        gradient /= 2
    assert_equal_gradients(found, expected)
    return float(value.detach()), {name: g.numpy() for name, g in found.items()}


@pytest.mark.parametrize("setting", ["plain", "dropout and checkpointing"])
def test_two_processes_with_unequal_parts_equal_one(fresh, tmp_path, setting):
    pairs = make_pairs(7, negatives=True)
    model = prepared(fresh(dtype=torch.float64), setting, tmp_path)
    parts = [batch_of(pairs, range(4)), batch_of(pairs, range(4, 7))]
    results = in_processes(_rank_gradients, model, parts, setting, store=tmp_path / "store")
    if setting == "plain":
        with double_precision():
            whole = MaskedInfoNCELoss(model, symmetric=True)(*batch_of(pairs).values())
            whole.backward()
        assert sum(value for value, _ in results) / 2 == pytest.approx(float(whole), rel=1e-10)
        for _, found in results:
            assert_equal_gradients({name: torch.from_numpy(g) for name, g in found.items()}, gradients(model))


def test_duplicates_are_embedded_once_and_never_negatives(fresh):
    pairs = make_pairs(4, pictures=False).map(lambda row: {**row, "pos_text": "the same"})
    sides, facts = batch_of(pairs).values()
    assert len(sides[1].messages) == 1 and sides[1].places.tolist() == [0] * 4
    loss = MaskedInfoNCELoss(fresh())
    assert float(loss(sides, facts)) == 0.0
    assert float(loss.metrics["masked"]) == 3.0


def test_sides_are_rendered_as_query_and_document_with_the_instruction_of_the_row(fresh):
    model = fresh()
    rendered = []
    original = model.processor.render
    model.processor.render = lambda rows, task: rendered.append((task, original(rows, task))) or rendered[-1][1]
    loss = MaskedInfoNCELoss(model)
    loss(*batch_of(make_pairs(2)).values())
    queries = {text for task, texts in rendered if task == "query" for text in texts}
    documents = {text for task, texts in rendered if task == "document" for text in texts}
    expected = original([_row(make_pairs(2)[i]) for i in range(2)], "query")
    assert queries == set(expected) and any("Find it.\nred thing 0" in text for text in queries)
    assert len(documents) == 2 and not queries & documents


def _row(row):
    from hf_mmembed.data.pairs import query_of
    from hf_mmembed.model.rows_mmembed import row_of_conversation

    return row_of_conversation(as_messages(query_of(row)), 0)


def test_not_a_number_names_the_rows(fresh):
    model = fresh()
    loss = MaskedInfoNCELoss(model, mini_batch_size=2)
    sides, facts = batch_of(make_pairs(6), [5, 1, 2]).values()
    original = model.forward

    def broken(features, **kwargs):
        output = original(features, **kwargs)
        long = features["attention_mask"].sum(dim=1)
        output["sentence_embedding"] = output["sentence_embedding"].masked_fill(
            (long == long.max())[:, None], torch.nan
        )
        return output

    model.forward = broken
    with pytest.raises(NonFiniteLossError, match="an embedding of . rows is NaN or infinite: rows") as caught:
        loss(sides, facts)
    assert set(caught.value.rows) <= {5, 1, 2}


def test_out_of_memory_is_answered_by_smaller_chunks(fresh, caplog):
    loss = MaskedInfoNCELoss(fresh(), mini_batch_size=5)
    sides, facts = batch_of(make_pairs(6)).values()
    loss(sides, facts)
    loss.halve_chunks()
    assert loss.chunk_size == 3
    loss(sides, facts)
    loss.halve_chunks()
    loss(sides, facts)
    loss.halve_chunks()
    assert loss.chunk_size == 1
    loss(sides, facts)
    with pytest.raises(RuntimeError, match="a single input"):
        loss.halve_chunks()


def test_token_budget_bounds_a_chunk(fresh):
    loss = MaskedInfoNCELoss(fresh(), mini_batch_num_tokens=150)
    sides, _ = batch_of(make_pairs(12)).values()
    for side in sides:
        planned = loss._planned(side)
        tokens = loss._estimate_tokens(planned["conversations"], {})
        assert sorted(i for chunk in planned["chunks"] for i in chunk) == list(range(len(tokens)))
        for chunk in planned["chunks"]:
            assert len(chunk) == 1 or len(chunk) * max(tokens[i] for i in chunk) <= 150


def test_temperature_must_be_positive(fresh):
    with pytest.raises(ValueError, match="temperature is 0"):
        MaskedInfoNCELoss(fresh(), temperature=0)
