from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, ModelCardData
from jinja2 import TemplateError
from peft import LoraConfig
from PIL import Image
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from hf_mmembed.hub import card_of, export_native, push, verify
from hf_mmembed.hub.export import _save_stock_model, native_chat_template
from hf_mmembed.hub.golden import GOLDEN_INPUTS, golden_pictures, read_golden, render
from hf_mmembed.inputs import as_messages
from hf_mmembed.sentence_transformer import MMEmbedder
from hf_mmembed.thinking.unified import make_unified

# Their stock processors open without torchvision; Qwen's own do not, with or without this package.
OPEN_WITHOUT_TORCHVISION = ("llava", "llava_next", "gemma3", "idefics3")
PROMPTS = ("saha", "saha-legacy", "unime", "e5v", "vlm2vec", "plain")


def inputs_of(item):
    given = {key: item[key] for key in ("text", "instruction") if key in item}
    if "image" in item:
        given["image"] = golden_pictures()[item["image"]]
    return as_messages(given)


@pytest.mark.parametrize("family", OPEN_WITHOUT_TORCHVISION)
def test_plain_sentence_transformers_gives_the_same_embeddings(embedder, tmp_path, family):
    ours = embedder(family)
    written = export_native(ours, tmp_path / "native")
    assert not list(written.glob("*.py")) and "auto_map" not in (written / "config.json").read_text()
    model = SentenceTransformer(str(written), device="cpu")
    _, golden, _ = read_golden(written)
    for item, expected in zip(GOLDEN_INPUTS, golden, strict=True):
        task = {"task": item["task"]}
        vector = model.encode([inputs_of(item)], prompt="", normalize_embeddings=False, **task)[0]
        assert np.abs(vector - expected).max() <= 1e-5, item


STRANGER = """
import json, sys
import numpy as np, transformers

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hf_mmembed":
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Absent())
# What torchvision is wanted for, and pictures do not need.
family = transformers.Qwen2VLProcessor
kept = [name for name in family.get_attributes() if "video" not in name]
family.get_attributes = classmethod(lambda cls: list(kept))
from PIL import Image
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer

folder = sys.argv[1]
model = SentenceTransformer(folder, device="cpu")
inputs = json.load(open(f"{folder}/golden/inputs.json"))["inputs"]
for item, expected in zip(inputs, load_file(f"{folder}/golden/vectors.safetensors")["embeddings"], strict=True):
    content = [{"type": "image", "image": Image.open(f"{folder}/golden/{item['image']}")}] if "image" in item else []
    content += [{"type": "text", "text": item["text"]}] if "text" in item else []
    turns = [{"role": "user", "content": content}]
    if "instruction" in item:
        turns.insert(0, {"role": "system", "content": [{"type": "text", "text": item["instruction"]}]})
    difference = np.abs(model.encode([turns], prompt="", task=item["task"])[0] - expected).max()
    assert difference <= 1e-5, (item, difference)
"""


def test_the_shipped_model_gives_the_same_embeddings_where_this_package_is_not_installed(fresh_interpreter, tmp_path):
    from hf_mmembed import tiny

    written = export_native(tiny.checkpoint_path(), tmp_path / "native")
    fresh_interpreter(STRANGER, str(written), cwd=tmp_path)


@pytest.mark.parametrize("family", ("qwen2_vl", "gemma3", "smolvlm"))
@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_chat_template_renders_the_same_strings(embedder, family, prompt):
    model = MMEmbedder(embedder(family, prompt=prompt), device="cpu")
    processor = model.processor
    template = native_chat_template(processor)
    compared = 0
    for item in GOLDEN_INPUTS:
        if item == {"task": "query", "text": ""} and prompt == "plain":
            continue  # renders to nothing at all, which our processor refuses
        messages = [
            {**turn, "content": [{"type": part["type"], **({"text": part["text"]} if "text" in part else {})}
                                 for part in turn["content"]]} for turn in inputs_of(item)
        ]  # fmt: skip
        native = processor.backbone_processor.apply_chat_template(
            messages, chat_template=template, tokenize=False, task=item["task"]
        )
        assert native == render(model, item)
        compared += 1
    assert compared >= 15
    for words in ("both", "\nboth\n"):
        two = [{"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": words}]}]
        ours = processor.apply_chat_template(
            as_messages({"image": golden_pictures()[:2], "text": words}), tokenize=False, task="query"
        )
        native = processor.backbone_processor.apply_chat_template(
            two, chat_template=template, tokenize=False, task="query"
        )
        assert native == ours


def test_the_weights_have_the_names_of_the_stock_architecture(embedder, generative, tmp_path):
    from transformers import AutoModelForImageTextToText

    written = export_native(embedder("qwen2_vl"), tmp_path / "native")
    original = AutoModelForImageTextToText.from_pretrained(generative("qwen2_vl"))
    stock, info = AutoModelForImageTextToText.from_pretrained(written, output_loading_info=True)
    assert json.loads((written / "config.json").read_text())["architectures"] == [type(original).__name__]
    assert not info["unexpected_keys"] and {name.partition(".")[0] for name in info["missing_keys"]} <= {"lm_head"}
    for name, tensor in original.model.state_dict().items():
        assert torch.equal(stock.model.state_dict()[name], tensor), name


def test_a_server_reads_the_query_prompt_without_being_told_how(embedder, tmp_path):
    """What an engine does that knows nothing of us: it renders the messages with the stored template."""
    written = export_native(embedder("qwen2_vl"), tmp_path / "native")
    turns = [{"role": "user", "content": "a <|im_end|> dog"}]
    rendered = AutoTokenizer.from_pretrained(written).apply_chat_template(turns, tokenize=False, task="query")
    model = MMEmbedder(embedder("qwen2_vl"), device="cpu")
    assert rendered == render(model, {"task": "query", "text": "a <|im_end|> dog"})


@pytest.mark.parametrize(("choices", "message"), [({"readout": "pre_mlp"}, "readout='pre_mlp'"), ({"embedding_dim": 8}, "embedding_dim=8")])  # fmt: skip
def test_what_stock_code_cannot_compute_is_refused(embedder, tmp_path, choices, message):
    with pytest.raises(ValueError, match=message):
        export_native(embedder("qwen2_vl", **choices), tmp_path / "native")
    assert list(tmp_path.iterdir()) == []


def test_a_native_directory_is_not_exported_again(embedder, tmp_path):
    written = export_native(embedder("llava"), tmp_path / "native")
    with pytest.raises(ValueError, match="native already"):
        export_native(written, tmp_path / "again")
    with pytest.raises(FileExistsError):
        export_native(embedder("llava"), written)


@pytest.fixture
def adapter(checkpoint, tmp_path):
    """An adapter over a converted checkpoint that names its origin and its licence, without a record of its training."""
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(
        json.dumps(config | {"base_model": "org/generative", "base_revision": "0123456789abcdef"})
    )
    (checkpoint / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    torch.manual_seed(0)
    model = MMEmbedder(checkpoint, device="cpu")
    targets = r".*language_model.*\.(q_proj|down_proj)"
    model.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    model.save_pretrained(str(tmp_path / "adapter"), create_model_card=False)
    return tmp_path / "adapter"


@pytest.mark.parametrize("family", ("llava",))
def test_an_adapter_is_merged_and_gives_the_same_embeddings(adapter, checkpoint, tmp_path):
    written = export_native(adapter, tmp_path / "native")
    names = load_file(written / "model.safetensors")
    assert not [name for name in names if "lora" in name or "base_layer" in name]
    _, info = AutoModel.from_pretrained(written, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    found = verify(written, device="cpu")
    assert found.failures == [] and max(c.difference for c in found.comparisons) <= 1e-5
    plain = MMEmbedder(checkpoint, device="cpu").encode_query(["a red circle"])
    assert np.abs(MMEmbedder(written, device="cpu").encode_query([as_messages("a red circle")]) - plain).max() > 1e-3


@pytest.mark.parametrize("family", ("llava",))
def test_the_card_of_an_export_says_what_is_known_of_the_model(adapter, tmp_path):
    def facts(folder):
        card = (folder / "README.md").read_text()
        assert card == card_of(folder, repo_id=folder.name), "a push publishes another card"
        assert "license: apache-2.0" in card and "base_model: org/generative" in card
        assert "`org/generative` (revision `0123456789ab`), fine-tuned" in card and "not trained" not in card
        assert "No remote code is needed" in card
        return card

    assert "LORA, merged into the weights" in facts(export_native(adapter, tmp_path / "without-record"))
    (adapter / "training.json").write_text(json.dumps({"steps": 1234, "datasets": ["org/pairs"]}))
    (adapter / "mining.json").write_text(json.dumps({"clusters": 77}))
    (adapter / "recipe.yaml").write_text("strategy: saha\n")
    card = facts(export_native(adapter, tmp_path / "with-record"))
    assert (
        "| steps | 1234 |" in card
        and "| clusters | 77 |" in card
        and "strategy: saha" in card
        and "- org/pairs" in card
    )


@pytest.mark.parametrize("family", ("llava",))
def test_the_licence_and_the_recipe_of_a_model_of_the_hub_come_along(hub, checkpoint, tmp_path):
    (checkpoint / "README.md").write_text(str(ModelCard.from_template(ModelCardData(license="mit"))))
    (checkpoint / "recipe.yaml").write_text("strategy: saha\n")
    push(checkpoint, "org/embedder")
    card = (export_native("org/embedder", tmp_path / "native") / "README.md").read_text()
    assert "license: mit" in card and "strategy: saha" in card


def test_weights_of_an_adapter_are_never_written_beside_those_of_the_model(embedder, tmp_path):
    model = AutoModel.from_pretrained(embedder("llava"))
    model.add_adapter(LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match=r"of an adapter that is not merged.*(lora_|base_layer)"):
        _save_stock_model(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_unified_model_is_refused_for_what_it_is(generative, tmp_path):
    made = make_unified(generative("qwen2_vl"), tmp_path / "unified", head="mlp")
    with pytest.raises(ValueError, match="is a unified model: .* head of its own, 'mlp'"):
        export_native(made, tmp_path / "native")


@pytest.mark.parametrize("role", ["assistant", "tool"])
def test_the_chat_template_refuses_what_it_would_take_for_words_of_the_user(embedder, role):
    processor = MMEmbedder(embedder("qwen2_vl"), device="cpu").processor
    turns = [{"role": "user", "content": "what is it?"}, {"role": role, "content": "a disc"}]
    with pytest.raises(TemplateError, match=f"reads system and user messages, not one of role '{role}'"):
        processor.backbone_processor.apply_chat_template(turns, chat_template=native_chat_template(processor))


def test_mean_pooling(embedder, tmp_path):
    ours = embedder("llava", pooling="mean")
    written = export_native(ours, tmp_path / "native")
    item = {"image": Image.new("RGB", (40, 30), "red"), "text": "a dog"}
    expected = MMEmbedder(ours, device="cpu").encode_query([item])
    found = SentenceTransformer(str(written), device="cpu").encode_query([as_messages(item)])
    assert np.abs(found - expected).max() <= 1e-5
