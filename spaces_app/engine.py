"""The model behind the Space and the pictures it searches.

In: texts and pictures from anyone. Out: rankings. Everything a visitor sends is untrusted: texts reach the model as
`{"text": s}` alone, pictures as PIL objects that passed the package's guards, and nothing is ever fetched.
"""

from __future__ import annotations

import base64
import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sentence_transformers.util import get_device_name

from hf_mmembed import PRESETS, HierarchicalPrompt, MMEmbedder
from hf_mmembed.cli.models import SHIPPED, embedder, generative
from hf_mmembed.data.captions import caption
from hf_mmembed.data.scenes import draw, random_scene
from hf_mmembed.inputs import as_messages
from hf_mmembed.model.images_mmembed import open_image
from hf_mmembed.thinking import LocalReasoner, Settings, Trace
from hf_mmembed.thinking.templates import guess_family
from hf_mmembed.tiny.wordings import GENERIC_SYSTEM

__all__ = [
    "MAX_BYTES",
    "MAX_PIXELS",
    "MAX_TEXT",
    "PROMPTS",
    "Engine",
    "Picture",
    "Reading",
    "Visitor",
    "pictures_of",
    "query_of",
    "read_upload",
    "uri",
]

MAX_BYTES = 10_000_000
MAX_PIXELS = 25_000_000
MAX_TEXT = 1_000
MAX_ADDED = 12
MAX_SIDE = 768  # pixels; the models look at fewer
SHOWN_SIDE = 192
MAX_TRACE = 256  # tokens

# What the prompt lab compares, from nothing to the checkpoint's own prompt.
PROMPTS = ("no prompt", "generic", "hierarchical")


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture of the gallery: what is said about it, its embeddings `(dim,)` as a document by prompt, a small copy."""

    about: str
    vectors: dict[str, NDArray[np.float32]]
    uri: str

    def __deepcopy__(self, memo: dict[int, Any]) -> Picture:
        return self  # never changed, so sessions may share it


@dataclass
class Visitor:
    """What belongs to one browser tab."""

    added: list[Picture] = field(default_factory=list)

    def check_room(self) -> None:
        """Before one more picture is added.

        Raises:
            ValueError: There are as many as there may be.
        """
        if len(self.added) >= MAX_ADDED:
            raise ValueError(f"Your gallery holds {MAX_ADDED} pictures already; reload the page to start over.")


@dataclass(frozen=True)
class Reading:
    """What the model makes of some inputs: numbers and texts alone, which cross into another process and back.

    Attributes:
        vectors: Embeddings `(inputs, dim)` by prompt.
        rendered: What the model reads of the first input, by prompt, where they are queries.
        trace: What the reasoner wrote about the first input, where it was to think.
    """

    vectors: dict[str, NDArray[np.float32]]
    rendered: dict[str, str]
    trace: Trace | None


class Engine:
    """One model, read out through three prompts, and a gallery of sample pictures.

    Args:
        model: Directory or Hub id of an embedder. Defaults to the environment variable MMEMBED_MODEL, and without it to
            the shipped model.
        reasoner: Directory or Hub id of a generative model that may write about a query first. Defaults to the
            environment variable MMEMBED_REASONER, and without it to none.
        samples: How many pictures to draw.
    """

    def __init__(self, model: str | None = None, reasoner: str | None = None, samples: int = 48) -> None:
        model = model or os.environ.get("MMEMBED_MODEL") or SHIPPED
        reasoner = reasoner or os.environ.get("MMEMBED_REASONER") or ""
        self.name, self.is_tiny = Path(model).name, model == SHIPPED and not Path(model).exists()
        device = get_device_name()
        dtype = {"dtype": "float32"} if device == "cpu" else {}  # as the commands do
        self.embedder = MMEmbedder(embedder(model), device=device, model_kwargs=dtype)
        self.reasoner_name = Path(reasoner).name
        self._reasoner = LocalReasoner(generative(reasoner), settings=Settings(MAX_TRACE)) if reasoner else None
        own = self.embedder.processor.prompt
        self._prompts = {
            "no prompt": PRESETS["plain"],
            "generic": HierarchicalPrompt(system=GENERIC_SYSTEM, represent_text="", represent_image=""),
            "hierarchical": own if own != PRESETS["plain"] else PRESETS["saha"],
        }
        # The prompt belongs to the processor, which all visitors share; the reasoner, which is slower, has its own.
        self._lock, self._reasoner_lock = threading.Lock(), threading.Lock()
        rng = Random("gallery")
        scenes = [random_scene(rng) for _ in range(samples)]
        images = [draw(scene, rng) for scene in scenes]
        about = [caption(scene, rng) for scene in scenes]
        self.samples = pictures_of(
            images, about, self.read([{"image": image} for image in images], "document", PROMPTS)
        )

    @contextmanager
    def _reading(self, prompt: str) -> Iterator[None]:
        with self._lock:
            self.embedder.processor.prompt = self._prompts[prompt]
            try:
                yield
            finally:
                self.embedder.processor.prompt = self._prompts["hierarchical"]

    def embed(
        self, inputs: list[dict[str, Any]], task: str, prompt: str = "hierarchical", traces: list[Trace] | None = None
    ) -> NDArray[np.float32]:
        """Embeddings `(inputs, dim)` of `{"text", "image", "instruction"}` with PIL pictures."""
        with self._reading(prompt):
            return self.embedder.encode(inputs, task=task, traces=traces, show_progress_bar=False)

    def rendered(self, query: dict[str, Any], prompt: str) -> str:
        """What the model reads of a query."""
        with self._reading(prompt):
            return self.embedder.processor.apply_chat_template(as_messages(query), tokenize=False, task="query")

    def check_reasoner(self) -> None:
        """Before it is asked to think.

        Raises:
            ValueError: There is none here.
        """
        if self._reasoner is None:
            raise ValueError("There is no reasoner in this Space, so it cannot think first.")

    def think(self, query: dict[str, Any]) -> Trace:
        """What the reasoner writes about a query.

        Raises:
            ValueError: There is none here.
        """
        self.check_reasoner()
        with self._reasoner_lock:
            [trace] = self._reasoner.think([query], guess_family(as_messages(query), "query"))
        return trace

    def read(
        self,
        inputs: list[dict[str, Any]],
        task: str,
        prompts: tuple[str, ...] = ("hierarchical",),
        think: bool = False,
    ) -> Reading:
        """Everything that takes the models, in one go: on ZeroGPU each call waits for a GPU.

        Args:
            inputs: As for `embed`.
            task: `"query"` or `"document"`.
            prompts: Names of prompts.
            think: Whether the reasoner writes about the input first; it has to be one query then.
        """
        traces = [self.think(query) for query in inputs] if think else None
        return Reading(
            {prompt: self.embed(inputs, task, prompt, traces) for prompt in prompts},
            {prompt: self.rendered(inputs[0], prompt) for prompt in prompts} if task == "query" else {},
            traces[0] if traces else None,
        )

    def gallery(self, visitor: Visitor) -> list[Picture]:
        """The visitor's own pictures, then the samples."""
        return [*visitor.added, *self.samples]

    def rank(
        self, vector: NDArray[np.float32], visitor: Visitor, prompt: str = "hierarchical"
    ) -> list[tuple[Picture, float]]:
        """All pictures with their cosines to a query `(dim,)` that was read with a prompt, best first."""
        pictures = self.gallery(visitor)
        scores = np.stack([p.vectors[prompt] for p in pictures]) @ vector
        return [(pictures[index], float(scores[index])) for index in np.argsort(-scores, kind="stable")]


def pictures_of(images: list[Image.Image], about: list[str], reading: Reading) -> list[Picture]:
    """Pictures that were read as documents with all prompts, with what is said about them."""
    return [
        Picture(words, {name: rows[number] for name, rows in reading.vectors.items()}, uri(image))
        for number, (image, words) in enumerate(zip(images, about, strict=True))
    ]


def query_of(text: str | None, image: Image.Image | None, instruction: str | None) -> dict[str, Any]:
    """A query as the model takes it; empty parts are left out.

    Raises:
        ValueError: There is neither text nor picture, or the text is too long.
    """
    text, instruction = (text or "").strip(), (instruction or "").strip()
    if not text and image is None:
        raise ValueError("Type something, or add a picture, or both.")
    for part in (text, instruction):
        if len(part) > MAX_TEXT:
            raise ValueError(f"That is {len(part):,} characters; the limit here is {MAX_TEXT:,}.")
    query: dict[str, Any] = {}
    if text:
        query["text"] = text
    if image is not None:
        query["image"] = image
    if instruction:
        query["instruction"] = instruction
    return query


def read_upload(path: str | None) -> Image.Image | None:
    """The picture in an uploaded file, as an RGB picture of bounded size.

    Raises:
        ValueError: It is too large, or no picture, or broken, or has been deleted since. The message names no path of the server.
    """
    if not path:
        return None
    file = Path(path)
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ValueError(f"That file is larger than {MAX_BYTES // 1_000_000} MB.")
        content = file.read_bytes()
    except FileNotFoundError:
        # A tab that is left open still shows it.
        raise ValueError("That picture was deleted, as all are within the hour. Choose it again.") from None
    # From bytes, not from the path: the guard's messages name what they are given.
    image = open_image(content, max_pixels=MAX_PIXELS)
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    return image


def uri(image: Image.Image) -> str:
    """A small copy as a `data:` URI; nothing of the original file (no EXIF, no name) is in it."""
    small = image.copy()
    small.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=82)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
