"""`hf-mmembed push`: a checkpoint directory becomes a repository on the Hub, in one commit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .config import ConfigOption

__all__ = ["push"]


def push(
    directory: Annotated[Path, typer.Argument(help="A converted or fine-tuned checkpoint, or an adapter.")],
    repo: Annotated[str, typer.Argument(help="ORG/NAME on the Hub; made if it does not exist.")],
    private: Annotated[bool | None, typer.Option("--private/--public", help="Of a new repository.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch to push to. Default: main.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    message: Annotated[str, typer.Option(help="Of the commit.")] = "Upload with hf-mmembed",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be sent and deleted, and do neither.")
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Publish a checkpoint: weights, code of one version, card and golden vectors, in one commit.

    Refused before anything is sent: pickled weights, paths of this machine, access tokens.

    Example: hf-mmembed push my-embedder my-name/my-embedder --private --dry-run
    """
    from hf_mmembed.hub import PushError, prepare, replaced_files
    from hf_mmembed.hub import push as push_checkpoint

    if dry_run:
        files = prepare(directory, repo_id=repo)
        for file in files:
            typer.echo(f"{file.size:>13,}  {file.sha256}  {file.path}")
        try:
            deleted = replaced_files(files, repo, revision=revision)
        except PushError as error:
            typer.echo(f"what it would delete there is not known: {error}", err=True)
        else:
            for path in deleted:
                typer.echo(f"{'delete':>13}  {path}")
        typer.echo(f"{sum(file.size for file in files):>13,}  bytes in {len(files)} files; nothing was sent")
        return
    commit = push_checkpoint(directory, repo, private=private, revision=revision, create_pr=create_pr, message=message)
    typer.echo(commit.pr_url or commit.commit_url)
    typer.echo(f"check it: hf-mmembed verify {repo} --revision {commit.oid}")
