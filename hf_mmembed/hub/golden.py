"""Golden vectors: sixteen fixed inputs with what the model reads and what it returns, stored beside the weights.

In: an embedder. Out: the files of the folder `golden/`: `inputs.json` (texts, instructions, rendered prompts),
`vectors.safetensors` (`embeddings`, float32, `(16, dim)`) and the pictures as PNG. Anyone, with any engine, can feed
the same inputs and compare: a different template, resize or pooling shows at once (several engines have been found to
differ there: sentence-transformers, vLLM and others).

The pictures come from integer arithmetic, so they are the same pixels everywhere.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load, save

from hf_mmembed.inputs import as_messages

from .files import RepoFile

if TYPE_CHECKING:
    from hf_mmembed.sentence_transformer import MMEmbedder

__all__ = ["FOLDER", "GOLDEN_INPUTS", "golden_files", "golden_pictures", "read_golden", "render"]

FOLDER = "golden"

# `image` is the number of a picture of `golden_pictures`.
GOLDEN_INPUTS: tuple[dict[str, Any], ...] = (
    {"task": "query", "text": "a red circle"},
    {"task": "document", "text": "a red circle"},
    {"task": "query", "text": "two dogs on a beach", "instruction": "Find a photograph that shows this."},
    {"task": "document", "text": "Größe, naïve café, 東京, مرحبا, 🙂"},
    {"task": "query", "text": "https://example.com/cat.png"},
    {"task": "document", "text": "control tokens are words: <|im_end|> <image> </s>"},
    {"task": "document", "text": " ".join(f"Sentence {number} of a longer text." for number in range(1, 25))},
    {"task": "query", "text": ""},
    {"task": "query", "image": 0},
    {"task": "document", "image": 0},
    {"task": "document", "image": 1},
    {"task": "document", "image": 2},
    {"task": "query", "image": 1, "instruction": "Which colour is in the corner?"},
    {"task": "query", "image": 0, "text": "the same in blue"},
    {"task": "document", "image": 2, "text": "a caption of the picture"},
    {"task": "query", "image": 3, "text": "what does the sign say?", "instruction": "Answer the question."},
)


def golden_pictures() -> list[Image.Image]:
    """Four RGB pictures of different proportions: a gradient, a chessboard, a disc, noise.

    Example:
        >>> [picture.size for picture in golden_pictures()]
        [(96, 64), (64, 64), (64, 112), (128, 48)]
    """
    y, x = np.mgrid[0:64, 0:96]
    gradient = np.stack([x * 255 // 95, y * 255 // 63, (x + y) * 255 // 158], axis=-1)
    y, x = np.mgrid[0:64, 0:64]
    board = np.where(((x // 8 + y // 8) % 2 == 0)[..., None], [230, 40, 40], [250, 250, 245])
    y, x = np.mgrid[0:112, 0:64]
    disc = np.where(((x - 32) ** 2 + (y - 56) ** 2 < 24**2)[..., None], [40, 70, 220], [245, 215, 40])
    state, noise = 12345, []
    for _ in range(128 * 48 * 3):
        state = (1103515245 * state + 12345) % 2**31
        noise.append(state >> 23)
    grain = np.array(noise).reshape(48, 128, 3)
    return [Image.fromarray(pixels.astype(np.uint8)) for pixels in (gradient, board, disc, grain)]


def golden_files(embedder: MMEmbedder) -> list[RepoFile]:
    """The files of the folder `golden/` for an embedder, which is run once on each input, alone.

    Raises:
        ValueError: An embedding is not finite.
    """
    from hf_mmembed import __version__

    pictures = golden_pictures()
    vectors = embed_golden(embedder, list(GOLDEN_INPUTS), pictures)
    if not np.isfinite(vectors).all():
        broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1)).tolist()
        raise ValueError(f"the model returns NaN or infinity for the golden inputs {broken}; it cannot be published.")
    rendered = [render(embedder, item) for item in GOLDEN_INPUTS]
    described = {
        "about": "Embed each input alone and compare with row i of vectors.safetensors; `rendered` is what the model "
        "reads, before an image is expanded to its tokens.",
        "hf_mmembed": __version__,
        "dtype": str(embedder.dtype).removeprefix("torch."),
        "inputs": [
            {**_without_number(item), "rendered": text} for item, text in zip(GOLDEN_INPUTS, rendered, strict=True)
        ],
    }
    files = [
        RepoFile(f"{FOLDER}/inputs.json", (json.dumps(described, indent=1, ensure_ascii=False) + "\n").encode()),
        RepoFile(f"{FOLDER}/vectors.safetensors", save({"embeddings": np.ascontiguousarray(vectors)})),
    ]
    for number, picture in enumerate(pictures):
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        files.append(RepoFile(f"{FOLDER}/picture-{number}.png", buffer.getvalue()))
    return files


def read_golden(directory: Path) -> tuple[dict[str, Any], NDArray[np.float32], list[Image.Image]]:
    """What `golden_files` wrote: the description, the vectors `(inputs, dim)` and the pictures.

    Raises:
        ValueError: The directory has no golden vectors, or they do not fit their description.
    """
    folder = directory / FOLDER
    if not (folder / "inputs.json").is_file() or not (folder / "vectors.safetensors").is_file():
        raise ValueError(
            f"{directory.name} has no golden vectors (the folder {FOLDER}/), so there is nothing to verify against. "
            "They are written by `hf-mmembed push`."
        )
    described = json.loads((folder / "inputs.json").read_text(encoding="utf-8"))
    vectors = load((folder / "vectors.safetensors").read_bytes())["embeddings"]
    if len(vectors) != len(described["inputs"]):
        raise ValueError(f"{FOLDER}/ describes {len(described['inputs'])} inputs but holds {len(vectors)} vectors.")
    names = sorted(folder.glob("picture-*.png"), key=lambda path: int(path.stem.removeprefix("picture-")))
    pictures = []
    for name in names:
        with Image.open(name, formats=("PNG",)) as picture:
            pictures.append(picture.convert("RGB"))
    return described, vectors, pictures


def embed_golden(
    embedder: MMEmbedder, inputs: list[dict[str, Any]], pictures: list[Image.Image]
) -> NDArray[np.float32]:
    """Embeddings `(inputs, dim)` in float32, one input at a time, so that no batch size can play a part."""
    rows = []
    for item in inputs:
        given: dict[str, Any] = {key: item[key] for key in ("text", "instruction") if key in item}
        if "image" in item:
            given["image"] = pictures[_number(item["image"])]
        rows.append(embedder.encode([given], task=item["task"])[0])
    return np.stack(rows).astype(np.float32)


def render(embedder: MMEmbedder, item: dict[str, Any]) -> str:
    """What the model reads of a golden input."""
    given: dict[str, Any] = {key: item[key] for key in ("text", "instruction") if key in item}
    if "image" in item:
        given["image"] = Image.new("RGB", (64, 64))
    return embedder.processor.apply_chat_template(
        as_messages(given), tokenize=False, task=item["task"], add_generation_prompt=True
    )


def _without_number(item: dict[str, Any]) -> dict[str, Any]:
    return {**item, "image": f"picture-{item['image']}.png"} if "image" in item else dict(item)


def _number(image: int | str) -> int:
    return image if isinstance(image, int) else int(image.removeprefix("picture-").removesuffix(".png"))
