"""What each data set tells the model to do, and where the picture stands: one table, in three protocols.

In: the name of a data set, its raw texts and pictures. Out: an `Item` of either side.

* ``instruction_in="user"``, the protocol of MMEB-V1 and of the published tables up to 2025: instruction and text are one
  text in the user's turn, after the picture, and candidates carry an instruction too.
* ``instruction_in="system"``, the protocol of VLM2Vec since September 2026 (``docs/mmebv2_reproduction``) and of
  Qwen3-VL-Embedding: the instruction is the system's turn, the text stands alone, candidates carry no instruction.
* ``instruction_in="none"``: no instruction at all, the prompt of the checkpoint stands alone, as UniME and E5-V measure
  retrieval with their one-word prompts.

Sources of the wordings: image, the data of MMEB-eval and MMEB_Test_Instruct themselves; video and documents, the
constants ``TASK_INST_QRY`` and ``TASK_INST_TGT`` of ``src/data/eval_dataset`` in the VLM2Vec repository; SugarCrepe,
the evaluation scripts of Gen2Embed; retrieval, MMEB's own wordings for COCO.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from .items import ImageFile, Item, Role

__all__ = ["IMAGE_MARKER", "WORDINGS", "Protocol", "Wording", "built_item", "split_item"]

Protocol = Literal["user", "system", "none"]

IMAGE_MARKER = "<|image_1|>"
"""Stands for the picture in MMEB's texts. It is taken out: the picture comes first, which is where the marker stands.
Some text-only rows carry it too (queries of WebQA and EDIS)."""


@dataclass(frozen=True)
class Wording:
    """What a data set tells the model on each side; None where it says nothing.

    Attributes:
        query: Instruction of the queries.
        target: Instruction of the candidates.
        candidate_role: Candidates that are described like queries are read like queries (RefCOCO-Matching; Gen2Embed
            routes them so).
        also: Other instructions of queries that published versions of the data have.
    """

    query: str | None
    target: str | None = None
    candidate_role: Role = "document"
    also: tuple[str, ...] = ()

    def on(self, *, candidate: bool) -> tuple[str, ...]:
        """Every instruction that a text of this side may begin with."""
        found = (self.target,) if candidate else (self.query, *self.also)
        return tuple(instruction for instruction in found if instruction is not None)


_CLASSIFY = "Represent the given image for classification"
_OBJECT = "Identify the object shown in the image"
_SCENE = "Identify the scene shown in the image"
_QUESTION = "Represent the given image with the following question:"
_IMAGE = "Represent the given image."
_CROP = "Represent the given cropped image of the object."
_EXPRESSION = "Select the portion of the image that follows the language expressions"
_VIDEO = "Understand the content of the provided video."
_ANSWER = (
    "Given a video and a question, select the most accurate answer from the provided candidates. Return only the exact "
    "text of your chosen answer. Question:"
)
_PAGE = Wording(
    "Find a document image that matches the given query:", "Understand the content of the provided document image."
)

WORDINGS: dict[str, Wording] = {
    "ImageNet-1K": Wording(_CLASSIFY),
    "N24News": Wording("Represent the given news image with the following caption for domain classification:"),
    "HatefulMemes": Wording(
        "Represent the given image for binary classification to determine whether it constitutes hateful speech or not"
    ),
    "VOC2007": Wording(_OBJECT),
    "SUN397": Wording(_SCENE),
    "Place365": Wording(_SCENE),
    "ImageNet-A": Wording(_CLASSIFY),
    "ImageNet-R": Wording(_CLASSIFY),
    "ObjectNet": Wording(_OBJECT),
    "Country211": Wording("Identify the country depicted in the image"),
    **dict.fromkeys(
        (
            *("OK-VQA", "A-OKVQA", "DocVQA", "InfographicsVQA", "ChartQA"),
            *("Visual7W", "ScienceQA", "VizWiz", "GQA", "TextVQA"),
        ),
        Wording(_QUESTION),
    ),
    "VisDial": Wording(
        "Represent the given dialogue about an image, which is used for image retrieval:", "Represent the given image"
    ),
    "CIRR": Wording("Given an image, find a similar everyday image with the described changes:", _IMAGE),
    "VisualNews_t2i": Wording("Retrieve an image of this news caption.", _IMAGE),
    "VisualNews_i2t": Wording("Find a caption for the news in the given photo."),
    "MSCOCO_t2i": Wording("Find me an everyday image that matches the given caption:", _IMAGE),
    "MSCOCO_i2t": Wording("Find an image caption describing the given everyday image."),
    "NIGHTS": Wording("Find a day-to-day image that looks similar to the provided image.", _IMAGE),
    "WebQA": Wording(
        "Find a Wikipedia image that answers this question:",
        "Represent the given Wikipedia image with related text information:",
    ),
    "FashionIQ": Wording("Find an image to match the fashion image and style note:", _IMAGE),
    "Wiki-SS-NQ": Wording("Find the document image that can answer the given query:", _IMAGE),
    "OVEN": Wording(
        "Retrieve a Wikipedia image-description pair that provides evidence for the question of this image:",
        "Represent the given Wikipedia image with related text information:",
    ),
    "EDIS": Wording(
        "Find a news image that matches the provided caption:",
        "Represent the given image with related text information:",
    ),
    "MSCOCO": Wording(
        "Select the portion of the image that isolates the object labeled as",
        _CROP,
        also=("Crop the image to to isolate the object labeled as",),
    ),
    "RefCOCO": Wording(_EXPRESSION, _CROP),
    "RefCOCO-Matching": Wording(_EXPRESSION, _EXPRESSION, "query"),
    "Visual7W-Pointing": Wording("Select the portion of the image that answers the question", _CROP),
    "K700": Wording("Recognize the category of the video content."),
    "SmthSmthV2": Wording("What actions or object interactions are being performed by the person in the video?"),
    "HMDB51": Wording("What actions or objects interactions are the person in the video doing?"),
    "UCF101": Wording("What activities or sports are being performed by the person in the video?"),
    "Breakfast": Wording("Recognize the breakfast type that the person is cooking in the video."),
    **dict.fromkeys(("MVBench", "Video-MME", "NExTQA", "EgoSchema", "ActivityNetQA"), Wording(_ANSWER)),
    "DiDeMo": Wording("Find a video that includes the following described scenes:", _VIDEO),
    "MSR-VTT": Wording("Find a video that contains the following visual content:", _VIDEO),
    "MSVD": Wording("Find the video snippet that corresponds to the given summary:", _VIDEO),
    "VATEX": Wording("Select a video that fits the description provided:", _VIDEO),
    "YouCook2": Wording("Find a video that demonstrates the following action while making a recipe:", _VIDEO),
    **dict.fromkeys(
        ("QVHighlight", "Charades-STA"),
        Wording("Find the clip that corresponds to the described scene in the given video:", _VIDEO),
    ),
    "MomentSeeker": Wording(
        "Find the clip that corresponds to the given text:", "Understand the content of the provided video clip."
    ),
    "MomentSeeker/image": Wording("Select the video clip that aligns with the given text and image:"),
    "MomentSeeker/video": Wording("Find the clip that corresponds to the given sentence and video segment:"),
    "visdoc": _PAGE,
    "sugarcrepe": Wording("Find me an image that matches the given caption:"),
    "retrieval/t2i": Wording("Find me an everyday image that matches the given caption:", _IMAGE),
    "retrieval/i2t": Wording("Find an image caption describing the given everyday image."),
}


def split_item(
    text: str | None,
    images: tuple[ImageFile, ...],
    instructions: Sequence[str],
    protocol: Protocol,
    role: Role,
    *,
    candidate: bool = False,
) -> Item:
    """An item from a text of MMEB-V1, which begins with its instruction.

    Under ``"user"`` the text stays as it is in the file, but for the marker. Under ``"system"`` the instruction is cut
    off: it becomes the system's turn of a query, and is dropped from a candidate.

    Args:
        text: The text of the file.
        images: Its pictures.
        instructions: The wordings of the table, one of which the text begins with; what punctuation follows it does
            not matter. Empty where texts carry no instruction.
        protocol: See above.
        role: The side of the prompt.
        candidate: Whether this is a candidate.

    Raises:
        ValueError: Under ``"system"``, the text does not begin with one of them.

    Example:
        >>> asked = "<|image_1|>\\nRepresent the given image with the following question: What colour?\\n"
        >>> split_item(asked, (), WORDINGS["GQA"].on(candidate=False), "user", "query").text
        'Represent the given image with the following question: What colour?\\n'
        >>> item = split_item(asked, (), WORDINGS["GQA"].on(candidate=False), "system", "query")
        >>> item.instruction, item.text
        ('Represent the given image with the following question:', 'What colour?')
    """
    text = (text or "").replace(IMAGE_MARKER, "", 1)
    if protocol == "user" or not instructions:
        return _item(text if images else text.lstrip("\n"), images, None, role)
    bare = [instruction.rstrip(".: ") for instruction in instructions]
    found = re.match(f"(?:{'|'.join(map(re.escape, bare))})[.:]?", text.strip())
    if found is None:
        raise ValueError(
            f"the text {text.strip()[:80]!r} does not begin with the instruction {bare[0]!r}, so it cannot be moved to the "
            "system's turn; use instruction_in='user', which leaves the texts as they are"
        )
    told = None if candidate or protocol == "none" else found.group()
    return _item(text.strip()[found.end() :].strip(), images, told, role)


def built_item(
    text: str | None,
    images: tuple[ImageFile, ...],
    instruction: str | None,
    protocol: Protocol,
    role: Role,
    *,
    candidate: bool = False,
    end: str = "",
) -> Item:
    """An item whose instruction and text are given apart, as in MMEB-V2, SugarCrepe and retrieval.

    Args:
        text: The text alone.
        images: Its pictures.
        instruction: What the data set says on this side, if anything.
        protocol: See above.
        role: The side of the prompt.
        candidate: Whether this is a candidate.
        end: What the official ``"user"`` text of this data set ends with.

    Example:
        >>> built_item("a dog", (), "Find me an image:", "user", "query").text
        'Find me an image: a dog'
        >>> built_item("a dog", (), "Find me an image:", "system", "query")
        Item(text='a dog', images=(), instruction='Find me an image:', role='query', trace=None)
    """
    if protocol == "user":
        joined = " ".join(part for part in (instruction, text) if part) + end
        return _item(joined, images, None, role)
    return _item(text, images, None if candidate or protocol == "none" else instruction, role)


def _item(text: str | None, images: tuple[ImageFile, ...], instruction: str | None, role: Role) -> Item:
    item = Item(text or None, images, instruction, role)
    # A text may be empty; an input may not.
    return item if item.text or item.images else replace(item, text="")
