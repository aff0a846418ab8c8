"""What an embedder checkpoint is: a generative backbone's own config and four choices about reading it out.

In: the config of any multimodal LLM of transformers, untouched, under `backbone_config`.
Out: `config.json` with `model_type: "mmembed"`, which `AutoConfig` turns back into both.

This file travels with the checkpoint, so it imports nothing but transformers.
"""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

__all__ = ["POOLINGS", "READOUTS", "MMEmbedConfig"]

POOLINGS = ("last", "mean")
READOUTS = ("final", "pre_mlp")


class MMEmbedConfig(PretrainedConfig):
    """Configuration of [`MMEmbedModel`].

    Args:
        backbone_config (`PretrainedConfig` or `dict`, *optional*, defaults to a default Qwen2-VL config):
            The config of the generative multimodal LLM whose inner model (no `lm_head`) is read out.
        pooling (`str`, *optional*, defaults to `"last"`):
            `"last"`: the state of the last real token of each row; `"mean"`: the mean over real tokens.
        readout (`str`, *optional*, defaults to `"final"`):
            `"final"`: the state after the last block; `"pre_mlp"`: the state before the last block's MLP, which
            FreeRet (arXiv 2509.24621) found better for embedding without training. The backbone's final norm
            follows in both cases.
        embedding_dim (`int`, *optional*):
            Keep this many leading dimensions and renormalise (Matryoshka, arXiv 2205.13147). Defaults to all,
            that is the hidden size of the backbone's text model.
        base_model (`str`, *optional*): Name of the generative checkpoint that was converted.
        base_revision (`str`, *optional*): The commit of `base_model` that was converted, where it has one.

    Raises:
        ValueError: If `pooling`, `readout` or `embedding_dim` is not one of the values above.

    Example:

        >>> config = MMEmbedConfig({"model_type": "qwen2_vl", "text_config": {"hidden_size": 64}}, embedding_dim=32)
        >>> config.hidden_size, config.projection_dim, config.pooling
        (64, 32, 'last')
    """

    model_type = "mmembed"
    sub_configs = {"backbone_config": AutoConfig}

    def __init__(
        self,
        backbone_config: PretrainedConfig | dict[str, Any] | None = None,
        pooling: str = "last",
        readout: str = "final",
        embedding_dim: int | None = None,
        base_model: str | None = None,
        base_revision: str | None = None,
        **kwargs: Any,
    ) -> None:
        backbone: Any = backbone_config or {"model_type": "qwen2_vl"}
        if isinstance(backbone, dict):
            fields = dict(backbone)
            model_type = fields.pop("model_type", None)
            if model_type not in CONFIG_MAPPING:
                raise ValueError(
                    f"backbone_config has model_type {model_type!r}, which this transformers does not know. "
                    "Upgrade transformers to a version that has this backbone."
                )
            backbone = CONFIG_MAPPING[model_type](**fields)
        if pooling not in POOLINGS:
            raise ValueError(f"pooling is {pooling!r}; use one of {', '.join(map(repr, POOLINGS))}.")
        if readout not in READOUTS:
            raise ValueError(f"readout is {readout!r}; use one of {', '.join(map(repr, READOUTS))}.")
        hidden_size = backbone.get_text_config().hidden_size
        if embedding_dim is not None and not 1 <= embedding_dim <= hidden_size:
            raise ValueError(f"embedding_dim is {embedding_dim}; use 1 to {hidden_size}, the backbone's hidden size.")
        self.backbone_config = backbone
        self.pooling = pooling
        self.readout = readout
        self.embedding_dim = embedding_dim
        self.base_model = base_model
        self.base_revision = base_revision
        super().__init__(**kwargs)

    @property
    def hidden_size(self) -> int:
        """Width of the backbone's text model."""
        return self.get_text_config().hidden_size

    @property
    def projection_dim(self) -> int:
        """Width of an embedding; sentence-transformers reads it under this name."""
        return self.embedding_dim or self.hidden_size

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PretrainedConfig:
        """The backbone's text config: its hidden size, layers and vocabulary are those of the embedder."""
        return self.backbone_config.get_text_config(decoder=decoder, encoder=encoder)


MMEmbedConfig.register_for_auto_class()
