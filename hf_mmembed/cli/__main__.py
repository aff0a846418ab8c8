"""``python -m hf_mmembed.cli`` (and ``accelerate launch -m hf_mmembed.cli``) is the ``hf-mmembed`` command."""

from __future__ import annotations

from .main import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
