"""The names that commands and cards give to the models in the package."""

from __future__ import annotations

__all__ = ["SHIPPED", "SHIPPED_SAHA"]

SHIPPED = "mmembed-tiny"
SHIPPED_SAHA = f"{SHIPPED}-saha"
