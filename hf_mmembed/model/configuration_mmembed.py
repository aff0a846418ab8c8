"""What an embedder checkpoint is: a generative backbone's own config and three choices about reading it out.

In: the config of any multimodal LLM of transformers, untouched, under `backbone_config`.
Out: `config.json` with `model_type: "mmembed"`, which `AutoConfig` turns back into both.

This file travels with the checkpoint, so it imports nothing but transformers.
"""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

__all__ = ["POOLINGS", "READOUTS", "MMEmbedConfig", "attention_of_backbone", "quantization_of"]

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
        ValueError: If `pooling`, `readout` or `embedding_dim` is not one of the values above, or the backbone is
            quantised on its own.

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
        self.backbone_config = backbone
        self.pooling = pooling
        self.readout = readout
        self.embedding_dim = embedding_dim
        self.base_model = base_model
        self.base_revision = base_revision
        if "attn_implementation" in kwargs:
            kwargs["attn_implementation"] = attention_of_backbone(kwargs["attn_implementation"])
        super().__init__(**kwargs)
        self.check_choices()

    def check_choices(self) -> None:
        """Refuse impossible choices; asked by the model too, as `from_pretrained(..., pooling=...)` only sets fields.

        Raises:
            ValueError: If `pooling`, `readout` or `embedding_dim` is not one of the values above, or the backbone is
                quantised on its own.
        """
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling is {self.pooling!r}; use one of {', '.join(map(repr, POOLINGS))}.")
        if self.readout not in READOUTS:
            raise ValueError(f"readout is {self.readout!r}; use one of {', '.join(map(repr, READOUTS))}.")
        dim, hidden_size = self.embedding_dim, self.hidden_size
        if dim is not None and not (isinstance(dim, int) and 1 <= dim <= hidden_size):
            raise ValueError(f"embedding_dim is {dim!r}; use 1 to {hidden_size}, the backbone's hidden size.")
        # transformers asks this config and the text config, and would read the weights without their scales.
        quantized = quantization_of(self.backbone_config)
        if quantized and not (quantization_of(self) or quantization_of(self.get_text_config(decoder=True))):
            raise ValueError(
                f"backbone_config has a quantization_config of its own, of method {quantized!r}, which is not read "
                "there: the weights would be taken for plain ones. Start from the unquantised checkpoint, and "
                "quantise when opening the result: from_pretrained(..., quantization_config=...)."
            )

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


def quantization_of(config: PretrainedConfig) -> str | None:
    """How the weights of a model are quantised by its own config, in a word.

    Example:

        >>> quantization_of(PretrainedConfig(quantization_config={"quant_method": "fp8"})), quantization_of(PretrainedConfig())
        ('fp8', None)
    """
    found = getattr(config, "quantization_config", None)
    if not found:
        return None
    method = found.get("quant_method") if isinstance(found, dict) else found.quant_method
    return str(getattr(method, "value", method) or "unknown")


def attention_of_backbone(implementation: Any) -> Any:
    """`attn_implementation` by part of the backbone, put where transformers looks for it: inside of the backbone.

    Example:

        >>> attention_of_backbone({"text_config": "eager"}), attention_of_backbone("sdpa")
        ({'backbone_config': {'text_config': 'eager'}}, 'sdpa')
    """
    if isinstance(implementation, dict) and "backbone_config" not in implementation:
        return {"backbone_config": implementation}
    return implementation


MMEmbedConfig.register_for_auto_class()
