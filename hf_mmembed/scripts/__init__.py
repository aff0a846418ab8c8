"""Scripts that run alone: with `uv run`, as Hugging Face Jobs, or with `python`. Each says how in its own words.

In: a model and data on the Hub or on the disk. Out: what the commands of the same name write, pushed to the Hub where
that is asked for.
"""

from __future__ import annotations

__all__: list[str] = []
