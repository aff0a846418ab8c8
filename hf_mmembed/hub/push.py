"""From a checkpoint directory to a repository on the Hub, in one commit or not at all.

In: a directory and the id of a repository. Out: the repository with weights (safetensors), the code files of one
version, a card and golden vectors. What may not be published is refused before anything is sent; when sending fails,
the repository is as it was, and the same command continues.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import httpx2
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from hf_mmembed.files import write_atomically
from hf_mmembed.sentence_transformer import MMEmbedder

from .card import card_of
from .files import PublishError, RepoFile, check, collect
from .golden import FOLDER, golden_files

__all__ = ["PushError", "prepare", "push", "replaced_files", "write_golden"]

logger = logging.getLogger(__name__)

# Of an earlier version in the same repository: they would be read together with the new files, or in their place.
_REPLACED = (
    "*.safetensors", "*.safetensors.index.json", "*_mmembed.py", "pytorch_model*.bin", f"{FOLDER}/*",
    # An adapter and a whole model in one place open as neither; a processor left over changes the prompt.
    "config.json", "adapter_config.json", "*processor_config.json", "chat_template.jinja", "tokenizer.json",
    "tokenizer_config.json", "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json",
    # Folders of modules, as sentence-transformers names them.
    "[0-9]_[A-Z]*/config.json", "[0-9]_[A-Z]*/*.safetensors", "[0-9]_[A-Z]*/pytorch_model*.bin",
    # What was done with the model that was there, and how well it did.
    "training.json", "mining.json", "recipe.yaml", ".eval_results/*",
)  # fmt: skip

_ADVICE = {
    401: "The Hub does not accept your token, or there is none: run `hf auth login` with a token that may write.",
    403: "Your token may not write to {repo}: give it write access to this repository or organisation at the Hub's "
    "token settings, or choose a repository of your own.",
    404: "There is no such repository or revision, or your token may not see it.",
    409: "Someone else changed {repo} at the same time, or it is being moved. Look at it and push again.",
    413: "The Hub refuses the size of the upload.",
    429: "The Hub's rate limit is reached, also after waiting and trying again. Wait a few minutes and push again.",
}


class PushError(OSError):
    """The Hub did not take the files; the message says why and what to do."""


def prepare(directory: str | Path, *, repo_id: str | None = None) -> list[RepoFile]:
    """Everything that `push` would upload, checked; nothing is sent.

    The golden vectors are computed, which loads the model. A README.md that somebody wrote is kept; where there is none,
    or only the one that `convert` or training wrote, the card is rendered from what the directory says. An adapter that
    does not say which commit of its base it was trained on gets the newest one's name, and a warning.

    Args:
        directory: A converted or fine-tuned checkpoint, a native export, or a PEFT adapter.
        repo_id: Named in the card's snippets. Defaults to the directory's name.

    Raises:
        PublishError: Something in it must not be published (see `check`), or it is no embedder.
    """
    directory = Path(directory)
    files = {file.path: file for file in collect(directory)}
    if "adapter_config.json" in files:
        files["adapter_config.json"] = _with_base_revision(files["adapter_config.json"])
    check(list(files.values()))  # before the model is opened, which takes longer
    try:
        embedder = MMEmbedder(directory, device="cpu")
    except ValueError as error:
        raise PublishError(f"{directory} cannot be opened as an embedder: {error}") from error
    files |= {file.path: file for file in golden_files(embedder)}
    card = card_of(directory, repo_id=repo_id or directory.resolve().name)
    files["README.md"] = RepoFile("README.md", card.encode("utf-8"))
    ready = [files[name] for name in sorted(files)]
    check(ready)
    return ready


def _with_base_revision(file: RepoFile) -> RepoFile:
    """An adapter's config that names the commit of its base: over any other weights it is meaningless."""
    settings = json.loads(file.read())
    base = settings.get("base_model_name_or_path")
    if base is None or Path(base).is_absolute() or Path(base).exists():
        raise PublishError(
            f"the adapter's base is {'not named' if base is None else f'the local directory {base}'}, so nobody else could "
            "open it: push the base first and set base_model_name_or_path in adapter_config.json to its id, or train with "
            "save_as='merged'."
        )
    if settings.get("revision") is None:
        with _explained(base):
            settings["revision"] = HfApi(library_name="hf-mmembed").model_info(base).sha
        logger.warning(
            "the adapter does not say which commit of %s it was trained on; assumed the newest, %s. If that is not so, set "
            "revision in adapter_config.json.",
            base, settings["revision"],
        )  # fmt: skip
    return RepoFile(file.path, (json.dumps(settings, indent=2) + "\n").encode())


def write_golden(directory: str | Path) -> None:
    """Write the golden vectors into a checkpoint directory, so that `verify` can be used without a Hub."""
    directory = Path(directory)
    for file in golden_files(MMEmbedder(directory, device="cpu")):
        target = directory / file.path
        target.parent.mkdir(exist_ok=True)
        write_atomically(target, file.read())


def push(
    directory: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    message: str = "Upload with hf-mmembed",
    token: str | None = None,
) -> CommitInfo:
    """Publish a checkpoint directory.

    Files of a model that was in the repository before go in the same commit; `replaced_files` lists them.

    Args:
        directory: A converted or fine-tuned checkpoint, a native export, or a PEFT adapter.
        repo_id: `ORG/NAME`; made if it does not exist.
        private: Make a new repository private. Defaults to the organisation's setting. An existing one stays as it is.
        revision: Branch to push to; made from main if it does not exist. Defaults to main.
        create_pr: Open a pull request instead of changing the branch.
        message: Of the commit.
        token: Access token. Defaults to the one of `hf auth login`.

    Returns:
        The commit: its `oid`, `commit_url` and, with `create_pr`, `pr_url`.

    Raises:
        PublishError: Something must not be published, or the Hub refuses the metadata of the card; nothing was committed.
        PushError: The Hub refused or broke off; nothing was committed.
        ValueError: `repo_id` is not an id, or both `revision` and `create_pr` are given.
    """
    if create_pr and revision not in (None, "main"):
        raise ValueError(f"a pull request starts from main; leave out the revision {revision!r} or --create-pr.")
    files = prepare(directory, repo_id=repo_id)
    api = HfApi(token=token, library_name="hf-mmembed")
    with _explained(repo_id):
        # A commit is checked for it, too, but only when the repository has been made.
        _ask_about_card(api, next(file for file in files if file.path == "README.md"))
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        stale = _stale(api, repo_id, revision, {file.path for file in files})
        additions = [CommitOperationAdd(file.path, file.source) for file in files]
        commit = api.create_commit(
            repo_id,
            [*additions, *(CommitOperationDelete(path) for path in stale)],
            commit_message=message,
            revision=revision,
            create_pr=create_pr,
        )
    logger.info("pushed %d files to %s", len(files), commit.pr_url or commit.commit_url)
    return commit


def _ask_about_card(api: HfApi, card: RepoFile) -> None:
    """Let the Hub look at the metadata of a card.

    Raises:
        PublishError: It refuses them.
    """
    answer = get_session().post(
        f"{api.endpoint}/api/validate-yaml",
        json={"repoType": "model", "content": card.read().decode("utf-8")},
        headers=build_hf_headers(token=api.token, library_name=api.library_name),
    )
    try:
        hf_raise_for_status(answer)
    except BadRequestError as error:
        said = error.server_message or str(error).splitlines()[0]
        raise PublishError(
            f"the Hub refuses the metadata of {card.path}: {said}\nNothing was committed. Mend {card.path} and push again."
        ) from error


def replaced_files(
    files: Iterable[RepoFile], repo_id: str, *, revision: str | None = None, token: str | None = None
) -> list[str]:
    """What `push` would delete, in the same commit: files of an earlier model that the new ones do not overwrite.

    Args:
        files: What `prepare` returned.
        repo_id: `ORG/NAME`; one that does not exist yet has nothing to delete.
        revision: Branch to push to; one that does not exist yet has the files of main.
        token: Access token. Defaults to the one of `hf auth login`.

    Returns:
        Paths in the repository.

    Raises:
        PushError: The Hub was not asked, or does not say.
    """
    api, kept = HfApi(token=token, library_name="hf-mmembed"), {file.path for file in files}
    with _explained(repo_id):
        try:
            return _stale(api, repo_id, revision, kept)
        except RevisionNotFoundError:
            return _stale(api, repo_id, None, kept)


def _stale(api: HfApi, repo_id: str, revision: str | None, kept: set[str]) -> list[str]:
    """Files of an earlier model that the new files do not replace by name."""
    try:
        present = api.list_repo_files(repo_id, revision=revision)
    except (RepositoryNotFoundError, EntryNotFoundError):  # an empty repository has no tree yet
        return []
    return [path for path in present if path not in kept and _is_of_a_model(path)]


def _is_of_a_model(path: str) -> bool:
    # Patterns are matched from the right: those of other folders, such as `int8/model.safetensors`, are not ours.
    return any(path.count("/") == p.count("/") and PurePosixPath(path).match(p) for p in _REPLACED)


@contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    """The Hub's errors with what to do about them."""
    unchanged = f"Nothing was committed to {repo_id}"
    again = "run the same command again: what has arrived is not sent twice"
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        advice = _ADVICE.get(status, "The Hub has trouble of its own; wait a little." if status >= 500 else "")
        said = error.server_message or str(error).splitlines()[0]
        raise PushError(f"HTTP {status}: {said} {advice.format(repo=repo_id)} {unchanged}; {again}.") from error
    except OfflineModeIsEnabled as error:
        raise PushError(
            f"HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set, so the Hub was not asked. {unchanged}; unset HF_HUB_OFFLINE and "
            "TRANSFORMERS_OFFLINE to push."
        ) from error
    except (httpx2.TransportError, ConnectionError, RuntimeError) as error:
        # huggingface_hub wraps whatever ends the upload of a large file in a RuntimeError that names the file.
        cause = error.__cause__ if isinstance(error, RuntimeError) else error
        if not isinstance(cause, HfHubHTTPError | httpx2.TransportError | OSError):
            raise
        if isinstance(cause, HfHubHTTPError):
            said = f"HTTP {cause.response.status_code}: {cause.server_message or cause}"
        else:
            said = f"the connection was cut ({type(cause).__name__}: {cause})"
        raise PushError(f"{error}: {said}. {unchanged}; {again}.") from error
