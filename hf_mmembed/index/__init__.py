"""From a folder, table or dataset to embeddings on the disk, a FAISS index, searches, and contact sheets of them.

In: a `Source` (`hf_mmembed.data.open_source`) and a loaded `MMEmbedder`. Out: a directory with `items/` (an Arrow
dataset; embeddings of shape ``(rows, dim)``, unit length), `index.faiss`, `manifest.json` and `skipped.jsonl`.
"""

from __future__ import annotations

from hf_mmembed.identity import ModelIdentity, identify, local_checkpoint

from .contact import Panel, Tile, make_panel
from .contact_page import write_contact_page
from .contact_sheet import draw_contact_sheet
from .embedding import Report, embed_source, write_npy
from .manifest import Manifest, read_manifest
from .search import Hit, Index, build_index, embed_query, make_query

__all__ = [
    "Hit",
    "Index",
    "Manifest",
    "ModelIdentity",
    "Panel",
    "Report",
    "Tile",
    "build_index",
    "draw_contact_sheet",
    "embed_query",
    "embed_source",
    "identify",
    "local_checkpoint",
    "make_panel",
    "make_query",
    "read_manifest",
    "write_contact_page",
    "write_npy",
]
