"""What `mmembed-tiny` is made of: a Qwen2-VL of 5.4 M parameters, its byte-pair tokenizer and its image processor.

Out: an untrained `Qwen2VLForConditionalGeneration` from a small config, and the tokenizer trained on the wordings of
the drawn world. Both are saved in the ordinary layout of a transformers checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from hf_mmembed.tiny.conversations import Conversation, converse

__all__ = [
    "CHAT_TEMPLATE",
    "IMAGE_PIXELS",
    "IMAGE_TOKENS",
    "PATCH_PIXELS",
    "build_image_processor",
    "build_model",
    "build_tokenizer",
    "segments",
]

IMAGE_PIXELS = 64
PATCH_PIXELS = 8
MERGE = 2
IMAGE_TOKENS = (IMAGE_PIXELS // PATCH_PIXELS // MERGE) ** 2
"""Visual tokens of one picture: 4 x 4 cells of 16 x 16 pixels."""

VOCABULARY = 1024
HIDDEN = 256
EMBEDDING_STD = 0.05

END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END, VISION_PAD = "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"
IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"
_SPECIAL = (END_OF_TEXT, START, END, VISION_START, VISION_END, VISION_PAD, IMAGE_PAD, VIDEO_PAD)

CHAT_TEMPLATE = (
    "{%- if messages[0].role != 'system' -%}"
    "{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' -}}{%- endif -%}"
    "{%- for message in messages -%}{{- '<|im_start|>' + message.role + '\n' -}}"
    "{%- if message.content is string -%}{{- message.content -}}{%- else -%}{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- elif part.type == 'text' -%}{{- part.text -}}{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{{- '<|im_end|>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)


def build_tokenizer(*, conversations: int = 20_000, seed: int = 0) -> PreTrainedTokenizerFast:
    """Trains the byte-pair tokenizer on the text of freshly made conversations; the same seed gives the same one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(_SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(conversations, seed), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[token for token in _SPECIAL if token not in (END, END_OF_TEXT)],
        chat_template=CHAT_TEMPLATE,
        model_max_length=1024,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, *, seed: int = 0) -> Qwen2VLForConditionalGeneration:
    """An untrained model whose start is chosen for looking things up.

    Embeddings start wide (0.05) so that a picture's tokens can be read as a bag of words. The first query head of each
    key group starts as twice its keys, so it attends to tokens that resemble its own, as trained heads often do
    (Trockman and Kolter, "Mimetic initialization of self-attention layers", 2023).
    """
    index = tokenizer.convert_tokens_to_ids
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
            "intermediate_size": 512,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 1024,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [8, 12, 12]},
            "bos_token_id": index(END_OF_TEXT),
            "eos_token_id": index(END),
            "pad_token_id": index(END_OF_TEXT),
        },
        vision_config={
            "depth": 3,
            "embed_dim": 192,
            "hidden_size": HIDDEN,
            "num_heads": 4,
            "patch_size": PATCH_PIXELS,
            "spatial_merge_size": MERGE,
            "mlp_ratio": 4,
        },
        image_token_id=index(IMAGE_PAD),
        video_token_id=index(VIDEO_PAD),
        vision_start_token_id=index(VISION_START),
        vision_end_token_id=index(VISION_END),
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(config)
    for parameter in model.model.visual.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=EMBEDDING_STD)
    for layer in model.model.language_model.layers:
        attention = layer.self_attn
        keys = attention.k_proj.weight.data.view(-1, attention.head_dim, HIDDEN)
        queries = attention.q_proj.weight.data.view(len(keys), -1, attention.head_dim, HIDDEN)
        queries[:, 0] = 2 * keys
    return model


def build_image_processor() -> Qwen2VLImageProcessorPil:
    """Every picture becomes 64 x 64 pixels (keeping its aspect ratio, in steps of 16): 16 visual tokens."""
    area = IMAGE_PIXELS * IMAGE_PIXELS
    return Qwen2VLImageProcessorPil(
        patch_size=PATCH_PIXELS, merge_size=MERGE, size={"shortest_edge": area, "longest_edge": area}
    )


def segments(conversation: Conversation) -> list[tuple[str, bool]]:
    """The conversation as the chat template renders it, cut into (text, is this the assistant's answer?) pieces."""
    pieces: list[tuple[str, bool]] = []
    prompt = f"{START}system\n{conversation.system}{END}\n" if conversation.system else ""
    if conversation.scene is not None:
        image = f"{VISION_START}{IMAGE_PAD * IMAGE_TOKENS}{VISION_END}"
    for number, turn in enumerate(conversation.turns):
        media = image if conversation.scene is not None and number == 0 else ""
        pieces.append((f"{prompt}{START}user\n{media}{turn.user}{END}\n{START}assistant\n", False))
        pieces.append((f"{turn.answer}{END}", True))
        prompt = "\n"
    return pieces


def _texts(conversations: int, seed: int) -> Iterator[str]:
    rng = Random(seed)
    for _ in range(conversations):
        yield "".join(text for text, _ in segments(converse(rng, "mix")))
