"""What a reasoner is asked, per family of tasks: versioned data, since a trace depends on every word of it.

In: a version. Out: `Templates`, which give a prompt for each family and say where thinking pays by default.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from hf_mmembed.inputs import pictures, texts
from hf_mmembed.model.rows_mmembed import HierarchicalPrompt

__all__ = ["FAMILIES", "LATEST", "Templates", "guess_family", "load_templates"]

FAMILIES = ("classification", "qa", "content", "grounding", "composed")
"""``content`` is everything that is looked for as it is: captions, pictures and pages, and all documents."""

LATEST = "1"


@dataclass(frozen=True)
class Templates:
    """The prompts of one version.

    Attributes:
        version: Becomes part of the key of every trace. That of a file of one's own has a digest of its words added.
        system: System prompt of the reasoner.
        form: What the output should look like; ends every request.
        answer: Added where the answer is shown, with ``{answer}`` in it.
        requests: What is asked, by family.
        think: Whether ``think="auto"`` thinks, by family.
    """

    version: str
    system: str
    form: str
    answer: str
    requests: Mapping[str, str]
    think: Mapping[str, bool]

    def prompt(self, family: str) -> HierarchicalPrompt:
        """The words around an input of this family.

        Raises:
            ValueError: There is no such family.

        Example:
            >>> load_templates().prompt("qa").represent_text.split(".")[0]
            '\\nAnswer the question'
        """
        if family not in self.requests:
            raise ValueError(f"there is no task family {family!r}; use one of {', '.join(map(repr, self.requests))}")
        request = f"\n{self.requests[family]} {self.form}"
        return HierarchicalPrompt(self.system, request, request, represent_documents=True)


def load_templates(version_or_path: str | Path = LATEST) -> Templates:
    """Templates that come with the package, by version, or those of a YAML file of the same form.

    Args:
        version_or_path: Defaults to the latest version.

    Raises:
        ValueError: There is no such version, or the file lacks something.
    """
    file: Any = resources.files(__package__) / f"templates-v{version_or_path}.yaml"
    own = str(version_or_path).endswith((".yaml", ".yml"))
    if own:
        file = Path(version_or_path)
    elif not file.is_file():
        raise ValueError(f"there are no templates of version {version_or_path!r}; the latest is {LATEST!r}")
    try:
        fields = yaml.safe_load(file.read_text(encoding="utf-8"))
        families = fields.pop("families")
        requests = {name: families[name]["request"] for name in FAMILIES}
        if own:
            words = json.dumps([fields, requests], sort_keys=True, default=str)
            fields["version"] = f"{fields['version']}-{hashlib.sha256(words.encode()).hexdigest()[:8]}"
        return Templates(**fields, requests=requests, think={name: bool(families[name]["think"]) for name in FAMILIES})
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{version_or_path} holds no templates ({' '.join(str(error).split())}); it needs version, system, form, "
            f"answer, and under families request and think of {', '.join(FAMILIES)}"
        ) from error


def guess_family(messages: Sequence[dict[str, Any]], task: str | None) -> str:
    """The family of an input, as far as its form tells: a picture with words is a question or a change to the picture.

    Args:
        messages: What `hf_mmembed.inputs.as_messages` returns.
        task: ``"query"``, ``"document"`` or None, which is a document.

    Example:
        >>> from hf_mmembed.inputs import as_messages
        >>> guess_family(as_messages({"image": "a.png", "text": "How many discs?"}), "query")
        'qa'
        >>> guess_family(as_messages("two discs"), "query")
        'content'
    """
    if task != "query" or not any(True for _ in pictures(list(messages))):
        return "content"
    words = " ".join(texts([message for message in messages if message["role"] == "user"])).strip()
    return "qa" if words.endswith("?") else "composed" if words else "content"
