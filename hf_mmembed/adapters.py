"""Which base an adapter names, and what to say when that is gone.

In: what a model is called. Out: what its base is called; or an error with the value to change, and where.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.utils import find_adapter_config_file

from .opening import may_be_on_the_hub

__all__ = ["base_of_adapter", "naming_a_lost_base"]


def base_of_adapter(model: str, **where: Any) -> tuple[str, str | None] | None:
    """The base that an adapter names, and its revision if it is on the Hub; None for a model that is no adapter.

    Args:
        model: Directory or Hub id.
        **where: Arguments of transformers' `cached_file`: ``cache_dir``, ``token``, ``revision``, ``local_files_only``.
    """
    file = find_adapter_config_file(model, **where)
    if file is None:
        return None
    adapter = json.loads(Path(file).read_text(encoding="utf-8"))
    base = adapter["base_model_name_or_path"]
    return base, None if Path(base).is_dir() else adapter.get("revision")


@contextmanager
def naming_a_lost_base(model: str | None) -> Iterator[None]:
    """Where a directory does not open because it holds an adapter whose base is gone, the error says that.

    Raises:
        FileNotFoundError: The base is gone.
    """
    try:
        yield
    except OSError as error:  # about the name of the base, as if it were an id of the Hub
        lost = None if model is None else _lost_base(Path(model))
        if lost is None:
            raise
        raise lost from error


def _lost_base(directory: Path) -> FileNotFoundError | None:
    found = base_of_adapter(str(directory)) if directory.is_dir() else None
    if found is None or Path(found[0]).is_dir() or may_be_on_the_hub(found[0]):
        return None
    beside = directory.resolve().parent / "embedder"  # where a training puts the base that it makes
    there = f"; an embedder lies in {beside}" if (beside / "modules.json").is_file() else ""
    return FileNotFoundError(
        f"the base model that the adapter {directory} names is gone: there is no directory {found[0]}. If it has moved, "
        f"change base_model_name_or_path in {directory / 'adapter_config.json'}{there}."
    )
