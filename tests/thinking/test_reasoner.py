from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from transformers import StopStringCriteria

from hf_mmembed import tiny
from hf_mmembed.memory import TokenBudget
from hf_mmembed.model import product_mmembed
from hf_mmembed.model.rows_mmembed import Row
from hf_mmembed.thinking.filling import think_about_pairs
from hf_mmembed.thinking.reasoner import LocalReasoner, PrecomputedReasoner, Settings, fingerprint, open_generative
from hf_mmembed.thinking.templates import load_templates
from hf_mmembed.thinking.traces import Trace, TraceStore


@pytest.fixture(scope="module")
def reasoner() -> LocalReasoner:
    return LocalReasoner(tiny.generative_path(), settings=Settings(6), batch_size=2, device="cpu")


PICTURE = Image.new("RGB", (32, 32), "red")
INPUTS = [
    "a red disc",
    {"image": PICTURE, "text": "What colour is it, and what else is there to say?"},
    {"image": PICTURE},
]


def test_it_thinks_on_the_best_device_there_is(monkeypatch):
    monkeypatch.setattr("hf_mmembed.thinking.reasoner.get_device_name", lambda: "meta", raising=False)
    assert LocalReasoner(tiny.generative_path()).model.device.type == "meta"


def test_batches_give_what_single_inputs_give(reasoner):
    together = reasoner.think(INPUTS, "qa")
    assert together == [trace for item in INPUTS for trace in reasoner.think([item], "qa")]
    assert all(1 <= trace.n_tokens <= 6 for trace in together)
    assert {trace.finish_reason for trace in together} <= {"stop", "length"}


def test_inputs_alike_in_length_share_a_batch_within_its_tokens(monkeypatch):
    reasoner = LocalReasoner(tiny.generative_path(), settings=Settings(6), batch_size=4, device="cpu")
    monkeypatch.setattr(reasoner, "_budget", TokenBudget(400))
    inputs = [f"disc {n} " * (150 if n in (1, 5) else 1) for n in range(7)]
    one_by_one = [trace for item in inputs for trace in reasoner.think([item], "qa")]
    shapes = []
    hook = reasoner.model.register_forward_pre_hook(
        lambda module, arguments, named: shapes.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    assert reasoner.think(inputs, "qa") == one_by_one
    hook.remove()
    prompts = [shape for shape in shapes if shape[1] > 1]
    assert [rows for rows, _ in prompts] == [1, 1, 4, 1] and max(tokens for _, tokens in prompts[2:]) < 200, prompts


def test_a_batch_that_does_not_fit_is_written_in_halves(reasoner, monkeypatch):
    monkeypatch.setattr(reasoner, "_budget", TokenBudget())
    sizes, generate = [], reasoner.model.generate

    def small(**batch):
        sizes.append(len(batch["input_ids"]))
        if sizes[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Simulated.")
        return generate(**batch)

    one_by_one = [trace for item in INPUTS for trace in reasoner.think([item], "qa")]
    monkeypatch.setattr(reasoner.model, "generate", small)
    assert reasoner.think(INPUTS, "qa") == one_by_one
    assert sizes == [2, 1, 1, 1]


def test_pictures_can_be_scaled_down_which_is_part_of_a_trace_s_origin(reasoner, generative):
    small, whole = (
        LocalReasoner(generative("qwen2_vl"), settings=Settings(2), longest_edge=edge, device="cpu")
        for edge in (32 * 32, None)
    )
    photo = Image.new("RGB", (320, 240), "red")
    rows = [Row((photo,), None)]
    assert small._batch(rows, [0])["input_ids"].shape[1] < whole._batch(rows, [0])["input_ids"].shape[1]
    assert json.loads(small.origin.settings) == json.loads(whole.origin.settings) | {"longest_edge": 1024}
    with pytest.raises(ValueError, match="longest_edge=1 does not fit that; give at least"):
        LocalReasoner(tiny.generative_path(), longest_edge=1, device="cpu")


def test_the_family_and_the_answer_are_read(reasoner):
    seen = []
    hook = reasoner.model.register_forward_pre_hook(
        lambda module, arguments, named: seen.append(reasoner.processor.tokenizer.decode(named["input_ids"][0])),
        with_kwargs=True,
    )
    reasoner.think(["a disc"], "qa", answers=["red"])
    hook.remove()
    assert "a disc" in seen[0] and "known to be: red" in seen[0] and "Answer the question." in seen[0]
    assert seen[0].rstrip().endswith("assistant")


def test_text_that_is_too_long_leaves_room_for_the_trace(reasoner):
    [trace] = reasoner.think(["word " * 5000], "content")
    assert trace.n_tokens >= 1


def always(reasoner, monkeypatch, *tokens: int) -> None:
    """Makes the model write these tokens, and the last of them forever."""
    step = iter(tokens)

    def forced(module, arguments, named, output):
        output.logits[...] = -1e4
        output.logits[..., next(step, tokens[-1])] = 1e4
        return output

    hook = reasoner.model.register_forward_hook(forced, with_kwargs=True)
    monkeypatch.setattr(reasoner, "_remove", hook.remove, raising=False)


def test_endless_generation_is_cut(reasoner, monkeypatch):
    word = reasoner.processor.tokenizer("red", add_special_tokens=False)["input_ids"][0]
    always(reasoner, monkeypatch, word)
    [trace] = reasoner.think(["a disc"], "qa")
    reasoner._remove()
    assert (trace.finish_reason, trace.n_tokens, trace.status) == ("length", 6, "cut")


def test_an_immediate_end_is_an_empty_trace(reasoner, monkeypatch):
    always(reasoner, monkeypatch, reasoner.processor.tokenizer.eos_token_id)
    [trace] = reasoner.think(["a disc"], "qa")
    reasoner._remove()
    assert (trace.raw, trace.status, trace.finish_reason, trace.text) == ("", "empty", "stop", "")


def test_the_vocabulary_is_searched_for_stop_words_once(monkeypatch):
    searched, search = [], StopStringCriteria.clean_tokenizer_vocab
    monkeypatch.setattr(
        StopStringCriteria,
        "clean_tokenizer_vocab",
        staticmethod(lambda *a, **kw: searched.append(a) or search(*a, **kw)),
    )
    reasoner = LocalReasoner(tiny.generative_path(), settings=Settings(2), batch_size=1, device="cpu")
    reasoner.think(["a disc", "a star"], "qa")
    assert len(searched) == 1


def test_stop_words_end_a_trace_and_are_no_part_of_it(monkeypatch):
    stopping = LocalReasoner(tiny.generative_path(), settings=Settings(30, stop=("<emb>",)), device="cpu")
    ids = stopping.processor.tokenizer("red <emb> more", add_special_tokens=False)["input_ids"]
    always(stopping, monkeypatch, *ids)
    [trace] = stopping.think(["a disc"], "qa")
    assert (trace.raw.strip(), trace.finish_reason) == ("red", "stop") and 1 <= trace.n_tokens < len(ids)


def test_sampling_repeats_with_its_seed_and_leaves_the_generator_alone():
    settings = Settings(6, temperature=1.0, seed=1)
    sampling = LocalReasoner(tiny.generative_path(), settings=settings, device="cpu")
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = sampling.think(INPUTS, "qa")
    assert torch.equal(torch.rand(3), expected)
    assert sampling.think(INPUTS, "qa") == first


def test_without_sampling_the_generator_is_not_touched(reasoner):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    reasoner.think(["a disc"], "qa")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("bad", [{"image": b"no picture"}, {"text": "x", "instruction": "word " * 3000}, "\ud800"])
def test_a_bad_input_is_named_by_its_place_among_all(reasoner, bad):
    with pytest.raises(ValueError, match=r"^inputs\[3\](: | is not valid Unicode)"):
        reasoner.think([*INPUTS, bad], "qa")


def test_an_answer_that_is_no_text_is_named(reasoner):
    with pytest.raises(ValueError, match=r"^the answer of inputs\[1\] is not valid Unicode"):
        reasoner.think(["a", "b"], "qa", answers=["red", "\ud800"])


def test_the_chat_template_counts_as_part_of_the_reasoner(generative, tmp_path):
    for file in generative("qwen2_vl").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    before = fingerprint(tmp_path)
    (tmp_path / "chat_template.json").write_text('{"chat_template": "x"}')  # where older checkpoints keep it
    assert fingerprint(tmp_path) != before


def test_origin_says_which_weights_and_settings(reasoner, generative):
    other = LocalReasoner(generative("qwen2_vl"), settings=Settings(6), device="cpu")
    assert other.origin.revision == fingerprint(generative("qwen2_vl")) != reasoner.origin.revision
    assert json.loads(reasoner.origin.settings) == {"max_new_tokens": 6, "temperature": 0, "stop": ["<emb>"]}


@pytest.mark.parametrize("family", ["qwen2_5_vl", "idefics3", "gemma3", "llava", "internvl"])
def test_every_family_thinks(family, generative):
    reasoner = LocalReasoner(generative(family), settings=Settings(3), device="cpu")
    assert all(1 <= trace.n_tokens <= 3 for trace in reasoner.think(["a", {"image": PICTURE, "text": "b"}], "qa"))


def test_no_room(generative):
    with pytest.raises(ValueError, match="max_new_tokens is 5000, .* reads only 2048"):
        LocalReasoner(generative("qwen2_vl"), settings=Settings(5000))


@pytest.mark.parametrize("wrong", [{"max_new_tokens": 0}, {"temperature": -1}, {"top_p": 0}])
def test_settings_out_of_range(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Settings(**wrong)


def test_precomputed(parrot, some_pairs, tmp_path):
    from hf_mmembed.data.pairs import query_of

    with TraceStore(tmp_path / "t.sqlite") as store:
        think_about_pairs(store, parrot, some_pairs, sides=["query"])
        precomputed = PrecomputedReasoner(store)
        queries = [query_of(row) for row in some_pairs]
        assert precomputed.think(queries, "qa") == parrot.think(queries, "content")
        assert precomputed.origin == parrot.origin
        with pytest.raises(ValueError, match=r"1 of 2 inputs have no trace, the first is inputs\[1\]"):
            precomputed.think([queries[0], "unknown"], "qa")
    assert PrecomputedReasoner({}).think([], "qa") == []
    assert isinstance(parrot.think(["a"], "qa")[0], Trace)


def test_a_reasoner_multiplies_as_an_embedder_does(generative, monkeypatch):
    monkeypatch.setattr(product_mmembed, "onednn_is_faster", lambda: True)
    model, _ = open_generative(generative("qwen2_vl"), load_templates())
    assert any(type(part) is product_mmembed.QuickLinear for part in model.modules())
