from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard, ModelCardData
from jinja2 import UndefinedError
from sentence_transformers.base.model_card import generate_model_card
from transformers.modelcard import TrainingSummary

from hf_mmembed.hub.card import card_of, metadata_errors, render_card, template_folder
from hf_mmembed.hub.golden import GOLDEN_INPUTS, golden_pictures
from hf_mmembed.sentence_transformer import MMEmbedder

CARDS = Path(__file__).parents[2] / "model_cards"


@pytest.mark.parametrize("card", sorted(CARDS.glob("*.md")), ids=lambda path: path.name)
def test_every_committed_card_has_valid_metadata(card):
    assert metadata_errors(card.read_text(encoding="utf-8")) == []


def test_the_card_of_a_converted_model_says_what_it_is_and_its_code_runs(checkpoint, monkeypatch):
    card = card_of(checkpoint, repo_id="org/my-embedder")
    assert "not trained for embedding" in card and "## How it was made" not in card and "## Scores" not in card
    snippets = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(snippets) == 2
    for code in snippets:
        assert '"org/my-embedder"' in code
        exec(compile(code.replace("org/my-embedder", str(checkpoint)), "card", "exec"), {})


def test_the_card_of_a_trained_model_reports_what_was_run(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    config |= {"base_model": "Qwen/Qwen2-VL-2B-Instruct", "base_revision": "895c3a49bc3fa70a340399125c650a463535e71c"}
    (checkpoint / "config.json").write_text(json.dumps(config))
    (checkpoint / "README.md").write_text(str(ModelCard.from_template(ModelCardData(license="apache-2.0"))))
    training = {"datasets": ["TIGER-Lab/MMEB-train"], "seed": 7, "hours": 3.5, "hardware": "8 x H100", "steps": 1500}
    (checkpoint / "training.json").write_text(json.dumps(training))
    (checkpoint / "mining.json").write_text(json.dumps({"strategy": "saha", "clusters": 12, "rules": {"rank": 0.2}}))
    (checkpoint / "recipe.yaml").write_text("strategy: saha\nk: 15\n")
    (checkpoint / ".eval_results").mkdir()
    (checkpoint / ".eval_results" / "mmeb.yaml").write_text(
        "- dataset: {id: TIGER-Lab/MMEB-eval, task_id: ImageNet-1K/test}\n  value: 54.2\n  notes: 1000 queries\n"
    )
    card = card_of(checkpoint, repo_id="org/tuned")
    for fact in (
        "8 x H100",
        "| seed | 7 |",
        "| clusters | 12 |",
        "strategy: saha",
        "ImageNet-1K/test | 54.2",
        "895c3a49bc3f",
    ):
        assert fact in card, fact
    assert "not trained for embedding" not in card and "Zero-shot:" not in card
    head = card.split("---")[1]
    assert "license: apache-2.0" in head and "base_model: Qwen/Qwen2-VL-2B-Instruct" in head
    assert "base_model_relation: finetune" in head and "- TIGER-Lab/MMEB-train" in head


def test_the_card_of_an_adapter_over_the_shipped_model_runs(tmp_path, capsys):
    from peft import LoraConfig

    from hf_mmembed import tiny
    from hf_mmembed.cli.main import main

    model, adapter = MMEmbedder(tiny.checkpoint_path(), device="cpu"), tmp_path / "mmembed-tiny-saha"
    model.add_adapter(LoraConfig(r=2, target_modules=r".*language_model.*\.q_proj", init_lora_weights=False))
    model.save_pretrained(str(adapter), create_model_card=False)
    with pytest.raises(SystemExit) as stop:
        main(["card", str(adapter), "org/mmembed-tiny-saha"])
    card = capsys.readouterr().out
    assert stop.value.code == 0 and card == card_of(adapter, repo_id="org/mmembed-tiny-saha")
    assert "adapter over `mmembed-tiny`:" in card and "license: apache-2.0" in card and str(tmp_path) not in card
    assert str(tiny.checkpoint_path()) not in card and "| adapter | LORA, rank 2" in card
    whole, with_peft = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    expected, zero_shot = model.encode_query(["a red circle"]), MMEmbedder(tiny.checkpoint_path(), device="cpu")
    for code in (whole, with_peft):
        names: dict = {}
        exec(compile(code.replace("org/mmembed-tiny-saha", str(adapter)), "card", "exec"), names)
        if code == whole:
            found = names["model"].encode_query(["a red circle"])
        else:
            batch = names["processor"](text=["a red circle"], task="query", return_tensors="pt")
            found = names["model"](**batch).embeddings.detach().numpy()
        assert np.abs(found - expected).max() < 1e-5
    assert np.abs(zero_shot.encode_query(["a red circle"]) - expected).max() > 1e-3


def test_a_card_that_somebody_wrote_is_kept(checkpoint):
    written = "---\nlibrary_name: transformers\npipeline_tag: feature-extraction\ntags: [mine]\n---\n# Mine\n"
    (checkpoint / "README.md").write_text(written)
    assert card_of(checkpoint, repo_id="org/x") == written


@pytest.mark.parametrize(
    "fields",
    [
        "license: mit",
        "library_name: keras",
        "pipeline_tag: image-text-to-text",
        "metrics: recall\ndatasets: org/pairs\ntags: mine\nlicense: [mit]",
        "widget:\n- text: a\nthumbnail: https://x.org/a.png\nextra_gated_prompt: agree\nnew_version: org/y\ninference: false",
        "co2_eq_emissions: {emissions: 3}\nmodel-index:\n- name: m\n  results: []",
        "license: other",
        "base_model: [org/a, gpt2]\nbase_model_relation: merge",
        "# no field",
        "base_model:",
    ],
)
def test_a_written_card_may_hold_what_the_hub_takes(tmp_path, fields):
    written = f"---\n{fields}\n---\n# Mine\n"
    (tmp_path / "README.md").write_text(written)
    assert card_of(tmp_path, repo_id="org/x") == written


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("license: Apache 2.0", "license is 'Apache 2.0'; .* such as apache-2.0"),
        ("license: [mit, Apache 2.0]", "license is 'Apache 2.0'"),
        ("base_model: ./local", "base_model is './local'; .* the id of a model there"),
        ("base_model: [org/a, runs/a/b]", "base_model is 'runs/a/b'"),
        ("language: no", "language is False to YAML, .* put it in quotes"),
        ("pipeline_tag: [a]", r"pipeline_tag is \['a'\].* takes text; "),
        ("tags: 3\nlicense: 2.0", "tags is 3.* license is 2.0"),
        ("license: [mit", "cannot be read"),
        ("- mit", "should be a dict"),
    ],
)
def test_a_written_card_that_the_hub_would_refuse_is_refused(tmp_path, fields, message):
    (tmp_path / "README.md").write_text(f"---\n{fields}\n---\n# Mine\n")
    with pytest.raises(ValueError, match=f"(?s){message}"):
        card_of(tmp_path, repo_id="org/x")


HEAD = "---\nlibrary_name: sentence-transformers\npipeline_tag: sentence-similarity\ntags: [mine]\n---\n"


@pytest.mark.parametrize(
    "words",
    [
        "# Mine\n## Carbon\n[More Information Needed]\n",
        "# Mine\nThis is a [sentence-transformers](https://www.SBERT.net) model.\n",
        "# Mine\nIt was converted by hf-mmembed and not trained for embedding.\n",
    ],
)
def test_words_of_a_tool_make_no_card_generated(checkpoint, words, caplog):
    (checkpoint / "README.md").write_text(HEAD + words)
    assert card_of(checkpoint, repo_id="org/x") == HEAD + words and not caplog.text


def test_what_convert_wrote_is_kept_once_its_mark_is_deleted(checkpoint, caplog):
    written = (checkpoint / "README.md").read_text()
    [mark] = [line for line in written.splitlines() if "delete this line to keep" in line]
    (checkpoint / "README.md").write_text(changed := written.replace(mark, "") + "\nOnly for ACME.\n")
    assert card_of(checkpoint, repo_id="org/x") == changed
    caplog.clear()
    (checkpoint / "README.md").write_text(written + "\nOnly for ACME.\n")
    rendered = card_of(checkpoint, repo_id="org/x")
    assert "ACME" not in rendered and "without anything that was added by hand" in caplog.text and mark in caplog.text
    caplog.clear()
    (checkpoint / "README.md").write_text(rendered)
    assert card_of(checkpoint, repo_id="org/x") == rendered and "by hand" not in caplog.text


def test_cards_of_libraries_are_replaced_with_a_warning(checkpoint, caplog):
    for write in (_card_of_peft, _card_of_sentence_transformers, _card_of_a_trainer):
        (checkpoint / "README.md").write_text(write(checkpoint))
        caplog.clear()
        assert card_of(checkpoint, repo_id="org/x").count("# x\n") == 1, write.__name__
        assert "was written by a tool" in caplog.text, write.__name__


def _card_of_peft(folder):
    return str(ModelCard.from_template(ModelCardData(library_name="peft")))


def _card_of_sentence_transformers(folder):
    return generate_model_card(MMEmbedder(folder, device="cpu"))


def _card_of_a_trainer(folder):
    return TrainingSummary("name", tags="generated_from_trainer", hyperparameters={}).to_model_card()


def test_the_card_of_a_unified_model_opens_it_with_its_code(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    config |= {"model_type": "mmembed_unified", "head": "mlp", "base_model": None}
    (checkpoint / "config.json").write_text(json.dumps(config))
    card = card_of(checkpoint, repo_id="org/x")
    assert "trust_remote_code=True" in card and "No remote code" not in card and "None" not in card
    assert "`qwen2_vl` with a head" in card and "| head | `mlp` |" in card and "head was **not trained" in card
    (checkpoint / "training.json").write_text(json.dumps({"steps": 3}))
    assert "not trained" not in card_of(checkpoint, repo_id="org/x")
    config |= {"base_model": "org/reasoner", "base_revision": "0123456789abcdef"}
    (checkpoint / "config.json").write_text(json.dumps(config))
    card = card_of(checkpoint, repo_id="org/x")
    assert "base_model: org/reasoner" in card and "`org/reasoner` (revision `0123456789ab`)" in card


@pytest.mark.parametrize("content", ["", " \n"])
def test_an_empty_card_is_none(checkpoint, content, caplog):
    """A shell empties the file it redirects into before the command starts."""
    (checkpoint / "README.md").unlink()
    expected = card_of(checkpoint, repo_id="org/x")
    caplog.clear()
    (checkpoint / "README.md").write_text(content)
    assert card_of(checkpoint, repo_id="org/x") == expected
    assert "metadata block" not in caplog.text


def test_a_rendered_card_says_how_to_keep_a_change(checkpoint):
    rendered = card_of(checkpoint, repo_id="org/x")
    [marker] = [line for line in rendered.splitlines() if line.startswith("<!--")]
    assert "delete this line to keep" in marker
    changed = rendered.replace(marker, "") + "Mine.\n"
    (checkpoint / "README.md").write_text(changed)
    assert card_of(checkpoint, repo_id="org/x") == changed


def test_a_base_without_a_hub_id_is_named_for_what_it_is(checkpoint, caplog):
    (checkpoint / "README.md").unlink()
    card = card_of(checkpoint, repo_id="org/x")
    assert "base model `qwen2_vl`, a local directory" in card and "base_model" not in card.split("---")[1]
    assert "'qwen2_vl'" in caplog.text and "base_model" in caplog.text
    config = json.loads((checkpoint / "config.json").read_text())
    caplog.clear()
    (checkpoint / "config.json").write_text(json.dumps(config | {"base_model": "org/base"}))
    assert "a local directory" not in card_of(checkpoint, repo_id="org/x") and not caplog.text


def test_the_card_of_an_embedder_made_of_the_shipped_model_names_it(tmp_path, caplog):
    from hf_mmembed import tiny

    made = {"model_type": "mmembed", "base_model": "generative", "readout": "final", "pooling": "last"}
    made["backbone_config"] = json.loads((tiny.generative_path() / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(made))
    card = card_of(tmp_path, repo_id="org/x")
    assert "generative`" not in card and "license: apache-2.0" in card.split("---")[1] and not caplog.text
    assert "`apache-2.0`, inherited from the base model `mmembed-tiny`." in card
    made["backbone_config"]["text_config"]["vocab_size"] += 1
    (tmp_path / "config.json").write_text(json.dumps(made))
    assert "base model `generative`, a local directory" in card_of(tmp_path, repo_id="org/x")


def test_a_missing_fact_is_an_error_and_never_a_gap():
    with pytest.raises(UndefinedError):
        render_card("embedder.md.jinja", {"metadata": {}, "marker": "", "name": "x"})


def test_templates_are_found():
    assert (template_folder() / "embedder.md.jinja").is_file()


def test_the_cards_of_the_shipped_models_are_rendered_from_their_data():
    from hf_mmembed.tiny.card import render_saha_card, render_tiny_card

    for name, card in (("mmembed-tiny", render_tiny_card()), ("mmembed-tiny-saha", render_saha_card())):
        assert card == (CARDS / f"{name}.md").read_text(encoding="utf-8"), "run `hf-mmembed tiny card`"


def test_golden_inputs_cover_what_engines_get_wrong(embedder):
    assert len(GOLDEN_INPUTS) == 16
    assert {tuple(sorted(set(item) - {"task"})) for item in GOLDEN_INPUTS} >= {
        ("text",), ("image",), ("image", "text"), ("instruction", "text"), ("image", "instruction", "text"),
    }  # fmt: skip
    assert {item["task"] for item in GOLDEN_INPUTS} == {"query", "document"}
    limit = MMEmbedder(embedder("qwen2_vl"), device="cpu").max_seq_length
    assert limit is None or limit > 400, "the golden inputs are to be read whole"
    pixels = b"".join(picture.tobytes() for picture in golden_pictures())
    assert hashlib.sha256(pixels).hexdigest()[:16] == "871e12a5765bc5e2"  # published vectors were made from these
