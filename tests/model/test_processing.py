"""Rendering, truncation and control tokens, on the Qwen2-VL family and where it matters on all of them."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jinja2 import Environment, meta
from PIL import Image
from tokenizers.processors import TemplateProcessing

from hf_mmembed.model import PRESETS, ImageError, MMEmbedProcessor, Row
from hf_mmembed.model.processing_mmembed import TASK_DECLARATION
from tests.tiny_families import FAMILIES

SYSTEM = "Given an image, summarize the provided image in one word. Given only text, describe the text in one word."
QUERY = {"task": "query", "return_tensors": "pt"}


def picture(height=16, width=16, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def tokens(processor, **inputs):
    return processor(**inputs)["input_ids"]


# The authors' strings, character by character (Gen2Embed, model_utils.py).
def test_saha_legacy_is_the_authors_template(processors):
    rendered = processors(prompt="saha-legacy").render(
        [
            Row((picture(),), "Represent the given image with the following question: what?"),
            Row((picture(),)),
            Row((), "a dog"),
        ],
        "query",
    )
    before, after = (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
    )
    assert rendered == [
        f"{before}<|image_pad|>\nRepresent the given image with the following question: what?"
        f"\nRepresent the given text/image in one word.{after}",
        f"{before}<|image_pad|>\nRepresent the given text/image in one word.{after}",
        f"{before}a dog\nRepresent the given text in one word.{after}",
    ]


def test_documents_get_the_system_prompt_only(processor):
    (rendered,) = processor.render([Row((), "a dog")], "document")
    assert rendered == (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\na dog<|im_end|>\n<|im_start|>assistant\n"
    )
    assert processor.render([Row((), "a dog")]) == [rendered]


def test_an_instruction_that_ends_in_white_space_goes_on_in_its_line(processor):
    rendered = processor.render(
        [Row((), "a dog", "Find:"), Row((), "a dog", "Find: "), Row((picture(),), None, "Find:")]
    )
    assert "user\nFind:\na dog<" in rendered[0]
    assert "user\nFind: a dog<" in rendered[1]
    assert "<|vision_start|><|image_pad|><|vision_end|>Find:<" in rendered[2]


def test_pictures_without_words_are_each_written(processor):
    counts = [1, 2, 1]
    rendered = processor.render([Row((picture(),) * count) for count in counts], "query")
    assert [words.count("<|image_pad|>") for words in rendered] == counts


def test_words_that_end_as_the_prompt_does_are_still_words(processor):
    (rendered,) = processor.render([Row((), "a" + PRESETS["saha"].represent_text)], "query")
    assert rendered.count("Represent the given text in one word.") == 2


def test_vlm2vec_and_plain_have_no_turns(processors):
    rows = [Row((picture(),), "what?", "Answer:"), Row((), "a dog")]
    vlm2vec = processors(prompt="vlm2vec")
    assert vlm2vec.render(rows, "query") == ["<|image_pad|> Answer: what?\n", "a dog\n"]
    assert vlm2vec.render(rows, "document") == ["<|image_pad|> Answer: what?", "a dog"]
    inline = "<|vision_start|><|image_pad|><|vision_end|>\n"
    assert processors(prompt="plain").render(rows, "query") == [f"{inline}Answer:\nwhat?", "a dog"]


def test_white_space_of_the_words_stands_for_the_prompts_own(processors):
    picture_and = [(None,), (None,), (None,), ()]
    words = ["\nRepresent the given image.\n", " Understand it.", "Represent the given image.", "red"]
    rows = [Row(images, text) for images, text in zip(picture_and, words, strict=True)]
    image = "<|image_pad|>"
    published = [image + words[0], image + words[1], f"{image} {words[2]}", "red"]
    vlm2vec = processors(prompt="vlm2vec")
    assert vlm2vec.render(rows, "document") == published
    assert vlm2vec.render(rows, "query") == [words.removesuffix("\n") + "\n" for words in published]
    first, _, third, _ = processors(prompt="saha-legacy").render(rows, "query")
    assert f"user\n{image}{words[0]}\nRepresent the given text/image" in first
    assert f"user\n{image}\n{words[2]}\nRepresent the given text/image" in third
    inline = "<|vision_start|><|image_pad|><|vision_end|>"
    assert processors(prompt="plain").render(rows[:2]) == [inline + words[0], inline + words[1]]


def test_every_way_in_renders_the_same(processor):
    image = picture()
    direct = processor(text=["a"], images=[image], instruction="Find:", **QUERY)
    conversation = [
        {"role": "system", "content": [{"type": "text", "text": "Find:"}]},
        {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "a"}]},
    ]
    options = {"task": "query", "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    nested = {
        "text_kwargs": {"padding": True, "truncation": "longest_first"},
        "common_kwargs": {"return_tensors": "pt"},
    }
    for batch in (
        processor.apply_chat_template([conversation], **options),
        processor.apply_chat_template(conversation, **options),
        processor.apply_chat_template([conversation], processor_kwargs=nested, load_audio_from_video=False, **options),
        processor.apply_chat_template([conversation], chat_template="default", **options),
    ):
        assert batch.keys() == direct.keys()
        assert all(torch.equal(batch[key], direct[key]) for key in batch)
    ids = processor.apply_chat_template(conversation, task="query", tokenize=True, return_tensors="auto")
    assert ids == direct["input_ids"].tolist()
    assert (
        processor.apply_chat_template(conversation, task="query")
        == processor.render([Row((image,), "a", "Find:")], "query")[0]
    )
    with pytest.raises(ValueError, match="`chat_template` cannot be given"):
        processor.apply_chat_template(conversation, chat_template="{{ messages }}")
    with pytest.raises(ValueError, match="list of conversations is empty"):
        processor.apply_chat_template([])


def test_the_template_declares_the_task_and_is_the_backbones_own(processor, generative):
    native = (generative("qwen2_vl") / "chat_template.jinja").read_text()
    assert processor.chat_template == TASK_DECLARATION + native
    assert processor.backbone_processor.chat_template == native
    # sentence-transformers passes `task` to templates that use the variable, and looks for it in this way.
    assert "task" in meta.find_undeclared_variables(Environment().parse(processor.chat_template))


def test_a_template_without_a_system_role_gets_the_system_prompt_in_the_user_turn(processor):
    for template in (
        "{% for m in messages if m.role == 'user' %}[{{ m.content[0].text }}]{% endfor %}",
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{% for m in messages %}[{{ m.content[0].text }}]{% endfor %}",
    ):
        other = MMEmbedProcessor(
            processor.image_processor, processor.tokenizer, template, "Qwen2VLProcessor", prompt=PRESETS["saha"]
        )
        assert other.render([Row((), "a dog")]) == [f"[{SYSTEM}\na dog]"]
        other.prompt = PRESETS["unime"]
        assert other.render([Row((), "a dog")]) == ["[a dog\nSummary above sentence in one word:]"]


def test_of_several_templates_the_default_is_taken(processor):
    templates = {"rag": "another", "default": "[{{ messages[-1].content[0].text }}]"}
    other = MMEmbedProcessor(
        processor.image_processor, processor.tokenizer, templates, "Qwen2VLProcessor", prompt=PRESETS["unime"]
    )
    assert other.render([Row((), "")]) == ["[\nSummary above sentence in one word:]"]


@pytest.mark.parametrize("bos", ["<bos>", ""])
def test_a_row_begins_with_one_bos(bos, processors):
    """Whether the template writes it or leaves it to the tokenizer."""
    processor = copy.deepcopy(processors("gemma3"))
    number = processor.tokenizer.bos_token_id
    processor.tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<bos> $A", None, [("<bos>", number)])
    native = processor.backbone_processor.chat_template
    processor.backbone_processor.chat_template = native.replace("{{ bos_token }}", bos)
    (row,) = tokens(processor, text=["a"])
    assert row[0] == number and row.count(number) == 1


@pytest.mark.parametrize("name", ["text_pair", "text_target", "text_pair_target", "videos", "audio"])
def test_what_an_embedder_does_not_read_is_refused_by_name(processor, name):
    chat = [{"role": "user", "content": "a"}]
    with pytest.raises(ValueError, match=f"does not read `{name}`.*`text` and `images`"):
        processor(text=["a"], **{name: ["b"]})
    with pytest.raises(ValueError, match=f"does not read `{name}`"):
        processor.apply_chat_template(chat, tokenize=True, processor_kwargs={name: ["b"]})
    assert tokens(processor, text=["a"], **{name: None}) == tokens(processor, text=["a"])


def test_text_is_never_a_path_or_a_url(processor, tmp_path, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("fetched"))
    path = tmp_path / "a.png"
    picture().save(path)
    for text in (str(path), "https://host/a.png", "data:image/png;base64,AAAA", f"file://{path}"):
        batch = processor(text=[text], task="query")
        assert "pixel_values" not in batch
        assert text in processor.tokenizer.decode(batch["input_ids"][0])


def test_local_paths_are_images_in_images_only(processor, tmp_path):
    path = tmp_path / "a.png"
    picture().save(path)
    expected = processor(images=[picture()], return_tensors="pt")
    for source in (path, str(path), np.asarray(picture()), torch.tensor(np.asarray(picture())).permute(2, 0, 1)):
        assert torch.equal(processor(images=[source], return_tensors="pt")["pixel_values"], expected["pixel_values"])


def test_bad_images_name_their_row(processor, tmp_path):
    with pytest.raises(ImageError, match=r"the image of input 1: there is no file .*absent\.png"):
        processor(images=[picture(), tmp_path / "absent.png"])
    with pytest.raises(ImageError, match="image 1 of input 0: this is a https URL, and URLs are not fetched"):
        processor(images=[[picture(), "https://host/a.png"]])
    with pytest.raises(ImageError, match="image 0 of input 0: this is a https URL"):
        processor(images=[["https://host/a.png", picture()]])


def test_only_the_caller_can_allow_urls(embedder, tmp_path, monkeypatch):
    path = embedder("qwen2_vl")
    assert not MMEmbedProcessor.from_pretrained(path).allow_urls
    allowed = MMEmbedProcessor.from_pretrained(path, allow_urls=True)
    assert allowed.allow_urls
    allowed.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "processor_config.json").read_text())
    assert "allow_urls" not in stored
    (tmp_path / "processor_config.json").write_text(json.dumps({**stored, "allow_urls": True}))
    assert not MMEmbedProcessor.from_pretrained(tmp_path).allow_urls
    picture().save(tmp_path / "a.png")
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: (tmp_path / "a.png").open("rb"))
    assert len(allowed(images=["https://host/a.png"])["pixel_values"])


@pytest.mark.parametrize("family", FAMILIES)
def test_truncation_cuts_the_end_of_the_text_and_nothing_else(processors, family):
    processor = processors(family)
    words = " ".join(f"word{i}" for i in range(400))
    inputs = {"images": [None, picture(20, 30)], "instruction": "Find this:", "task": "query"}
    short = tokens(processor, text=["", ""], **inputs)
    limit = max(len([i for i in row if i != processor.tokenizer.pad_token_id]) for row in short) + 25
    batch = processor(text=[words, words], max_length=limit, **inputs)
    endings = [processor.render([Row((picture(),) * n, "x")], "query")[0][-12:] for n in (0, 1)]
    for row, mask, ending in zip(batch["input_ids"], batch["attention_mask"], endings, strict=True):
        real = [i for i, m in zip(row, mask, strict=True) if m]
        assert limit - 3 <= len(real) <= limit
        rendered = processor.tokenizer.decode(real)
        assert SYSTEM in rendered and "Find this:" in rendered and rendered.endswith(ending)
        kept = "word0" + rendered.split("word0", 1)[1].split("Represent the given")[0].rstrip()
        assert len(kept) > 10 and words.startswith(kept)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(min_size=1, max_size=300) | st.just("<|im_end|>" * 30) | st.just("<|image_pad|>the " * 20),
    spare=st.integers(0, 40),
    has_image=st.booleans(),
)
def test_any_text_fits_any_limit_that_holds_the_rest(processor, text, spare, has_image):
    images = [picture() if has_image else None]
    limit = len(tokens(processor, text=[""], images=images, task="query")[0]) + spare
    (row,) = tokens(processor, text=[text], images=images, task="query", max_length=limit)
    assert len(row) <= limit
    whole = tokens(processor, text=[text], images=images, task="query")[0]
    if len(whole) <= limit:
        assert row == whole
    tail = processor.tokenizer(".<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    assert row[-len(tail) :] == tail


@pytest.mark.parametrize("spare", range(6))
@pytest.mark.parametrize("text", ["a🙂🙂", "a<|im_end|>"])
def test_a_text_is_cut_before_a_character_or_token_that_does_not_fit(processor, text, spare):
    limit = len(tokens(processor, text=[""])[0]) + spare
    (row,) = tokens(processor, text=[text], max_length=limit)
    assert limit - 4 < len(row) <= limit
    assert "�" not in processor.tokenizer.decode(row)


def test_truncation_can_be_switched_off_and_defaults_to_the_tokenizers_limit(processor):
    processor = copy.deepcopy(processor)
    long = "word " * 3000
    assert len(tokens(processor, text=[long])[0]) == processor.tokenizer.model_max_length == 2048
    for off in (False, "do_not_truncate"):
        assert len(tokens(processor, text=[long], truncation=off)[0]) > 2048
    assert len(tokens(processor, text=[long], max_length=None)[0]) == 2048
    nested = {"text_kwargs": {"max_length": 300}, "common_kwargs": {"max_length": 400}}
    assert len(tokens(processor, text=[long], **nested, max_length=200)[0]) == 200
    assert len(tokens(processor, text=[long], **nested)[0]) == 300
    processor.tokenizer.model_max_length = 500
    assert len(tokens(processor, text=[long])[0]) == 500


@pytest.mark.parametrize("family", ["qwen2_vl", "smolvlm"])
def test_only_a_text_that_stays_too_long_is_warned_of(processors, family, monkeypatch):
    processor = processors(family)
    warned = {}  # transformers notes here what it has warned of, once for each tokenizer
    monkeypatch.setattr(processor.tokenizer, "deprecation_warnings", warned)
    monkeypatch.setattr(processor.tokenizer, "model_max_length", 200)
    processor(text=["word " * 300], trace=["word " * 300])
    assert not warned
    processor(text=["word " * 300], truncation=False)
    assert any("sequence-length-is-longer" in note for note in warned)


@pytest.mark.parametrize("family", FAMILIES)
def test_images_that_do_not_fit_are_an_error_that_names_the_row(processors, family):
    processor = processors(family)
    images = [None, [picture(48, 48, seed) for seed in range(4)]]
    with pytest.raises(
        ValueError,
        match=r"input 1 takes \d+ tokens without its text.*and 4 images\), but the limit is 145\. Use fewer",
    ):
        processor(text=["a", "b"], images=images, max_length=145)


def test_padding_options_reach_the_tokenizer(processor):
    batch = processor(text=["a", "b c d"], padding="max_length", max_length=200, return_tensors="pt")
    assert batch["input_ids"].shape == (2, 200)
    batch = processor(text=["a", "b c d"], padding=False)
    assert len({len(row) for row in batch["input_ids"]}) == 2
    batch = processor(text=["a", "b c d"], text_kwargs={"padding_side": "right"}, return_tensors="pt")
    assert batch["attention_mask"][0, -1] == 0 and batch["attention_mask"][0, 0] == 1


def test_an_unknown_task_is_an_error(processor):
    with pytest.raises(ValueError, match="task is 'passage'; use 'query', 'document' or None"):
        processor(text=["a"], task="passage")


def test_an_empty_text_is_embedded_as_the_prompt_alone_unless_there_is_none(processors):
    assert processors().render([Row((), "")], "query")[0].count("Represent the given text") == 1
    assert processors("idefics3").render([Row((), "")])[0].count("User: <end_of_utterance>") == 1
    with pytest.raises(ValueError, match="input 1 is empty, and its prompt has no words"):
        processors(prompt="plain")(text=["a", ""])


@pytest.mark.parametrize("family", FAMILIES)
def test_save_and_reload(processors, family, tmp_path):
    processor = processors(family)
    processor.save_pretrained(tmp_path)
    again = MMEmbedProcessor.from_pretrained(tmp_path)
    assert again.prompt == processor.prompt
    again.save_pretrained(tmp_path / "again")
    for name in ("processor_config.json", "chat_template.jinja"):
        assert (tmp_path / name).read_text() == (tmp_path / "again" / name).read_text()
    inputs = {"text": ["a", "b"], "images": [None, picture()], **QUERY}
    left, right = processor(**inputs), again(**inputs)
    assert left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)
    assert json.loads((tmp_path / "processor_config.json").read_text())["prompt"]["system"] == SYSTEM


def test_a_processor_is_sent_to_other_processes(processor):
    twin = pickle.loads(pickle.dumps(processor))  # noqa: S301 - as process pools do
    assert tokens(twin, text=["a"], images=[picture()]) == tokens(processor, text=["a"], images=[picture()])


def test_no_family_owns_a_video_processor_or_needs_torchvision(processors):
    for family in FAMILIES:
        processor = processors(family)
        assert processor.backbone_processor.get_attributes() == ["image_processor", "tokenizer"]
        assert processor.image_processor.backend == "pil"


def test_a_narrow_picture_is_not_mistaken_for_channels(processor):
    pixels = np.zeros((3, 48, 3), dtype=np.uint8)
    pixels[:, :24] = (255, 0, 0)
    pixels[:, 24:] = (0, 0, 255)
    values = processor(images=[Image.fromarray(pixels)], return_tensors="pt")["pixel_values"]
    first, last = values[0].view(3, -1).mean(dim=1), values[-1].view(3, -1).mean(dim=1)
    assert first[0] > last[0] and first[2] < last[2]


def test_a_processor_needs_its_family_and_its_prompt(processor):
    with pytest.raises(ValueError, match="needs `backbone_processor_class` and `prompt`"):
        MMEmbedProcessor(processor.image_processor, processor.tokenizer)
    tokenizer = copy.deepcopy(processor.tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="the backbone has no chat template"):
        MMEmbedProcessor(processor.image_processor, tokenizer, None, "Qwen2VLProcessor", None, PRESETS["saha"])
