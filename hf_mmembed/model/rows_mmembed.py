"""What one input is, and the words that the prompt puts around it.

In: lists of texts and images, or chat conversations. Out: [`Row`]s, checked one by one, so that an input that cannot
be embedded is an error that names it. [`HierarchicalPrompt`] is what a checkpoint stores. This file travels with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

__all__ = ["HierarchicalPrompt", "Row", "image_source", "refuse_unread", "row_of_conversation", "rows_of_lists"]

TASKS = ("query", "document")
IMAGE_STYLES = ("template", "inline", "bare")
SWITCHES = ("represent_documents", "chat")
UNREAD = ("text_pair", "text_target", "text_pair_target", "videos", "audio")


@dataclass(frozen=True)
class HierarchicalPrompt:
    """The words around every input: a system prompt for both sides and a representation prompt for queries.

    The hierarchical prompt is that of Ju and Lee (arXiv 2508.00955, Gen2Embed repository); the four fields that have
    a default let the same class write the prompts of other methods.

    Args:
        system (`str`): System prompt of every input. Empty: none is sent, and the backbone's template decides.
        represent_text (`str`): Ends the user turn of a query without image. White space alone is not repeated where the
            turn ends in it already.
        represent_image (`str`): Ends the user turn of a query with an image, likewise.
        represent_documents (`bool`, defaults to `False`): The representation prompt ends documents too.
        image_style (`str`, defaults to `"template"`): `"template"`: images are written by the backbone's chat
            template; `"inline"`: as text, in the backbone's own notation, followed by `separator`; `"bare"`: as
            `"inline"`, without Qwen's `<|vision_start|>` and `<|vision_end|>`.
        chat (`bool`, defaults to `True`): Render with the chat template. Otherwise only the user's content is left.
        separator (`str`, defaults to a line break): Stands between images that are not written by the template and
            words, unless these begin with white space, and between instruction and text, unless the instruction ends in
            white space.

    Raises:
        TypeError: If a field is no string, or no truth value where it is one.
        ValueError: If the choices are unknown or contradict each other.

    Example:

        >>> HierarchicalPrompt("One word.", "\\nText:", "\\nImage:").ending("query", has_image=True)
        '\\nImage:'
    """

    system: str
    represent_text: str
    represent_image: str
    represent_documents: bool = False
    image_style: str = "template"
    chat: bool = True
    separator: str = "\n"

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kind = getattr(self, field.name), bool if field.name in SWITCHES else str
            if not isinstance(value, kind):
                hint = "true or false" if kind is bool else "a string, '' for none"
                raise TypeError(f"{field.name} is {value!r}, it must be {hint}")
        if self.image_style not in IMAGE_STYLES:
            raise ValueError(f"image_style is {self.image_style!r}; use one of {', '.join(map(repr, IMAGE_STYLES))}.")
        if not self.chat and (self.system or self.image_style == "template"):
            raise ValueError(
                "a prompt with chat=False has no turns: leave `system` empty and set image_style to 'inline' or 'bare'."
            )
        if self.image_style == "bare" and not self.separator:
            raise ValueError(
                "image_style 'bare' with an empty separator puts the tokens of two pictures side by side, where Qwen reads "
                "them as one picture; set a separator, or image_style 'inline'."
            )

    def ending(self, task: str | None, has_image: bool) -> str:
        """The representation prompt of an input; empty where it has none.

        Args:
            task (`str`, *optional*): `"query"` or `"document"`; none counts as a document.
            has_image (`bool`): Whether the input holds an image.

        Raises:
            ValueError: If `task` is something else.
        """
        if task is not None and task not in TASKS:
            raise ValueError(f"task is {task!r}; use 'query', 'document' or None (which is 'document').")
        if task != "query" and not self.represent_documents:
            return ""
        return self.represent_image if has_image else self.represent_text


@dataclass(frozen=True)
class Row:
    """One input: its images, its instruction and its text, each of which may be missing, but not all.

    `trace` is what a reasoner wrote about it (Think-Then-Embed, arXiv 2510.05014): read after everything else, in the
    assistant's turn.
    """

    images: tuple[Any, ...] = ()
    text: str | None = None
    instruction: str | None = None
    trace: str | None = None


def rows_of_lists(text: Any, images: Any, instruction: Any, trace: Any = None) -> list[Row]:
    """One row per input from parallel lists; what stands alone counts as a list of one.

    Args:
        text (`list[str | None]` or `str`, *optional*): Texts.
        images (*optional*): Per input None, one image or a list of images.
        instruction (`list[str | None]` or `str`, *optional*): One per input, or one for all.
        trace (`list[str | None]` or `str`, *optional*): One per input.

    Returns:
        `list[Row]`.

    Raises:
        ValueError: If there is no input, the lists differ in length, or an input has neither text nor image.

    Example:

        >>> rows_of_lists(["a cat", "a dog"], None, "Find:")[1]
        Row(images=(), text='a dog', instruction='Find:', trace=None)
    """
    if text is None and images is None:
        raise ValueError("there is nothing to embed: both `text` and `images` are None.")
    texts = None if text is None else _listed(text, "text")
    pictures = None if images is None else _listed(images, "images")
    if texts is not None and pictures is not None and len(texts) != len(pictures):
        raise ValueError(
            f"`text` has {len(texts)} elements and `images` {len(pictures)}; both need one per input, None where "
            "an input has no text or no image."
        )
    count = len(texts if texts is not None else pictures or [])
    one_for_all = isinstance(instruction, str) or not isinstance(instruction, Iterable)
    instructions = [instruction] * count if one_for_all else list(instruction)
    traces = [None] * count if trace is None else [trace] if isinstance(trace, str) else list(trace)
    for name, given in (("instruction", instructions), ("trace", traces)):
        if len(given) != count:
            raise ValueError(f"`{name}` has {len(given)} elements for {count} inputs.")
    rows = []
    for index in range(count):
        for name, value in (
            ("text", texts[index] if texts is not None else None),
            ("instruction", instructions[index]),
            ("trace", traces[index]),
        ):
            _check_words(value, name, index)
        row_text = texts[index] if texts is not None else None
        row_images = pictures[index] if pictures is not None else None
        if not isinstance(row_images, (list, tuple)):
            row_images = () if row_images is None else (row_images,)
        if row_text is None and not row_images:
            raise ValueError(f"input {index} has neither a text nor an image; leave it out.")
        rows.append(Row(tuple(row_images), row_text, instructions[index], traces[index] or None))
    return rows


def row_of_conversation(conversation: Sequence[Mapping[str, Any]], index: int) -> Row:
    """One row from a chat conversation; the words of several messages or blocks are joined by line breaks.

    Args:
        conversation (`list[dict]`): `system` messages hold the instruction, `user` messages text and images, and a
            last `assistant` message the trace.
        index (`int`): The conversation's place in its batch, for error messages.

    Returns:
        [`Row`].

    Raises:
        ValueError: If a message has another role, or something in it is neither text nor image.

    Example:

        >>> row_of_conversation([{"role": "system", "content": "Find:"}, {"role": "user", "content": "a cat"}], 0)
        Row(images=(), text='a cat', instruction='Find:', trace=None)
    """
    images: list[Any] = []
    words: dict[str, list[str]] = {"system": [], "user": [], "assistant": []}
    for message in _unwrapped(conversation):
        role, content = message.get("role", ""), message.get("content")
        if role not in words:
            raise ValueError(
                f"input {index} has a message of role {role!r}; an input is made of `user` messages and, as its "
                "instruction, a `system` message; an `assistant` message at the end is a trace."
            )
        if words["assistant"]:
            raise ValueError(
                f"input {index} has a {role} message after the assistant's, which is a trace and ends it."
            )
        blocks: Sequence[Mapping[str, Any]]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
        for block in blocks:
            if not isinstance(block, Mapping):
                raise ValueError(
                    f"input {index} has a {type(block).__name__} in a {role} message whose content is a list; give text as "
                    "{'type': 'text', 'text': ...}, or as the content itself."
                )
            kind = block.get("type")
            source = image_source(block)
            if kind == "text" and isinstance(block.get("text"), str):
                words[role].append(block["text"])
            elif source is not None and role == "user":
                images.append(source)
            elif kind not in ("text", "image") or block.get(kind, "") is not None:  # None: as if it were not there
                raise ValueError(
                    f"input {index} has a block of type {kind!r} with {sorted(set(block) - {'type'})} in a {role} "
                    "message; give text as {'type': 'text', 'text': ...} and images, in user messages only, as "
                    "{'type': 'image', 'image': ...}."
                )
    for name, role in (("text", "user"), ("instruction", "system"), ("trace", "assistant")):
        _check_words("\n".join(words[role]), name, index)
    text = "\n".join(words["user"]) if words["user"] else None
    if text is None and not images:
        raise ValueError(f"input {index} has neither a text nor an image; leave it out.")
    return Row(tuple(images), text, "\n".join(words["system"]) or None, "\n".join(words["assistant"]) or None)


def refuse_unread(options: Mapping[str, Any]) -> None:
    """Refuse what processors of other models read, and an embedder would put where nobody expects it, or nowhere.

    Args:
        options (`Mapping[str, Any]`): What a processor was called with besides rows.

    Raises:
        ValueError: If one of `UNREAD` is given.
    """
    for name in UNREAD:
        if options.get(name) is not None:
            raise ValueError(
                f"an embedder does not read `{name}`; give the words of each input in `text` and `images` as its pictures, "
                "and embed what is to be compared as inputs of their own."
            )


def image_source(block: Mapping[str, Any]) -> Any:
    """The picture that a block of a chat holds, under any of the names that chats give it; None where it has none.

    Example:

        >>> image_source({"type": "image_url", "image_url": {"url": "a.png"}}), image_source({"type": "text", "text": ""})
        ('a.png', None)
    """
    if block.get("type") == "image_url":
        link = block.get("image_url")
        return link.get("url") if isinstance(link, Mapping) else link
    if block.get("type") == "image":
        return next((block[key] for key in ("image", "path", "url") if block.get(key) is not None), None)
    return None


def _check_words(value: Any, name: str, index: int) -> None:
    """Refuse what no tokenizer takes: anything but strings and None, and half of a surrogate pair in a string."""
    if value is None:
        return
    if not isinstance(value, str):
        raise ValueError(f"the {name} of input {index} is a {type(value).__name__}; give a string or None.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the {name} of input {index} is not valid Unicode: character {error.start} is {value[error.start]!a}, half "
            "of a surrogate pair; remove it."
        ) from error


def _unwrapped(conversation: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The messages; sentence-transformers puts a chat that is listed among texts or images into a block of its own."""
    for message in conversation:
        content = message.get("content")
        lone = content[0] if isinstance(content, list) and len(content) == 1 else None
        wrapped = lone.get("message") if isinstance(lone, Mapping) else None
        yield from [message] if wrapped is None else wrapped


def _listed(value: Any, name: str) -> list[Any]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        return [value]
    if not value:
        raise ValueError(f"there is nothing to embed: `{name}` is an empty list.")
    return list(value)
