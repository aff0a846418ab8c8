"""To what size a model scales pictures, which decides how many tokens a picture is.

In: a processor of transformers. Out: the `size` of its image processor, as it is or with another upper bound.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["limit_pictures", "picture_size"]


def picture_size(processor: Any) -> dict[str, int]:
    """To what `processor` scales pictures; empty where it takes none."""
    image_processor = getattr(processor, "image_processor", None)
    return dict(getattr(image_processor, "size", None) or {})


def limit_pictures(processor: Any, longest_edge: int, model: str | Path) -> None:
    """Scale pictures down to `longest_edge` from now on.

    Args:
        processor: It is changed.
        longest_edge: As the image processor understands it: pixels in all for Qwen2-VL and its like, of the longer side
            for others.
        model: What to call the model where it cannot be done.

    Raises:
        ValueError: The model does not scale pictures by `longest_edge`, or enlarges them to more.
    """
    size = picture_size(processor)
    least = max(1, size.get("shortest_edge", 0))
    if "longest_edge" not in size or longest_edge < least:
        advice = f"give at least {least}" if "longest_edge" in size else "leave it out"
        raise ValueError(
            f"{model} scales pictures to {size or 'no size'}; longest_edge={longest_edge} does not fit that; {advice}"
        )
    processor.image_processor.size = processor.image_processor.size | {"longest_edge": longest_edge}
