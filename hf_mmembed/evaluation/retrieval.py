"""Reads image-text retrieval sets: captions to pictures and pictures to captions, several captions per picture.

In: a captions file in Karpathy's layout (Flickr30K, COCO), a list of long captions (ShareGPT4V, Urban1K), Urban1K's
folders, or an imagefolder with ``metadata.jsonl``. Out: two `Ranking` tasks, ``<name>_t2i`` and ``<name>_i2t``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_mmembed.visible import visible

from .instructions import WORDINGS, Protocol, built_item
from .items import ImageFile
from .media import Pictures
from .subsets import Subset
from .tables import Missing, read_json
from .tasks import Ranking

__all__ = ["list_retrieval", "read_retrieval"]

_DIRECTIONS = {"t2i": "Text to image", "i2t": "Image to text"}
_FOLDERS = ("", "images", "image", "val2014", "val2017", "flickr30k-images")
# Of 1.2 million captions the first 1,000 are the test set (Long-CLIP, arXiv 2403.15378).
_SHAREGPT4V, _SHAREGPT4V_ROWS = "share-captioner", 1000
_IMAGE_KEYS = ("image", "filename", "file_name", "img", "image_path")
_CAPTION_KEYS = ("captions", "caption", "text", "conversations")


def list_retrieval(root: Path) -> tuple[Subset, ...]:
    """The sets in a folder: itself, or each folder in it, in both directions.

    Raises:
        ValueError: There is none.
    """
    if not root.is_dir():
        raise ValueError(f"no folder {root}")
    folders = [root] if _captions_file(root) else [path for path in visible(root) if _captions_file(path)]
    if not folders:
        raise ValueError(
            f"{root} holds no captions: expected a .json file in Karpathy's layout or a list of captions, metadata.jsonl, "
            "or Urban1K's folders `image` and `caption`, in it or in a folder of it"
        )
    return tuple(
        Subset(f"{folder.name}_{direction}", "retrieval", group)
        for folder in folders
        for direction, group in _DIRECTIONS.items()
    )


def read_retrieval(root: Path, subset: Subset, protocol: Protocol) -> Ranking:
    """One set in one direction. A picture is relevant to each of its captions, and each of them to it.

    Raises:
        Missing: It is not there.
        ValueError: It is broken, or a picture is missing; the message names it.
    """
    name, _, direction = subset.name.rpartition("_")
    folder = root if root.name == name and _captions_file(root) else root / name
    file = _captions_file(folder)
    if file is None:
        raise Missing(f"no captions in {folder}")
    pairs = list(_pairs(folder, file))
    if not pairs:
        raise ValueError(f"{file} has no picture with a caption (in Karpathy's layout: with split 'test')")
    captions = [(caption, place) for place, (_, texts) in enumerate(pairs) for caption in texts]
    wording = WORDINGS[f"retrieval/{direction}"]
    notes = {"pictures": len(pairs), "captions": len(captions)}
    if direction == "t2i":
        texts = [built_item(caption, (), wording.query, protocol, "query") for caption, _ in captions]
        pictures = [
            built_item(None, (image,), wording.target, protocol, "document", candidate=True) for image, _ in pairs
        ]
        return Ranking(texts, pictures, [{place: 1} for _, place in captions], notes=notes)
    pictures = [built_item(None, (image,), wording.query, protocol, "query") for image, _ in pairs]
    texts = [built_item(caption, (), wording.target, protocol, "document", candidate=True) for caption, _ in captions]
    relevance: list[dict[int, int]] = [{} for _ in pairs]
    for number, (_, place) in enumerate(captions):
        relevance[place][number] = 1
    return Ranking(pictures, texts, relevance, notes=notes)


def _captions_file(folder: Path) -> Path | None:
    if (folder / "metadata.jsonl").is_file():
        return folder / "metadata.jsonl"
    if (folder / "caption").is_dir() and (folder / "image").is_dir():
        return folder / "caption"
    files = visible(folder, "*.json")
    return files[0] if len(files) == 1 else next((file for file in files if file.name.startswith("dataset_")), None)


def _pairs(folder: Path, file: Path) -> Iterator[tuple[ImageFile, list[str]]]:
    """Pictures with their captions."""
    pictures = Pictures([folder / place for place in _FOLDERS], visible(folder, "*.zip"))
    if file.is_dir():
        for text in visible(file, "*.txt"):
            found = sorted((folder / "image").glob(f"{text.stem}.*"))
            if not found:
                raise ValueError(f"no picture {text.stem}.* in {folder / 'image'} for {text}")
            yield ImageFile(found[0]), [text.read_text(encoding="utf-8").strip()]
        return
    rows = _rows(file)
    if file.name.startswith(_SHAREGPT4V):
        rows = rows[:_SHAREGPT4V_ROWS]
    # Rows of one picture need not stand together.
    captions_of: dict[ImageFile, list[str]] = {}
    for number, row in enumerate(rows):
        try:
            image, captions = _row(row, pictures)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file}, row {number}: {error}") from error
        captions_of.setdefault(image, []).extend(captions)
    yield from ((image, list(dict.fromkeys(captions))) for image, captions in captions_of.items())


def _rows(file: Path) -> list[dict[str, Any]]:
    loaded = read_json(file)
    if isinstance(loaded, dict):
        # Karpathy's layout: only the test split is ever scored.
        loaded = [row for row in loaded.get("images", []) if row.get("split") == "test"]
    return loaded


def _row(row: dict[str, Any], pictures: Pictures) -> tuple[ImageFile, list[str]]:
    if "sentences" in row:
        name = row["filename"]
        folder = row.get("filepath")  # COCO's pictures lie in two folders
        captions = [sentence["raw"].strip() for sentence in row["sentences"]]
        return pictures[f"{folder}/{name}" if folder and _has(pictures, f"{folder}/{name}") else name], captions
    name = next((row[key] for key in _IMAGE_KEYS if key in row), None)
    found = next((row[key] for key in _CAPTION_KEYS if key in row), None)
    if name is None or not found:
        raise ValueError(f"needs a picture ({', '.join(_IMAGE_KEYS)}) and a caption ({', '.join(_CAPTION_KEYS)})")
    if isinstance(found, str):
        return pictures[name], [found.strip()]
    if isinstance(found[0], dict):  # ShareGPT4V: the caption is what the assistant says
        return pictures[name], [found[1]["value"].strip()]
    return pictures[name], [caption.strip() for caption in found]


def _has(pictures: Pictures, name: str) -> bool:
    return any((root / name).is_file() for root in pictures.roots) or any(
        name in members for members in pictures.members.values()
    )
