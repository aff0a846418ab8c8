"""The ``hf-mmembed`` command: one file per command, each a plain function that `main` registers.

In: paths and flags. Out: files, a table on stdout, messages on stderr, and an exit code (0 done, 1 failed, 2 usage).
Command files import torch, transformers and the rest of the package inside the function body only, so that
``hf-mmembed --help`` stays instant.
"""

from __future__ import annotations

__all__: list[str] = []
