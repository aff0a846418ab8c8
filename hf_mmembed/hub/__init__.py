"""To the Hub and back: publish a checkpoint, verify a published one, export one that needs no remote code.

In: a checkpoint directory (converted, fine-tuned, or a PEFT adapter). Out: a repository with weights, code of one
version, a card that says what was really run, and golden vectors; or a directory that stock libraries open.
"""

from __future__ import annotations

from .card import card_of, render_card
from .export import export_native
from .files import PublishError, RepoFile, check, collect
from .push import PushError, prepare, push, replaced_files, write_golden
from .verify import Verification, verify

__all__ = [
    "PublishError",
    "PushError",
    "RepoFile",
    "Verification",
    "card_of",
    "check",
    "collect",
    "export_native",
    "prepare",
    "push",
    "render_card",
    "replaced_files",
    "verify",
    "write_golden",
]
