"""Why something does not open as an embedder, in words that name it and say what to do.

In: what `MMEmbedder` was given and could not open. Out: the error to raise.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers.utils import cached_file

from hf_mmembed.shipped import SHIPPED
from hf_mmembed.visible import visible

__all__ = ["has_modules", "invalid_json", "is_on_the_hub", "may_be_on_the_hub", "no_embedder"]

PREFIX = "sentence-transformers/"  # which sentence-transformers puts before a name without a slash


def invalid_json(directory: Path, error: json.JSONDecodeError) -> ValueError:
    """The error for a checkpoint with a file of JSON that breaks off, which `error` does not name."""
    for file in visible(directory, "**/*.json"):
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            return ValueError(f"{file} is not valid JSON ({error}); copy or download the checkpoint again.")
    return ValueError(f"a file of {directory} is not valid JSON ({error}); copy or download the checkpoint again.")


def no_embedder(name: str, **where: Any) -> ValueError | OSError:
    """The error for a directory or Hub id without ``modules.json`` and without an adapter.

    Args:
        name: As sentence-transformers passes it on.
        **where: Arguments of transformers' `cached_file`: ``cache_dir``, ``token``, ``revision``, ``local_files_only``.
    """
    given = name.removeprefix(PREFIX)
    if given == SHIPPED and not Path(name).is_dir():
        return ValueError(f"{SHIPPED} is a name for commands; in Python it is hf_mmembed.tiny.checkpoint_path().")
    if not Path(name).is_dir() and not is_on_the_hub(name, **where):
        return OSError(
            f"there is no directory {given}, and the Hub, as far as it can be reached, has no model {name}."
        )
    return ValueError(
        f"{name} has no modules.json, so it is not an embedder: sentence-transformers would average its hidden states, "
        f"with the wrong prompt. Convert it first: `hf-mmembed convert {name} OUT`."
    )


def is_on_the_hub(name: str, **where: Any) -> bool:
    """Whether the Hub, as far as it can be reached, or what was downloaded from it has a model of this name.

    Args:
        name: In one part or two.
        **where: As for `no_embedder`.
    """
    return may_be_on_the_hub(name) and _has(name, "config.json", **where)


def has_modules(name: str, **where: Any) -> bool:
    """Whether a directory, or a model that the Hub or what was downloaded from it has, holds ``modules.json``.

    Asked without sentence-transformers, which takes many seconds to import.

    Args:
        name: Directory or Hub id.
        **where: As for `no_embedder`.
    """
    return (Path(name).is_dir() or may_be_on_the_hub(name)) and _has(name, "modules.json", **where)


def _has(name: str, file: str, **where: Any) -> bool:
    quiet = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors", "gated_repo")}
    return cached_file(name, file, **where, **quiet) is not None


def may_be_on_the_hub(name: str) -> bool:
    """Whether the Hub allows a model of this name, in one part or two."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True
