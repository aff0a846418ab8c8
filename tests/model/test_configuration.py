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
