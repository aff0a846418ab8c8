"""Think-Then-Embed (https://arxiv.org/abs/2510.05014): a reasoner writes about an input, the embedder reads both.

In: queries and documents. Out: `Trace`s, kept in a `TraceStore`, and embeddings that were made in their sight: by a
separate embedder (`MMEmbedder.encode(..., think="auto")`), or by a head on the reasoner itself (`UnifiedModel`).
Every name below is imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .endpoint import EndpointReasoner
    from .filling import fill, think_about_pairs
    from .reasoner import LocalReasoner, PrecomputedReasoner, Reasoner, Settings
    from .sft import fine_tune
    from .templates import FAMILIES, load_templates
    from .thinker import Thinker
    from .traced import traced_trainer
    from .traces import Trace, TraceStore
    from .unified import UnifiedModel, make_unified, open_unified

__all__ = [
    "FAMILIES",
    "EndpointReasoner",
    "LocalReasoner",
    "PrecomputedReasoner",
    "Reasoner",
    "Settings",
    "Thinker",
    "Trace",
    "TraceStore",
    "UnifiedModel",
    "fill",
    "fine_tune",
    "load_templates",
    "make_unified",
    "open_unified",
    "think_about_pairs",
    "traced_trainer",
]

_HOME = {
    "FAMILIES": "templates",
    "EndpointReasoner": "endpoint",
    "LocalReasoner": "reasoner",
    "PrecomputedReasoner": "reasoner",
    "Reasoner": "reasoner",
    "Settings": "reasoner",
    "Thinker": "thinker",
    "Trace": "traces",
    "TraceStore": "traces",
    "UnifiedModel": "unified",
    "fill": "filling",
    "fine_tune": "sft",
    "load_templates": "templates",
    "make_unified": "unified",
    "open_unified": "unified",
    "think_about_pairs": "filling",
    "traced_trainer": "traced",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
