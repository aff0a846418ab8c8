"""What a checkpoint directory puts on the Hub: every file with its size and hash, and what may never be among them.

In: a directory. Out: a list of `RepoFile`s, or a `PublishError` that lists everything that is wrong with it. Nothing
is sent here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from huggingface_hub import get_token

__all__ = ["PublishError", "RepoFile", "check", "collect"]

_CODE = Path(__file__).parents[1] / "model"
# Left over from training and of no use to anyone who loads the model; they may also hold machine paths.
_LEFT_OUT = (
    "optimizer.pt",
    "scheduler.pt",
    "scaler.pt",
    "rng_state*.pth",
    "training_args.bin",
    "trainer_state.json",
    "checkpoint-*",
    "runs",
    "*.tmp",
    "__pycache__",
    ".*",
)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".h5", ".npy", ".msgpack")
# A vocabulary, in which anything may stand; it is written by a library and names no machine.
_VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt")

_ROOTS = (
    "home|root|Users|Volumes|mnt|media|tmp|var|data|work|workspace|scratch|content|kaggle|private|opt|srv|nfs|gpfs|lustre|"
    "fsx|efs|cluster|storage|projects?"
)
# Not the path of an address (https://host/data/x, https://data/x), nor the end of a relative one (./data/x, a/data/x).
_MACHINE_PATH = re.compile(
    rf"(?<![\w.~-])(?<!:/)/(?:{_ROOTS})/[\w.-]+|\b[A-Za-z]:\\{{1,2}}(?:Users|Documents|Windows|temp)\\"
)
_TOKENS = {
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{30,}"),
    "an OpenAI-style key": re.compile(r"\bsk-[A-Za-z0-9_-]{32,}"),
    "a GitHub token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{40,})"),
    "an AWS key": re.compile(r"\bAKIA[0-9A-Z]{16}\b"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
}


class PublishError(ValueError):
    """A directory that must not be published as it is; the message lists why."""


@dataclass(frozen=True)
class RepoFile:
    """One file of the repository.

    Attributes:
        path: Where it lies in the repository, with forward slashes.
        source: The local file, or the content itself.
    """

    path: str
    source: Path | bytes

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    @cached_property
    def sha256(self) -> str:
        """Hexadecimal digest of the content: the one the Hub shows for a large file."""
        if isinstance(self.source, bytes):
            return hashlib.sha256(self.source).hexdigest()
        with self.source.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def read(self) -> bytes:
        """The whole content."""
        return self.source if isinstance(self.source, bytes) else self.source.read_bytes()


def collect(directory: str | Path) -> list[RepoFile]:
    """The files of a checkpoint directory, sorted by path; code files are those of the installed package.

    A checkpoint that carries code gets all of it from one place, so that files of two versions cannot meet in one
    repository. What training leaves behind (optimizer state, logs, hidden files) stays out.

    Args:
        directory: A converted or fine-tuned checkpoint, a native export, or a PEFT adapter.

    Raises:
        PublishError: There is no such directory, or it holds no checkpoint.
    """
    root = Path(directory)
    if not root.is_dir():
        raise PublishError(
            f"there is no directory {root}; give the directory of a converted checkpoint or an adapter."
        )
    if not any((root / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise PublishError(f"{root} holds neither config.json nor adapter_config.json, so it is no checkpoint.")
    found = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if not path.is_dir()}
    files = {name: RepoFile(name, path) for name, path in found.items() if not _is_left_out(name)}
    if _carries_code(root):
        files = {name: file for name, file in files.items() if not name.endswith("_mmembed.py")}
        for path in _CODE.glob("*_mmembed.py"):
            files[path.name] = RepoFile(path.name, path)
    return [files[name] for name in sorted(files)]


def check(files: list[RepoFile]) -> None:
    """Refuse what may never be published, all findings at once.

    Looked for: pickled weights (they can run code when they are read), a lack of safetensors, links that lead nowhere,
    code of another repository in an `auto_map`, and in every file of whatever kind (of safetensors, in the header)
    absolute paths of a machine, this user's home and working directory, and access tokens.

    Raises:
        PublishError: With one line per finding.
    """
    findings = []
    names = {file.path for file in files}
    if not any(name.endswith(".safetensors") and "/" not in name for name in names):
        findings.append("there are no weights: no *.safetensors")
    for file in files:
        suffix = Path(file.path).suffix.lower()
        if suffix in _PICKLES:
            findings.append(f"{file.path}: {suffix} can hold pickled code; only safetensors is published")
        elif isinstance(file.source, Path) and not file.source.is_file():
            findings.append(f"{file.path}: a link that leads nowhere")
        elif suffix == ".safetensors":
            findings += [f"{file.path}: {finding}" for finding in _secrets(_safetensors_metadata(file))]
        elif file.path not in _VOCABULARIES:
            text = file.read().decode("utf-8", errors="replace")
            findings += [f"{file.path}: {finding}" for finding in _secrets(text)]
            if suffix == ".json":
                findings += [f"{file.path}: {finding}" for finding in _foreign_code(text, names)]
    if findings:
        raise PublishError(
            f"{len(findings)} thing(s) must not be published:\n- "
            + "\n- ".join(findings)
            + "\nNothing was uploaded. Mend or remove these files and push again."
        )


def _is_left_out(name: str) -> bool:
    parts = Path(name).parts
    kept = parts[0] == ".eval_results"
    return not kept and any(Path(part).match(pattern) for part in parts for pattern in _LEFT_OUT)


def _carries_code(root: Path) -> bool:
    files = [path for name in ("config.json", "processor_config.json") if (path := root / name).is_file()]
    return any("auto_map" in json.loads(path.read_text(encoding="utf-8")) for path in files)


def _safetensors_metadata(file: RepoFile) -> str:
    """The free text of a safetensors header: its `__metadata__`."""
    if isinstance(file.source, bytes):
        length = int.from_bytes(file.source[:8], "little")
        header = file.source[8 : 8 + length]
    else:
        with file.source.open("rb") as stream:
            header = stream.read(int.from_bytes(stream.read(8), "little"))
    try:
        return json.dumps(json.loads(header).get("__metadata__", {}))
    except ValueError as error:
        raise PublishError(f"{file.path} is no readable safetensors file ({error}); save the model again.") from error


def _secrets(text: str) -> Iterator[str]:
    # Shorter ones, such as /root or /app, may stand in any text.
    own = [str(path) for path in (Path.home(), Path.cwd()) if len(path.parts) > 2]
    token = get_token()
    for number, line in enumerate(text.splitlines(), 1):
        if found := _MACHINE_PATH.search(line):
            yield f"line {number} names a path of this machine ({found[0]}...)"
        elif any(path in line for path in own):
            yield f"line {number} names your home or working directory"
        kinds = [kind for kind, pattern in _TOKENS.items() if pattern.search(line)]
        if token and token in line and not kinds:
            kinds = ["your access token"]
        yield from (f"line {number} holds {kind}" for kind in kinds)


def _foreign_code(text: str, names: set[str]) -> Iterator[str]:
    try:
        references = json.loads(text)
    except ValueError:
        yield "is no valid JSON"
        return
    auto_map = references.get("auto_map", {}) if isinstance(references, dict) else {}
    for reference in auto_map.values():
        for part in reference if isinstance(reference, list) else [reference]:
            module = str(part).partition(".")[0]
            if part is not None and ("--" in str(part) or f"{module}.py" not in names):
                yield f"auto_map refers to {part!r}, which is not in this repository"
