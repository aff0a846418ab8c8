"""The prompts that come with the package, by name, and prompts of the user's own from a YAML file.

Sources: `saha` and `saha-legacy`: Ju and Lee, arXiv 2508.00955, and the Gen2Embed repository (model_utils.py and the
README's commands). `unime`: Gu et al., arXiv 2504.17432, and the UniME repository. `e5v`: Jiang et al., arXiv
2407.12580. `vlm2vec`: Jiang et al., arXiv 2410.05160, and the VLM2Vec repository (processor.py).
"""

from __future__ import annotations

from pathlib import Path

import yaml

from .rows_mmembed import HierarchicalPrompt

__all__ = ["PRESETS", "load_prompt"]

_SAHA_SYSTEM = (
    "Given an image, summarize the provided image in one word. Given only text, describe the text in one word."
)
_SAHA_TEXT = "\nRepresent the given text in one word."
_SAHA_IMAGE = "\nRepresent the given text/image in one word."


def _one_word_summary(text: str, image: str) -> HierarchicalPrompt:
    """No system prompt; the same words end queries and documents."""
    return HierarchicalPrompt(
        "", f"\nSummary above {text}", f"\nSummary above {image}", represent_documents=True, image_style="inline"
    )


PRESETS: dict[str, HierarchicalPrompt] = {
    "saha": HierarchicalPrompt(_SAHA_SYSTEM, _SAHA_TEXT, _SAHA_IMAGE),
    # The authors' code writes a bare image token; on Qwen it lacks `<|vision_start|>` and `<|vision_end|>`.
    "saha-legacy": HierarchicalPrompt(_SAHA_SYSTEM, _SAHA_TEXT, _SAHA_IMAGE, image_style="bare"),
    "unime": _one_word_summary("sentence in one word:", "image in one word:"),
    # E5-V's words are UniME's with a space at the end, which is a token of its own.
    "e5v": _one_word_summary("sentence in one word: ", "image in one word: "),
    # Raw text without turns; the line break at the end of MMEB's queries is the token that VLM2Vec pools. Documents stay
    # as they are: in MMEB, those with a picture mostly end in a line break of their own, texts never do.
    "vlm2vec": HierarchicalPrompt("", "\n", "\n", image_style="bare", chat=False, separator=" "),
    "plain": HierarchicalPrompt("", "", "", image_style="inline", chat=False),
}


def load_prompt(name_or_path: str | Path) -> HierarchicalPrompt:
    """A preset by name, or a prompt from a YAML file with the fields of [`HierarchicalPrompt`].

    Args:
        name_or_path (`str` or `Path`): One of `PRESETS`, or a path that ends in `.yaml` or `.yml`.

    Returns:
        [`HierarchicalPrompt`].

    Raises:
        ValueError: If there is no such preset, or the file does not hold the fields of a prompt.
        FileNotFoundError: If there is no such file.

    Example:

        >>> load_prompt("saha").represent_text
        '\\nRepresent the given text in one word.'
    """
    if str(name_or_path) in PRESETS:
        return PRESETS[str(name_or_path)]
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        raise ValueError(
            f"there is no preset {str(name_or_path)!r}; use one of {', '.join(sorted(PRESETS))}, or a .yaml file."
        )
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
        return HierarchicalPrompt(**fields)
    except (yaml.YAMLError, TypeError) as error:
        raise ValueError(
            f"{path} is no prompt ({' '.join(str(error).split())}); it needs system, represent_text and represent_image, and may have "
            "represent_documents, image_style, chat and separator."
        ) from error
