"""The config refuses what the model cannot do, and survives the way to the disk and back."""

from __future__ import annotations

import json

import pytest

from hf_mmembed.model import MMEmbedConfig

BACKBONE = {"model_type": "qwen2_vl", "text_config": {"hidden_size": 64}}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pooling": "cls"}, "pooling is 'cls'; use one of 'last', 'mean'"),
        ({"readout": "lm_head"}, "readout is 'lm_head'; use one of 'final', 'pre_mlp'"),
        ({"embedding_dim": 65}, "embedding_dim is 65; use 1 to 64"),
        ({"embedding_dim": 0}, "embedding_dim is 0; use 1 to 64"),
    ],
)
def test_impossible_choices_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        MMEmbedConfig(BACKBONE, **fields)


def test_an_unknown_backbone_is_named():
    with pytest.raises(ValueError, match="model_type 'warp_drive'.*Upgrade transformers"):
        MMEmbedConfig({"model_type": "warp_drive"})


def test_a_backbone_that_says_it_is_quantised_is_refused_where_transformers_would_not_see_it(tmp_path):
    quantised = {**BACKBONE, "quantization_config": {"quant_method": "fp8"}}
    with pytest.raises(ValueError, match="has a quantization_config of its own, of method 'fp8'.* opening the result"):
        MMEmbedConfig(quantised)
    # As transformers writes an embedder that was quantised when it was opened.
    MMEmbedConfig(BACKBONE, quantization_config={"quant_method": "fp8"}).save_pretrained(tmp_path)
    assert MMEmbedConfig.from_pretrained(tmp_path).quantization_config == {"quant_method": "fp8"}
    stored = json.loads((tmp_path / "config.json").read_text())
    stored["backbone_config"]["quantization_config"] = stored.pop("quantization_config")
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="method 'fp8'"):
        MMEmbedConfig.from_pretrained(tmp_path)


def test_round_trip(tmp_path):
    config = MMEmbedConfig(BACKBONE, pooling="mean", readout="pre_mlp", embedding_dim=16, base_model="org/base")
    config.save_pretrained(tmp_path)
    loaded = MMEmbedConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.backbone_config.model_type == "qwen2_vl"
    assert (loaded.hidden_size, loaded.projection_dim, loaded.base_model) == (64, 16, "org/base")


def test_the_directory_names_its_code(tmp_path):
    MMEmbedConfig(BACKBONE).save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["auto_map"]["AutoConfig"] == "configuration_mmembed.MMEmbedConfig"
    assert (tmp_path / "configuration_mmembed.py").is_file()
