"""What an earlier run left in the folder of results: scores that go on counting, or a file to be kept aside.

In: its ``results.json`` and the metadata of a run that begins. Out: scores by modality and data set, or what differs.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .scoreboard import read_results

__all__ = ["differences", "earlier_scores", "put_aside"]

logger = logging.getLogger(__name__)

# Every run finds these out anew.
_FOUND = ("missing", "failed", "reference_split")


def differences(file: Path, metadata: Mapping[str, Any]) -> list[str]:
    """Why the scores in the file cannot stand beside those of a run with this metadata; empty where they can."""
    if not file.is_file():
        return []
    try:
        earlier = read_results(file)["metadata"]
    except ValueError as error:
        return [str(error)]
    here = json.loads(json.dumps(metadata))
    return [
        f"{key}: {_brief(earlier.get(key))} there, {_brief(value)} here"
        for key, value in here.items()
        if key not in _FOUND and earlier.get(key) != value
    ]


def earlier_scores(file: Path) -> dict[str, dict[str, Any]]:
    """The scores in the file by modality and data set; empty where there is no file."""
    return read_results(file)["metrics"] if file.is_file() else {}


def put_aside(file: Path, differing: Sequence[str]) -> None:
    """Renames the file, and says so."""
    aside = file.with_name(f"{file.stem}-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}{file.suffix}")
    file.rename(aside)
    logger.warning("%s was of something else (%s); it is kept as %s", file, "; ".join(differing), aside)


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
