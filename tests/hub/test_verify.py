"""What counts as the same embedding."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from hf_mmembed.hub import verify, write_golden
from hf_mmembed.hub.golden import read_golden


@pytest.mark.parametrize(
    ("dtype", "cosine", "same"), [("bfloat16", 0.9, False), ("bfloat16", 0.995, True), ("float32", 0.99998, False)]
)
def test_in_many_dimensions_the_direction_counts(checkpoint, monkeypatch, dtype, cosine, same):
    """Each coordinate is small there, so that vectors which differ in none by much may differ altogether."""
    write_golden(checkpoint)
    described, _, pictures = read_golden(checkpoint)
    one, other = np.ones((2, 4096)) / 64
    other[::2] *= -1  # at right angles
    stored, turned = (
        np.tile(row.astype(np.float32), (16, 1)) for row in (one, cosine * one + math.sqrt(1 - cosine**2) * other)
    )
    module = sys.modules[verify.__module__]  # the package has the function under the same name
    monkeypatch.setattr(module, "read_golden", lambda _: ({**described, "dtype": dtype}, stored, pictures))
    monkeypatch.setattr(module, "embed_golden", lambda *_: turned)
    found = verify(checkpoint, device="cpu")
    assert all(each.difference <= found.tolerance for each in found.comparisons)
    assert (found.failures == []) == same
