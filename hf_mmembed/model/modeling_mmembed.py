"""The embedder: a generative multimodal LLM without its head, read out at one place of each row.

In: what `MMEmbedProcessor` returns: `input_ids` and `attention_mask`, both `(batch, seq_len)`, and the backbone's own
image tensors. Out: [`MMEmbedOutput`], whose `embeddings` are `(batch, dim)`, float32, of unit L2 norm.

One class serves every backbone of transformers: the inner model (`AutoModel`, so no `lm_head` and no logits) is held
as it is, and its `last_hidden_state` is the state after the final norm, whatever the family. This file travels with
the checkpoint, so it imports nothing but torch, transformers and its neighbours.
"""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.utils import ModelOutput

from .checkpoint_mmembed import EmbeddingModel
from .configuration_mmembed import MMEmbedConfig
from .language_mmembed import blocks_without_padding, lean_language
from .pooled_mmembed import blocks_for_pooled, last_real_token, only_pooled, told_about_rows
from .prefix_mmembed import PrefixMemory, states_with_shared_prefix
from .product_mmembed import quicken_products
from .vision_mmembed import lean_vision

__all__ = ["MMEmbedModel", "MMEmbedOutput", "pool"]

# Our processor gives these families an `image_grid_thw` that says how to cut a batch into pieces; they do not take it.
TILED_WITHOUT_GRID = frozenset({"internvl"})
IMAGE_INPUTS = ("pixel_values", "pixel_attention_mask", "image_sizes", "image_grid_thw", "batch_num_images")
# What Gemma 3n and Gemma 4 add to the state of a token behind or beside the MLP.
BESIDE_MLP = ("experts", "per_layer_input_gate")


@dataclass
class MMEmbedOutput(ModelOutput):
    """What [`MMEmbedModel`] returns.

    Args:
        embeddings (`torch.FloatTensor` of shape `(batch, dim)`): Unit L2 norm, float32 whatever the model's dtype.
        pooler_output (`torch.FloatTensor` of shape `(batch, dim)`): The same tensor, under sentence-transformers' name.
        last_hidden_state (`torch.FloatTensor` of shape `(batch, seq_len, hidden)`): After the final norm; None with
            `whole_states=False`.
        hidden_states (`tuple[torch.FloatTensor]`): Before and after each block, `(batch, seq_len, hidden)` each, as the
            backbone returns them; with `output_hidden_states=True`.
        attentions (`tuple[torch.FloatTensor]`): Of each block, as the backbone returns them; with
            `output_attentions=True`, where `attn_implementation="eager"` computes them.
    """

    embeddings: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


def pool(hidden: torch.Tensor, attention_mask: torch.Tensor | None, pooling: str) -> torch.Tensor:
    """One vector per row from the states of its real tokens, for left and for right padding alike.

    Args:
        hidden (`torch.Tensor` of shape `(batch, seq_len, hidden)`): States.
        attention_mask (`torch.Tensor` of shape `(batch, seq_len)`, *optional*): 1 for real tokens, 0 for padding.
            Without one, every token is real.
        pooling (`str`): `"last"` or `"mean"`.

    Returns:
        `torch.Tensor` of shape `(batch, hidden)`.

    Example:

        >>> hidden = torch.tensor([[[1.0], [3.0], [9.0]]])
        >>> pool(hidden, torch.tensor([[1, 1, 0]]), "last").item(), pool(hidden, torch.tensor([[1, 1, 0]]), "mean").item()
        (3.0, 2.0)
    """
    if attention_mask is None:
        return hidden[:, -1] if pooling == "last" else hidden.mean(dim=1)
    mask = attention_mask.to(hidden.device)
    if pooling == "mean":
        # In float32: a sum over many tokens loses its last digits in half precision.
        weights = mask.unsqueeze(-1).float()
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), last_real_token(mask)]


class MMEmbedModel(EmbeddingModel):
    """A generative multimodal LLM as an embedding model.

    Args:
        config ([`MMEmbedConfig`]): Holds the backbone's config and how it is read out.

    Example:

    ```python
    model = AutoModel.from_pretrained(path, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)
    batch = processor(text=["a red circle"], task="query", return_tensors="pt")
    model(**batch).embeddings  # (1, dim)
    ```
    """

    config_class = MMEmbedConfig

    def __init__(self, config: MMEmbedConfig) -> None:
        config.check_choices()
        super().__init__(config)
        self.backbone = AutoModel.from_config(config.backbone_config)
        self._read_backbone()
        self.post_init()

    def _read_backbone(self) -> None:
        """Prepare the backbone for reading out: what generation needs and an embedder does not is switched off."""
        lean_vision(self.backbone)
        lean_language(self.backbone)
        if self.config.readout == "pre_mlp":
            block = self.backbone.get_decoder().layers[-1]
            if not hasattr(block, "mlp"):
                raise ValueError(
                    f"readout 'pre_mlp' needs a last block with an `mlp`, but {type(block).__name__} has none; "
                    "use readout 'final'."
                )
            if others := [part for part in BESIDE_MLP if hasattr(block, part)]:
                raise ValueError(
                    f"readout 'pre_mlp' needs a last block whose `mlp` is all that follows attention, but "
                    f"{type(block).__name__} has {', '.join(others)} too; use readout 'final'."
                )
            if len(told := list(inspect.signature(type(block.mlp).forward).parameters)[1:]) > 1:
                raise ValueError(
                    f"readout 'pre_mlp' needs an `mlp` that is told the hidden states alone, but {type(block.mlp).__name__} "
                    f"takes {', '.join(told)}; use readout 'final'."
                )
            # The block adds its MLP's output to the state: adding zero leaves the state before the MLP, which the
            # final norm then takes as usual.
            block.mlp.forward = torch.zeros_like
            return
        for module in self.backbone.modules():
            if vars(module).get("forward") is torch.zeros_like:  # the same backbone was read out as 'pre_mlp' before
                del module.forward
        if self.config.pooling == "last":
            blocks_for_pooled(self.backbone)
            blocks_without_padding(self.backbone)

    @classmethod
    def from_backbone(cls, backbone: PreTrainedModel, **config_fields: Any) -> MMEmbedModel:
        """Wrap an inner model that is already in memory, without copying a weight.

        The modules of `backbone` are changed in place to compute what is read out, so it serves one `readout` at a time:
        that of the last model made of it.

        Args:
            backbone (`PreTrainedModel`): What `AutoModel.from_pretrained` returns for a generative checkpoint.
            **config_fields: Fields of [`MMEmbedConfig`], such as `readout` or `pooling`.

        Returns:
            [`MMEmbedModel`]: In evaluation mode, sharing `backbone`'s tensors.

        Raises:
            ValueError: If the backbone is quantised, or a field has a wrong value.
        """
        config = MMEmbedConfig(backbone_config=backbone.config, dtype=backbone.dtype, **config_fields)
        with torch.device("meta"):
            model = cls(config)
        model.backbone = backbone
        model._read_backbone()
        quicken_products(model)
        return model.eval()

    def get_input_embeddings(self) -> nn.Module:
        """The backbone's token embedding."""
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the backbone's token embedding, as `resize_token_embeddings` does."""
        self.backbone.set_input_embeddings(value)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        num_images_per_sample: torch.LongTensor | None = None,
        share_prefix: bool | None = None,
        prefix_memory: PrefixMemory | None = None,
        whole_states: bool = True,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> MMEmbedOutput | tuple[Any, ...]:
        """Embed a batch.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, seq_len)`): Padded on either side.
            attention_mask (`torch.Tensor` of shape `(batch, seq_len)`): 1 for real tokens, 0 for padding.
            num_images_per_sample (`torch.LongTensor` of shape `(batch,)`, *optional*): Images of each row. Given by
                sentence-transformers, which needs it to split a batch; some families take it under another name.
            share_prefix (`bool`, *optional*): Compute the tokens that all rows begin with once, where the family allows
                it. The result and its gradients are the same up to rounding, but for dropout, whose mask all rows then
                share there; padding has states zero. Defaults to doing so where gradients are off.
            prefix_memory ([`PrefixMemory`], *optional*): Given to every batch of a series, so that their common prefix is
                computed once for all.
            whole_states (`bool`, defaults to `True`): Return `last_hidden_state`. Without it, the last block computes
                what the embeddings need and no more.
            output_hidden_states (`bool`, *optional*): Return the states of all blocks too. Defaults to the config's.
            output_attentions (`bool`, *optional*): Return the attention of all blocks too. Defaults to the config's.
            return_dict (`bool`, *optional*): False returns a tuple of what is not None. Defaults to the config's.
            **kwargs: The rest of what the processor returned (`pixel_values`, ...), for the backbone.

        Returns:
            [`MMEmbedOutput`], or a tuple of its values.
        """
        if num_images_per_sample is not None:
            kwargs = self._images_of_rows(input_ids, num_images_per_sample, kwargs)
        if self.config.backbone_config.model_type in TILED_WITHOUT_GRID:
            kwargs.pop("image_grid_thw", None)
        kwargs.setdefault("use_cache", False)
        layers = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        layers = {name: getattr(self.config, name) if asked is None else asked for name, asked in layers.items()}
        kwargs |= {"return_dict": True, **{name: True for name, asked in layers.items() if asked}}
        # Checkpointing reruns blocks outside this call, `torch.compile` does not trace context variables, and PEFT's
        # per-row arguments do not fit packed rows.
        plain = (
            any(layers.values())
            or torch.compiler.is_compiling()
            or (torch.is_grad_enabled() and self.backbone.is_activation_checkpointing)
            or told_about_rows(self)
        )
        whole = whole_states or self.config.pooling != "last" or plain
        shared, mask, of_layers = None, attention_mask, {}
        if share_prefix is None:
            share_prefix = not torch.is_grad_enabled()
        if share_prefix and input_ids is not None and not plain:
            shared = states_with_shared_prefix(
                self.backbone, input_ids, attention_mask, prefix_memory, whole=whole, **kwargs
            )
        if shared is not None:
            states, mask = shared
        else:
            with nullcontext() if whole else only_pooled(mask):
                output = self.backbone(input_ids=input_ids, attention_mask=mask, **kwargs)
            states = output.last_hidden_state
            of_layers = {name: output.get(name) for name in ("hidden_states", "attentions")}
        pooled = pool(states, mask, self.config.pooling)[:, : self.config.embedding_dim]
        embeddings = F.normalize(pooled.float(), dim=-1)
        made = MMEmbedOutput(
            embeddings=embeddings,
            pooler_output=embeddings,
            last_hidden_state=states if whole_states else None,
            **of_layers,
        )
        return made if (self.config.return_dict if return_dict is None else return_dict) else made.to_tuple()

    def _images_of_rows(
        self, input_ids: torch.Tensor | None, counts: torch.Tensor, inputs: dict[str, Any]
    ) -> dict[str, Any]:
        """The inputs, with image tensors that fit the rows, which may be a piece of a batch.

        sentence-transformers counts only pictures that stand in a block of type `image` of their own: `counts` may be
        too low, so that the tokens decide whether there are pictures.
        """
        token = getattr(self.config.backbone_config, "image_token_id", None)
        if input_ids is None or token is None:
            has_images = bool(counts.any())
        else:
            has_images = bool((input_ids == token).any())
        if not has_images:
            return {name: value for name, value in inputs.items() if name not in IMAGE_INPUTS}
        if inputs.get("pixel_values") is None:
            raise ValueError(
                f"the rows hold image tokens, but num_images_per_sample is {counts.tolist()} and there are no "
                "pixel_values: a batch was cut into pieces by counts that miss pictures. Give pictures as "
                '{"image": ...}, not inside of a chat, where a batch is cut (cached losses).'
            )
        # Of a piece, the family's own `batch_num_images` is cut by rows; here are those of all its pictures.
        if "batch_num_images" in inputs and int(counts.sum()) == len(inputs["pixel_values"]):
            return {**inputs, "batch_num_images": counts[counts > 0]}
        return inputs


MMEmbedModel.register_for_auto_class("AutoModel")
