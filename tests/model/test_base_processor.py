"""Which processor a generative checkpoint gets, and bases whose processor does not suit an embedder."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, GlmOcrConfig, LlavaProcessor, Qwen3Config
from transformers.models.smolvlm import processing_smolvlm
from transformers.processing_utils import ProcessorMixin

from hf_mmembed import MMEmbedProcessor, convert, load_prompt
from hf_mmembed.model.base_processor import _class_name, wrap_processor
from hf_mmembed.model.family_mmembed import image_only_processor, load_with_pillow


def wrapped(base) -> MMEmbedProcessor:
    return wrap_processor(base, AutoConfig.from_pretrained(base), load_prompt("saha"))


@pytest.fixture
def llava(generative, tmp_path):
    """A copy, to be changed."""
    return shutil.copytree(generative("llava"), tmp_path / "llava")


def rename(file, name: str) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | {"processor_class": name}))


def test_the_class_that_the_checkpoint_names_wins_over_that_of_its_family(llava):
    config = AutoConfig.from_pretrained(llava)
    for named, expected in (("PixtralProcessor", "PixtralProcessor"), ("ProcessorOfSomebody", "LlavaProcessor")):
        rename(llava / "processor_config.json", named)
        assert _class_name(llava, config, None) == expected


def test_the_class_may_be_named_beside_the_tokenizer(llava):
    stored = json.loads((llava / "processor_config.json").read_text())
    del stored["processor_class"]
    (llava / "processor_config.json").write_text(json.dumps(stored))
    rename(llava / "tokenizer_config.json", "PixtralProcessor")
    assert _class_name(llava, AutoConfig.from_pretrained(llava), None) == "PixtralProcessor"


def test_a_family_of_pictures_without_a_processor_of_its_own_gets_the_one_that_is_named(llava):
    rename(llava / "processor_config.json", "Glm46VProcessor")
    assert _class_name(llava, GlmOcrConfig(), None) == "Glm46VProcessor"
    assert _class_name(llava, Qwen3Config(), None) is None


@pytest.mark.parametrize("family", ["hunyuan_vl", "mllama"])
def test_a_family_whose_rows_depend_on_their_company_is_refused(family, llava):
    with pytest.raises(
        ValueError, match=f"a '{family}' model, of which transformers computes an input in another way"
    ):
        wrap_processor(llava, AutoConfig.for_model(family), load_prompt("saha"))


def test_smolvlm_gets_the_processor_of_idefics3(generative):
    assert wrapped(generative("smolvlm")).backbone_processor_class == "Idefics3Processor"


def test_smolvlm_s_own_processor_makes_the_same_of_pictures(generative, monkeypatch):
    monkeypatch.setattr(processing_smolvlm, "num2words", str)  # for the prompts of videos
    path = generative("smolvlm")
    text, pictures = "User:<image>a b<end_of_utterance>\nAssistant:", [Image.linear_gradient("L").resize((90, 40))]
    ours, own = (
        load_with_pillow(image_only_processor(name), path)(text=[text], images=[pictures], return_tensors="pt")
        for name in ("Idefics3Processor", "SmolVLMProcessor")
    )
    assert ours.keys() == own.keys() > {"pixel_values"}
    assert all(torch.equal(ours[name], own[name]) for name in own)


def test_a_family_with_a_second_tokenizer_is_refused_before_anything_is_loaded(llava):
    rename(llava / "processor_config.json", "InstructBlipProcessor")
    with pytest.raises(ValueError, match="InstructBlipProcessor cannot do without qformer_tokenizer; only families"):
        wrapped(llava)


def test_a_processor_that_lacks_its_numbers_is_refused(llava, tmp_path):
    stored = json.loads((llava / "processor_config.json").read_text())
    (llava / "processor_config.json").unlink()
    (llava / "preprocessor_config.json").write_text(json.dumps(stored["image_processor"]))
    with pytest.raises(ValueError, match="whose LlavaProcessor cannot prepare a picture alone .TypeError: .*whole"):
        convert(llava, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_family_that_takes_no_text_without_a_picture_is_refused(llava, monkeypatch):
    call = LlavaProcessor.__call__ if "__call__" in vars(LlavaProcessor) else ProcessorMixin.__call__

    def with_pictures_alone(self, images=None, text=None, **options):
        if images is None:
            raise ValueError("You must provide valid images")
        return call(self, images=images, text=text, **options)

    monkeypatch.setattr(LlavaProcessor, "__call__", with_pictures_alone)
    with pytest.raises(ValueError, match="cannot prepare a text alone .ValueError: You must provide valid images"):
        wrapped(llava)
