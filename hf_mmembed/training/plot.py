"""A picture of how a training went.

In: the log history of a trainer. Out: a PNG with the loss above and the hardness of the batches below.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_mmembed.files import write_atomically

__all__ = ["plot_training"]


def plot_training(history: Sequence[Mapping[str, Any]], path: Path) -> Path | None:
    """Draw loss, similarity of positives and hardest negatives, and hardness over steps.

    Args:
        history: ``trainer.state.log_history``.
        path: The PNG to write.

    Returns:
        `path`; None if nothing was logged.
    """
    from matplotlib.figure import Figure

    logs = [entry for entry in history if "loss" in entry]
    if not logs:
        return None
    figure = Figure(figsize=(7, 6), layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    steps = [entry["step"] for entry in logs]
    above.plot(steps, [entry["loss"] for entry in logs])
    above.set_ylabel("loss")
    for name, label in (
        ("positive", "positive"),
        ("hardest_negative", "hardest negative"),
        ("hardness", "hardness: positive − hardest negative"),
    ):
        if all(name in entry for entry in logs):
            below.plot(steps, [entry[name] for entry in logs], label=label)
    below.set_ylabel("mean cosine similarity")
    below.set_xlabel("step")
    if below.lines:
        below.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_atomically(path, picture.getvalue())
    return path
