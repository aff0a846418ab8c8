"""Checkpoints of a reasoner that embeds: made from a generative one, opened as an `MMEmbedder`.

In: a generative checkpoint and a kind of head. Out: one directory that `AutoModel` with remote code, and
sentence-transformers, open where this package is not installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_mmembed.identity import local_checkpoint
from hf_mmembed.model.registration import UnifiedModel
from hf_mmembed.sentence_transformer import MMEmbedder
from hf_mmembed.staging import require_empty, staged

from .reasoner import open_generative
from .templates import LATEST, load_templates

__all__ = ["make_unified", "open_unified"]


def make_unified(
    reasoner: str | Path,
    out: str | Path,
    *,
    head: str = "self_init",
    head_options: dict[str, Any] | None = None,
    task_family: str = "content",
    templates: str | Path = LATEST,
) -> Path:
    """Write a reasoner with a new head on it.

    Args:
        reasoner: Directory or Hub id of a generative checkpoint.
        out: The directory to write; it must not exist yet, or be empty.
        head: One of `hf_mmembed.model.heads_mmembed.HEADS`. Defaults to a copy of the last layers.
        head_options: Such as ``{"layers": 8}``.
        task_family: Whose prompt the checkpoint's processor writes. Defaults to ``"content"``.
        templates: Version of the prompts, or a YAML file of them. Defaults to the latest.

    Returns:
        `out`. It appears at once and complete, or not at all; an empty directory gets its `config.json` last.

    Raises:
        FileExistsError: `out` holds something already.
        OSError: The checkpoint cannot be read.
        ValueError: There is no such head or family, it does not fit the reasoner, or the reasoner is quantised;
            or another process is writing to `out`.
    """
    out = Path(out)
    require_empty(out)
    directory, commit = local_checkpoint(reasoner)
    prompts = load_templates(templates)
    model, processor = open_generative(directory, prompts, dtype="auto")
    processor.prompt = prompts.prompt(task_family)
    processor.tokenizer.padding_side = "left"
    # What is set on a tokenizer later is not saved.
    processor.tokenizer.init_kwargs["padding_side"] = "left"
    end = processor.tokenizer.eos_token_id
    ends = model.generation_config.eos_token_id
    others = sorted({*([ends] if isinstance(ends, int) else ends or [])} - {end})
    # It may be published: of a local reasoner, only the directory's name is recorded.
    base = directory.name if commit is None else str(reasoner)
    model.config._name_or_path = base
    unified = UnifiedModel.from_reasoner(
        model, head=head, head_options=head_options or {}, end_token_id=end, other_end_token_ids=others,
        base_model=base, base_revision=commit,
    )  # fmt: skip
    with staged(out) as written:
        unified.save_pretrained(written)
        processor.save_pretrained(written)
    return out


def open_unified(directory: str | Path, **kwargs: Any) -> MMEmbedder:
    """A unified checkpoint as an embedder: of traces that are there already, and for training its head.

    Args:
        directory: What `make_unified` wrote, or a Hub id of one.
        **kwargs: For `MMEmbedder`.

    Returns:
        Only the head requires gradients, in float32.
    """
    embedder = MMEmbedder(directory, **kwargs)
    model: Any = embedder.transformers_model
    model.reasoner.requires_grad_(False)
    model.head.float().requires_grad_(True)
    return embedder
