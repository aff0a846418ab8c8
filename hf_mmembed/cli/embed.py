"""``hf-mmembed embed``: files, folders, tables and datasets to embeddings on the disk, resumable.

In: a model, an input and a directory. Out: in the directory, an Arrow dataset of embeddings (and ``embeddings.npy``
when asked for), ``manifest.json`` and ``skipped.jsonl``. Exit code 1 when something had to be skipped.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .config import ConfigOption
from .printable import printable

if TYPE_CHECKING:
    from hf_mmembed.index import ModelIdentity, Report
    from hf_mmembed.sentence_transformer import MMEmbedder

__all__ = [
    "BatchSizeOption",
    "DeviceOption",
    "ImageColumnOption",
    "InputArgument",
    "LongestEdgeOption",
    "ModelArgument",
    "OutArgument",
    "RevisionOption",
    "ShardSizeOption",
    "StrictOption",
    "TextColumnOption",
    "embed",
    "embed_input",
    "keeping",
    "list_skipped",
    "load",
]


def _path(value: object) -> Path:
    """Refuses an empty name, which pathlib takes for the working directory."""
    if value == "":
        raise typer.BadParameter("an empty name; is a variable of the shell not set?")
    return Path(str(value))


ModelArgument = Annotated[str, typer.Argument(help="Embedder: a directory, a Hub id, or mmembed-tiny.")]
InputArgument = Annotated[
    Path,
    typer.Argument(
        parser=_path, help="Picture, folder, CSV, TSV, JSONL or Parquet file, or saved `datasets` directory."
    ),
]
OutArgument = Annotated[Path, typer.Argument(parser=_path, help="Directory to write to.")]
ImageColumnOption = Annotated[
    str | None,
    typer.Option(help="Column with picture paths or pictures. Default: looked for by name; texts too, if there."),
]
TextColumnOption = Annotated[str | None, typer.Option(help="Column with texts. Default: looked for by name.")]
BatchSizeOption = Annotated[int, typer.Option(min=1, help="Items per forward pass, at most.")]
ShardSizeOption = Annotated[int, typer.Option(min=1, help="Items per file: what a killed run loses at most.")]


def _check_device(device: str | None) -> str | None:
    if not device:
        return None
    import torch

    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise typer.BadParameter(f"--device {device} is none: give cpu, cuda, cuda:1 or mps") from None
    there, count = torch.accelerator.current_accelerator(check_available=True), torch.accelerator.device_count()
    if wanted.type != "cpu" and (there is None or wanted.type != there.type or (wanted.index or 0) >= count):
        found = "no accelerator" if there is None else f"{count} of the kind {there.type}"
        raise typer.BadParameter(
            f"--device {device}: this machine has {found}; leave it out to take the best there is"
        )
    return device


DeviceOption = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, mps. Default: the best there is.", callback=_check_device)
]
LongestEdgeOption = Annotated[
    int | None,
    typer.Option(
        min=1, help="Scale pictures down to so many pixels in all (Qwen2-VL) or of the longer side (others)."
    ),
]
RevisionOption = Annotated[
    str | None,
    typer.Option(help="Branch, tag or commit of MODEL on the Hub. Default: the one OUT was begun with, or main."),
]
StrictOption = Annotated[bool, typer.Option("--strict", help="Stop at the first item that cannot be read.")]

_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)  # where the same command ends in the same way
_SHOWN = 20  # skipped items listed on the screen; the file has them all


def embed(
    model: ModelArgument,
    input: InputArgument,
    out: OutArgument,
    image_column: ImageColumnOption = None,
    text_column: TextColumnOption = None,
    task: Annotated[
        Literal["document", "query"], typer.Option(help="Which side of a search the items are.")
    ] = "document",
    instruction: Annotated[str | None, typer.Option(help="Instruction for every item.")] = None,
    npy: Annotated[bool, typer.Option("--npy", help="Write embeddings.npy too, rows in the same order.")] = False,
    batch_size: BatchSizeOption = 32,
    shard_size: ShardSizeOption = 256,
    device: DeviceOption = None,
    revision: RevisionOption = None,
    strict: StrictOption = False,
    config: ConfigOption = None,
) -> None:
    """Embed pictures and texts into an Arrow dataset; run it again to resume.

    Files that cannot be read are skipped, listed at the end and in OUT/skipped.jsonl, and the exit code is 1. Items
    that changed since an earlier run (texts by content, files by size and modification time) are embedded again. What was
    begun on a GPU in bfloat16 is not continued on a CPU, which computes in float32. A text longer than the model reads is
    cut at its end.

    Example: hf-mmembed embed mmembed-tiny photos vectors --npy
    """
    from hf_mmembed.index import read_manifest

    indexed = (out / "manifest.json").exists() and read_manifest(out).faiss is not None
    report, _, _ = embed_input(
        model,
        input,
        out,
        image_column=image_column,
        text_column=text_column,
        task=task,
        instruction=instruction,
        batch_size=batch_size,
        shard_size=shard_size,
        device=device,
        revision=revision,
        strict=strict,
    )
    typer.echo(f"dataset: {out / 'items'} (datasets.load_from_disk)")
    if indexed and report.manifest.faiss is None:
        typer.echo("the index is gone: it was of other rows or files; `hf-mmembed index` makes it anew")
    if npy:
        from hf_mmembed.index import write_npy

        with keeping(out):
            typer.echo(f"array:   {write_npy(report, out)}")
    list_skipped(report, out)


def load(model: str, device: str | None = None, *, revision: str | None = None) -> tuple[MMEmbedder, ModelIdentity]:
    """Loads the embedder that MODEL means, of that revision on the Hub, and works out its identity."""
    from transformers.utils.logging import disable_progress_bar

    from hf_mmembed.identity import open_identified

    from .models import embedder as resolve

    if sys.stderr is None or not sys.stderr.isatty():
        disable_progress_bar()
    name = None if Path(model).is_dir() else model
    return open_identified(resolve(model), name=name, device=device, revision=revision)


def embed_input(
    model: str,
    input: Path,
    out: Path,
    *,
    image_column: str | None,
    text_column: str | None,
    task: Literal["document", "query"] = "document",
    instruction: str | None = None,
    batch_size: int,
    shard_size: int,
    device: str | None,
    revision: str | None,
    strict: bool,
) -> tuple[Report, MMEmbedder, ModelIdentity]:
    """What `embed` and `index` share: opens the input, loads the model, embeds, says what was done."""
    from hf_mmembed.data import open_source

    source = open_source(input, image_column=image_column, text_column=text_column, exclude=[out])
    for note in source.notes:
        typer.echo(printable(note), err=True)
    from hf_mmembed.index import embed_source
    from hf_mmembed.index.embedding import check_directory

    check_directory(out)  # before a large model is loaded
    embedder, identity = load(model, device, revision=revision or _revision_of(out, model))
    with keeping(out):
        report = embed_source(
            source,
            embedder,
            identity,
            out,
            task=task,
            instruction=instruction,
            batch_size=batch_size,
            shard_size=shard_size,
            strict=strict,
        )
    manifest = report.manifest
    speed = f", {report.new / report.seconds:.1f} items/s" if report.new else ""
    earlier = manifest.embedded - report.new
    kept = f" ({earlier} of them in an earlier run)" if earlier else ""
    typer.echo(f"embedded {manifest.embedded} of {manifest.rows} items{kept}, {identity.dimension} dimensions{speed}")
    return report, embedder, identity


def _any_shard(out: Path) -> bool:
    from hf_mmembed.index.embedding import ITEMS
    from hf_mmembed.index.shards import any_finished

    return any_finished(out / ITEMS)


@contextmanager
def keeping(out: Path, what: str = "shards", any_kept: Callable[[Path], bool] = _any_shard) -> Iterator[None]:
    """Says how to go on where work is interrupted or a disk is full, if something is finished.

    Args:
        out: Where the work writes to.
        what: What is kept there.
        any_kept: Whether there is any of it in `out`.

    Raises:
        KeyboardInterrupt: Work was interrupted.
        OSError: It could not go on; where `out` may not be written to, the message says so.
    """
    kept = f"finished {what} are kept in {out}: the same command goes on from there"
    try:
        yield
    except KeyboardInterrupt:
        if not any_kept(out):
            raise
        raise KeyboardInterrupt(kept) from None
    except OSError as error:
        if error.errno in _REFUSED:
            if not _is_on_the_way(error.filename, out):
                raise
            raise OSError(f"{error}; make it writable, or choose another directory than {out}") from error
        if not any_kept(out):
            raise
        raise OSError(f"{error}; {kept}") from error


def _is_on_the_way(name: str | None, out: Path) -> bool:
    """Whether a file is in `out`, or `out` is to be in it."""
    if name is None:
        return False
    file, directory = Path(name).resolve(), out.resolve()  # the lock names its file in full, without links
    return file.is_relative_to(directory) or directory.is_relative_to(file)


def _revision_of(out: Path, model: str) -> str | None:
    """The commit of the Hub that an earlier run into OUT read this model at."""
    from hf_mmembed.index import read_manifest

    if not (out / "manifest.json").exists():
        return None
    begun = read_manifest(out).model
    return begun.revision if begun.name == model else None


def list_skipped(report: Report, out: Path) -> None:
    """Names what was skipped and ends the command with exit code 1, if anything was."""
    if not report.skipped:
        return
    typer.echo(f"skipped {len(report.skipped)} (all in {out / 'skipped.jsonl'}):", err=True)
    for item in report.skipped[:_SHOWN]:
        typer.echo(printable(f"  {item.name}: {item.reason}"), err=True)
    if len(report.skipped) > _SHOWN:
        typer.echo(f"  ... and {len(report.skipped) - _SHOWN} more", err=True)
    raise typer.Exit(1)
