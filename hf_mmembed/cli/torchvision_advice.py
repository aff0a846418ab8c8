"""What to do where torchvision is missing: stock processors that read videos too, as those of the Qwen family, need it.

In: nothing, or an exported checkpoint. Out: the advice, and whether the checkpoint needs it.
"""

from __future__ import annotations

import json
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

__all__ = ["lacks_torchvision", "missing_torchvision"]


def missing_torchvision() -> str:
    """Who needs torchvision, and the pip command for the build that fits the installed torch; any other breaks both."""
    return (
        "the stock processors of the Qwen family need torchvision, also for pictures alone, in the build that fits torch, "
        f'from the index that torch came from: pip install torchvision "torch=={metadata.version("torch")}"'
    )


def lacks_torchvision(exported: Path) -> bool:
    """Whether the stock processor of a native export has a part for videos, and torchvision is not here to build it."""
    if find_spec("torchvision") is not None:
        return False
    import transformers

    settings = json.loads((exported / "processor_config.json").read_text(encoding="utf-8"))
    return "video_processor" in getattr(transformers, settings["processor_class"]).get_attributes()
