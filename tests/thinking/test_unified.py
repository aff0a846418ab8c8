from __future__ import annotations

import inspect
import shutil
import threading
from functools import cache

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.functional import cosine_similarity
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig

from hf_mmembed.model.heads_mmembed import HEADS, join_masks
from hf_mmembed.model.unified_mmembed import UnifiedConfig, UnifiedModel
from hf_mmembed.sentence_transformer import MMEmbedder
from hf_mmembed.thinking.reasoner import LocalReasoner, Settings
from hf_mmembed.thinking.thinker import Thinker
from hf_mmembed.thinking.unified import make_unified, open_unified
from tests.tiny_families import FAMILIES

PICTURE = Image.new("RGB", (32, 32), "red")
OPTIONS = {"self_init": {"layers": 1}}
# Of both kinds of attention that it has.
OPTIONS_OF_QWEN3_5 = {"self_init": {"layers": 2}}


@pytest.fixture(scope="session")
def unified(generative, tmp_path_factory):
    """`unified("qwen2_vl", "mlp")` is the directory of a checkpoint; do not write to it."""
    return cache(
        lambda family, head: make_unified(
            generative(family),
            tmp_path_factory.mktemp("unified") / family,
            head=head,
            head_options=(OPTIONS_OF_QWEN3_5 if family == "qwen3_5" else OPTIONS).get(head),
        )  # fmt: skip
    )


def opened(directory):
    return AutoModel.from_pretrained(directory), AutoProcessor.from_pretrained(directory)


def batch_of(processor, trace=None):
    texts, images = ["a red disc", "blue", "one more, and longer than the others"], [None, PICTURE, None]
    return processor(text=texts, images=images, trace=trace, return_tensors="pt")


@pytest.mark.parametrize("family", FAMILIES)
def test_self_init_begins_as_the_last_hidden_state(family, unified):
    model, processor = opened(unified(family, "self_init"))
    batch = batch_of(processor, ["<think> x </think> y", None, "z"])
    inner = model.reasoner.base_model
    names = inspect.signature(inner.forward).parameters
    known = {name: value for name, value in batch.items() if name in names}
    with torch.no_grad():
        last = inner(**known).last_hidden_state[:, -1]  # padded on the left
        embeddings = model(**batch).embeddings
    assert cosine_similarity(embeddings, last).min() >= 0.9999


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "qwen3_5", "gemma3", "idefics3"])
def test_thinking_and_embedding_in_one_pass_is_reading_both(family, unified):
    model, processor = opened(unified(family, "self_init"))
    batch = batch_of(processor)
    output = model.think_and_embed(**batch, max_new_tokens=7)
    end = model.config.end_token_id
    assert output.trace_ids.shape[0] == 3 and (output.trace_ids == end).any(dim=1).all()
    for row in range(3):
        alone = {
            "input_ids": torch.cat([batch["input_ids"][row], output.trace_ids[row]]),
            "attention_mask": torch.cat([batch["attention_mask"][row], torch.ones_like(output.trace_ids[row])]),
        }
        length = batch["input_ids"].shape[1] + int((output.trace_ids[row] == end).int().argmax()) + 1
        real = alone["attention_mask"][:length].bool()
        ids = alone["input_ids"][:length][real][None]
        images = [name for name in batch if name.startswith(("pixel", "image"))] if row == 1 else []
        with torch.no_grad():
            read = model(
                input_ids=ids, attention_mask=torch.ones_like(ids), **{name: picked(batch[name], row) for name in images},
                **({"mm_token_type_ids": types(model, ids)} if "mm_token_type_ids" in batch else {}),
                **({"token_type_ids": types(model, ids)} if "token_type_ids" in batch else {}),
            ).embeddings  # fmt: skip
        assert cosine_similarity(output.embeddings[row][None], read).item() > 0.9999


@pytest.mark.parametrize("family", ["qwen2_vl", "llava"])
def test_a_unified_checkpoint_thinks_like_its_reasoner(family, generative, unified):
    inputs = ["a red disc", {"image": PICTURE, "text": "which?"}]
    own, base = (
        LocalReasoner(path, settings=Settings(6), device="cpu")
        for path in (unified(family, "mlp"), generative(family))
    )
    assert own.think(inputs, "qa") == base.think(inputs, "qa")
    assert own._ends == base._ends and own.origin != base.origin


def test_a_unified_checkpoint_thinks_for_the_embedder_that_it_is(unified):
    directory = unified("qwen2_vl", "self_init")
    embedder = MMEmbedder(directory, device="cpu")
    embedder.thinker = Thinker(LocalReasoner(directory, settings=Settings(6, stop=()), device="cpu"))
    vector, trace = embedder.encode_query("a red disc", think="always", task_family="content", return_traces=True)
    model, processor = opened(directory)
    output = model.think_and_embed(**processor(text=["a red disc"], return_tensors="pt"), max_new_tokens=6)
    written = processor.tokenizer.decode(output.trace_ids[0])
    assert trace.raw and written.startswith(trace.raw)
    read = embedder.encode_query("a red disc", traces=written.removesuffix(processor.tokenizer.eos_token))
    assert cosine_similarity(torch.tensor(read)[None], torch.tensor(vector)[None]).item() > 0.9999


def picked(tensor, row):
    """The tensors of the only picture in the batch; some families have them per row."""
    return tensor[row : row + 1] if tensor.shape[0] == 3 else tensor


def types(model, ids):
    return (ids == model.config.backbone_config.image_token_id).long()


def force(model, *tokens):
    steps = iter(tokens)

    def forced(module, arguments, output):
        output.logits[...] = -1e4
        output.logits[..., next(steps, tokens[-1])] = 1e4
        return output

    return model.reasoner.register_forward_hook(forced)


def test_a_trace_without_end_is_ended_at_the_limit(unified):
    model, processor = opened(unified("qwen2_vl", "self_init"))
    hook = force(model, 5)
    output = model.think_and_embed(**processor(text=["a"], return_tensors="pt"), max_new_tokens=4)
    hook.remove()
    assert output.trace_ids[0].tolist() == [5] * 4 + [model.config.end_token_id] and output.cut.all()


def test_a_trace_that_ends_by_itself(unified):
    model, processor = opened(unified("qwen2_vl", "last_token"))
    end = model.config.end_token_id
    hook = force(model, 5, 6, end)
    batch = processor(text=["a"], return_tensors="pt")
    output = model.think_and_embed(**batch, max_new_tokens=50)
    hook.remove()
    assert output.trace_ids[0].tolist() == [5, 6, end] and not output.cut.any()
    ids = torch.cat([batch["input_ids"], output.trace_ids], dim=1)
    read = model(input_ids=ids, attention_mask=torch.ones_like(ids)).embeddings
    assert torch.allclose(read, output.embeddings, atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_only_the_head_learns_and_padding_does_not_count(head, unified):
    model, processor = opened(unified("qwen2_vl", head))
    model.train()
    batch = batch_of(processor, ["x", "y", None])
    embeddings = model(**batch).embeddings
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(3), atol=1e-5)
    alone = model(**processor(text=["a red disc"], trace=["x"], return_tensors="pt")).embeddings
    assert torch.allclose(embeddings[:1], alone, atol=1e-5)
    embeddings[:, 0].sum().backward()
    assert all(parameter.grad is None for parameter in model.reasoner.parameters())
    assert any(parameter.grad.abs().sum() > 0 for parameter in model.head.parameters())


ALONE = """
import sys
sys.modules["hf_mmembed"] = None
import torch
from transformers import AutoModel, AutoProcessor
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
output = model.think_and_embed(**processor(text=["a disc"], return_tensors="pt"), max_new_tokens=5)
print(output.trace_ids.tolist(), *(f"{value:.5f}" for value in output.embeddings[0].tolist()))
"""


def test_opens_where_this_package_is_not_installed(unified, fresh_interpreter, tmp_path):
    directory = unified("qwen2_vl", "self_init")
    model, processor = opened(directory)
    expected = model.think_and_embed(**processor(text=["a disc"], return_tensors="pt"), max_new_tokens=5)
    ids, _, numbers = fresh_interpreter(ALONE, str(directory), cwd=tmp_path).strip().splitlines()[-1].partition("]] ")
    assert f"{ids}]]" == str(expected.trace_ids.tolist())
    assert torch.allclose(torch.tensor([float(n) for n in numbers.split()]), expected.embeddings[0], atol=1e-4)


def test_two_threads_do_not_read_each_others_states(unified):
    model, processor = opened(unified("qwen2_vl", "self_init"))
    one, other = (processor(text=[text], return_tensors="pt") for text in ("a red disc", "a box that is blue"))
    expected = model(**one).embeddings
    found = []

    def meanwhile(module, arguments):
        hook.remove()
        thread = threading.Thread(target=lambda: found.append(model(**other).embeddings))
        thread.start()
        thread.join()

    hook = model.reasoner.get_decoder().layers[0].register_forward_pre_hook(meanwhile)
    assert torch.equal(model(**one).embeddings, expected) and torch.equal(found[0], model(**other).embeddings)


def test_a_trace_ends_where_the_reasoner_reads_no_further(unified):
    model, processor = opened(unified("qwen2_vl", "last_token"))
    batch = processor(text=["a"], return_tensors="pt")
    length, text_config = batch["input_ids"].shape[1], model.config.backbone_config.get_text_config()
    text_config.max_position_embeddings = length + 4
    hook = force(model, 5)
    output = model.think_and_embed(**batch, max_new_tokens=50)
    hook.remove()
    assert output.trace_ids[0].tolist() == [5] * 3 + [model.config.end_token_id] and output.cut.all()
    text_config.max_position_embeddings = length + 1
    with pytest.raises(ValueError, match=f"take {length} of the {length + 1} tokens"):
        model.think_and_embed(**batch)


def test_saved_again_it_is_the_same(unified, tmp_path):
    model, processor = opened(unified("qwen2_vl", "qformer"))
    model.save_pretrained(tmp_path / "again")
    batch = batch_of(processor, ["x", "y", None])
    assert torch.equal(AutoModel.from_pretrained(tmp_path / "again")(**batch).embeddings, model(**batch).embeddings)


def test_as_an_embedder(unified):
    directory = unified("qwen2_vl", "self_init")
    embedder = open_unified(directory, device="cpu")
    model, processor = opened(directory)
    turns = [{"role": "user", "content": "a red disc"}, {"role": "assistant", "content": "x"}]
    expected = model(**processor(text=["a red disc"], trace=["x"], return_tensors="pt")).embeddings
    assert torch.allclose(embedder.encode([turns], convert_to_tensor=True), expected, atol=1e-5)
    trainable = {name.partition("head.")[1] for name, p in embedder.named_parameters() if p.requires_grad}
    assert trainable == {"head."}
    with pytest.raises(ValueError, match="no token embeddings.*use output_value='sentence_embedding'"):
        embedder.encode(["a red disc"], output_value="token_embeddings")


def test_it_says_what_it_was_made_of(generative, tmp_path, monkeypatch):
    base = generative("qwen2_vl")
    local = UnifiedConfig.from_pretrained(make_unified(base, tmp_path / "local", head="last_token"))
    assert (local.base_model, local.base_revision) == (base.name, None)
    assert str(base) not in (tmp_path / "local" / "config.json").read_text()
    monkeypatch.setattr("hf_mmembed.thinking.unified.local_checkpoint", lambda name: (base, "c0ffee"))
    hub = UnifiedConfig.from_pretrained(make_unified("org/reasoner", tmp_path / "hub", head="last_token"))
    assert (hub.base_model, hub.base_revision) == ("org/reasoner", "c0ffee")


def test_a_checkpoint_that_lacks_weights_is_refused(unified, tmp_path):
    shutil.copytree(unified("qwen2_vl", "mlp"), tmp_path / "broken")
    weights = load_file(tmp_path / "broken" / "model.safetensors")
    del weights["head.out.weight"]
    save_file(weights, tmp_path / "broken" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="1 weights are missing .* the first is 'head.out.weight'"):
        AutoModel.from_pretrained(tmp_path / "broken")


def test_fewer_dimensions(unified):
    model, processor = opened(unified("qwen2_vl", "mlp"))
    batch = batch_of(processor)
    whole = model(**batch).embeddings
    model.config.embedding_dim = 8
    assert torch.allclose(model(**batch).embeddings, torch.nn.functional.normalize(whole[:, :8], dim=1), atol=1e-6)


def test_wrong_choices(generative, unified, tmp_path):
    with pytest.raises(ValueError, match="read out by its head"):
        UnifiedConfig(pooling="mean")
    with pytest.raises(ValueError, match="copy 9 layers, but the reasoner has 2"):
        make_unified(generative("qwen2_vl"), tmp_path / "a", head_options={"layers": 9})
    with pytest.raises(ValueError, match="head is 'none'.*'self_init'"):
        make_unified(generative("qwen2_vl"), tmp_path / "a", head="none")
    assert not (tmp_path / "a").exists()
    with pytest.raises(FileExistsError, match="not an empty directory"):
        make_unified(generative("qwen2_vl"), unified("qwen2_vl", "mlp"))
    model, processor = opened(unified("qwen2_vl", "mlp"))
    processor.tokenizer.padding_side = "right"
    with pytest.raises(ValueError, match="padded on the right"):
        model.think_and_embed(**batch_of(processor))


def test_masks_of_steps_are_those_of_the_whole():
    total = 5
    whole = torch.ones(total, total, dtype=torch.bool).tril()[None, None]
    window = whole & ~torch.ones(total, total, dtype=torch.bool).tril(-3)
    steps = [(0, 3), (3, 4), (4, 5)]
    pieces = [window[:, :, start:end, max(0, end - 3) : end] for start, end in steps]
    assert torch.equal(join_masks(pieces, [3, 1, 1]), window)
    assert torch.equal(join_masks([whole[:, :, :3, :3], None, None], [3, 1, 1]), whole)
    additive = torch.zeros(1, 1, 3, 3).masked_fill(~whole[:, :, :3, :3], torch.finfo(torch.float32).min)
    assert torch.equal(join_masks([additive, None, None], [3, 1, 1]) == 0, whole)
    assert join_masks([None, None], [3, 1]) is None


def test_a_reasoner_whose_last_layers_share_their_keys_gets_no_head(generative, tmp_path):
    with pytest.raises(ValueError, match="the last 2 layers of the 'gemma4' reasoner share keys and values"):
        make_unified(generative("gemma4"), tmp_path / "unified", head="last_token")


def test_a_quantised_reasoner_gets_no_head(generative):
    reasoner = AutoModelForImageTextToText.from_pretrained(generative("qwen2_vl"))
    reasoner.config.quantization_config = BitsAndBytesConfig(load_in_4bit=True)  # as after opening it so
    with pytest.raises(ValueError, match="method 'bitsandbytes'"):
        UnifiedModel.from_reasoner(reasoner, head="last_token", end_token_id=1)
