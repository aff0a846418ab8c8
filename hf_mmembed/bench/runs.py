"""What the experiments on the drawn world share: a directory holds the runs of one plan, and runs are averaged over seeds.

In: a plan, or values of several seeds. Out: a plan on the disk, or ``mean ± standard deviation``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from hf_mmembed.files import write_atomically

__all__ = ["ALL_LINEAR", "check_plan", "spread"]

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Layers that get an adapter: all linear ones of the language model of `mmembed-tiny`."""


def check_plan(out: Path, plan: Any) -> None:
    """Write `plan`, a dataclass, to ``plan.json`` in `out`, or compare it with what is there.

    Raises:
        ValueError: `out` holds the runs of another plan.
    """
    path = out / "plan.json"
    text = json.dumps(asdict(plan), indent=1) + "\n"
    if not path.is_file():
        write_atomically(path, text.encode())
    elif path.read_text(encoding="utf-8") != text:
        raise ValueError(f"{out} holds the runs of another plan (see {path}); choose another directory or delete it")


def spread(values: Sequence[float | None]) -> str:
    """Mean and standard deviation of what there is.

    >>> spread([1.0, 3.0]), spread([2.0, None]), spread([None])
    ('2.0 ± 1.4', '2.0', '–')
    """
    found = [value for value in values if value is not None]
    if not found:
        return "–"
    return f"{mean(found):.1f}" + (f" ± {stdev(found):.1f}" if len(found) > 1 else "")
