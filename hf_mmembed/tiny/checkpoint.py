"""Where the shipped models lie.

One set of weights serves all: the generative checkpoint is part of the package, and its embedder is converted from it
into the assets cache of huggingface_hub on first use, by the same `convert` that serves every other model. What SaHa
made of the embedder is part of the package as an adapter, and is joined with its base there too.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_mmembed.files import write_atomically
from hf_mmembed.lock import LOCK
from hf_mmembed.shipped import SHIPPED

__all__ = ["checkpoint_path", "generative_path", "saha_path"]

_PACKAGE = Path(__file__).parent.parent
_GENERATIVE = _PACKAGE / "tiny" / "generative"
_SAHA = _PACKAGE / "tiny" / "saha"


def generative_path() -> Path:
    """Directory of the generative checkpoint (transformers layout, bfloat16 safetensors).

    Raises:
        FileNotFoundError: The package was installed without its weights.
    """
    if not (_GENERATIVE / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"{_GENERATIVE} holds no model.safetensors: reinstall hf-mmembed, or make the model with "
            "`hf-mmembed tiny train`"
        )
    return _GENERATIVE


def checkpoint_path() -> Path:
    """Directory of the embedder: what `AutoModel`, `SentenceTransformer` and `MMEmbedder` open.

    It is converted on first use (about a second) with the hierarchical prompt, and again whenever the weights or the
    model code have changed. `HF_ASSETS_CACHE` moves the cache it is kept in.

    Raises:
        FileNotFoundError: As in `generative_path`.
        OSError: The cache cannot be written.
    """
    generative = generative_path()
    from huggingface_hub import cached_assets_path

    sources = [*sorted(generative.iterdir()), *sorted((_PACKAGE / "model").glob("*.py"))]
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.name.encode() + b"\0" + hashlib.sha256(source.read_bytes()).digest())
    with _advising():
        cache = cached_assets_path("hf_mmembed", namespace=SHIPPED, subfolder=digest.hexdigest()[:16])
        embedder = cache / "embedder"
        if not (embedder / "config.json").is_file():
            from hf_mmembed.model.convert import convert

            with _one_at_a_time(cache):
                if not (embedder / "config.json").is_file():
                    if embedder.exists():
                        shutil.rmtree(embedder)  # half of one, of an earlier version
                    convert(generative, embedder, dtype="float32")  # the fastest type on a CPU, where it mostly runs
    return embedder


def saha_path() -> Path:
    """Directory of `mmembed-tiny-saha`: the adapter of ``hf-mmembed train --config saha-tiny`` over `checkpoint_path()`.

    What `MMEmbedder`, `SentenceTransformer` and PEFT open. It is put together on first use, beside its base.

    Raises:
        FileNotFoundError: As in `generative_path`.
        OSError: The cache cannot be written.
    """
    base = checkpoint_path()
    digest = hashlib.sha256((_SAHA / "adapter_model.safetensors").read_bytes()).hexdigest()
    adapter = base.with_name(f"saha-{digest[:16]}")
    if not (adapter / "adapter_config.json").is_file():
        with _advising(), _one_at_a_time(base.parent):
            if not (adapter / "adapter_config.json").is_file():
                _join(base, adapter)
    return adapter


def _join(base: Path, adapter: Path) -> None:
    adapter.mkdir(exist_ok=True)
    beside = [file for file in base.iterdir() if file.name not in ("config.json", "model.safetensors", "README.md")]
    for file in (*beside, *_SAHA.iterdir()):
        if file.name != "adapter_config.json":
            write_atomically(adapter / file.name, file.read_bytes())
    settings = json.loads((_SAHA / "adapter_config.json").read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = str(base)
    # Written last: where it is, everything is.
    write_atomically(adapter / "adapter_config.json", json.dumps(settings, indent=2).encode())


@contextmanager
def _one_at_a_time(cache: Path) -> Iterator[None]:
    """Processes and threads of one job ask together: the first fills the cache, and the others find it filled."""
    from filelock import FileLock

    with FileLock(cache / LOCK):
        yield


@contextmanager
def _advising() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            f"the shipped model cannot be put into the cache ({error}): set HF_ASSETS_CACHE to a directory that can be "
            "written"
        ) from error
