"""Check, stage, upload, read back: a run's depths become branches of one Hub repository, or nothing is half there."""

import logging
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash

from ..records.files import CARD_NAME
from .card import Member, render_card
from .export_card import LIBRARIES, render_export_card
from .layout import stale_files, weights_taken
from .merging import merge_cards
from .staging import Staged, StagingError, as_bytes, check_text, sha256, stage, with_base

logger = logging.getLogger(__name__)

OTHER = "other"  # a licence that has a name and a place of its own
_TAG = rf"v\d+-(depth-\d+|({'|'.join(LIBRARIES)})-.+)"  # as `_tag` names what was published
# What the client raises where the Hub refuses, the connection breaks, or Xet gives up; ValueError: a card it refuses.
HUB_ERRORS = (HfHubHTTPError, httpx2.HTTPError, ConnectionError, RuntimeError, ValueError, OSError)


class PublishError(RuntimeError):
    """Publishing stopped; the message says what is on the Hub, that the checkpoint is safe, and how to go on."""


@dataclass(frozen=True)
class Published:
    """One depth as it is on the Hub, read back and compared."""

    repo_id: str
    revision: str
    depth: int
    commit: str
    tag: str
    url: str
    is_new: bool  # False: all of it was there already, no commit was made
    removed: tuple[str, ...] = ()  # files of an earlier model or layout, which loaders would have taken
    left_out: tuple[str, ...] = ()  # such files of the folder, which were not sent


def publish(
    directory: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str | None = None,
) -> list[Published]:
    """Publish a trimmed model: the folder as `main`, each `depth-N` folder in it as a branch and a tag.

    What `export` wrote becomes a branch of its own, `openvino-int8` and the like, of the same repository.

    Everything is checked before anything is sent; weights and card of a revision go up in one commit; then the file list,
    sizes and hashes are read back. A second run adds a commit only where something changed, and keeps what people wrote
    into the card. Of an earlier model, what loaders would take instead (an adapter, other shards, a `.bin`) is removed in
    the same commit, whose message names it. Training arguments, optimizer state and checkpoints are never sent.

    Args:
        directory: What `save_model` of a trimming run wrote, or `trim-trainer drop`, or `export`.
        repo_id: `name` or `namespace/name`.
        private: Whether the repository is private when it is created; None: the default of the account.
        token: Hub token with write access; None: the one of `hf auth login` or `HF_TOKEN`.
        commit_message: Of each commit; None: says the depth.

    Returns:
        What is on the Hub now, `main` last.

    Raises:
        StagingError: the folder cannot be published; nothing was sent.
        PublishError: the Hub refused or could not be reached.
    """
    staged = stage(directory, repo_id)
    run = _Run(HfApi(token=token), repo_id, Path(directory), [], private, commit_message)
    with run.step("ask the Hub who you are"):
        name = run.api.whoami()["name"]
    run = replace(run, repo_id=repo_id if "/" in repo_id else f"{name}/{repo_id}")
    staged = [_with_card(run, with_base(each, run.repo_id), staged) for each in staged]
    with run.step(f"create {run.repo_id}"):
        run.api.create_repo(run.repo_id, private=private, exist_ok=True)
    with run.step(f"ask whether you may write to {run.repo_id}"):
        run.api.auth_check(run.repo_id, write=True)
    for each in staged:
        run.done.append(_publish_one(run, each, commit_message))
    return run.done


@dataclass(frozen=True)
class _Run:
    """Where to, and what is done."""

    api: HfApi
    repo_id: str
    directory: Path
    done: list[Published]
    private: bool | None
    commit_message: str | None

    @property
    def command(self) -> str:
        """What goes on with it, as it is typed."""
        words = ["trim-trainer", "publish", str(self.directory), "--repo-id", self.repo_id]
        if self.private is not None:
            words.append("--private" if self.private else "--no-private")
        if self.commit_message is not None:
            words += ["--commit-message", self.commit_message]
        return shlex.join(words)

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Turn what the client raises into one message that says where things stand."""
        try:
            yield
        except (PublishError, StagingError):
            raise
        except HUB_ERRORS as error:
            published = ", ".join(f"{each.revision} (commit {each.commit[:8]})" for each in self.done)
            there = f"{self.repo_id} holds {published} of this run, complete" if self.done else "nothing of this run"
            raise PublishError(
                f"Could not {what}: {_reason(error)}. On the Hub now: {there}. The checkpoint in {str(self.directory)!r} "
                f"is safe. To go on, which sends only what is missing: `{self.command}`."
            ) from error


def _reason(error: Exception) -> str:
    """Say in words what went wrong."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    status = getattr(response, "status_code", None)
    if isinstance(error, LocalTokenNotFoundError):
        return "there is no Hub token (run `hf auth login`, or set HF_TOKEN)"
    if status == 401:
        return "the Hub does not know this token (run `hf auth login`, or set HF_TOKEN)"
    if status == 403:
        said = (response.headers.get("X-Error-Message") or "").rstrip(".")
        return f"this token may not write there ({said or 'forbidden'}): take a token with write access, or another repo_id"
    text = (str(error) or type(error).__name__).strip().splitlines()[0].rstrip(".")
    return f"{type(error).__name__}: {text}"


def _with_card(run: _Run, staged: Staged, family: list[Staged]) -> Staged:
    """Render the card of a revision, with the whole family in it and what people changed in the folder's, and check it."""
    facts = staged.history.card
    if facts.base_model is not None and (
        facts.license is None or (facts.license, facts.license_name) == (OTHER, None)
    ):
        facts = replace(facts, **_license_of(run.api, facts.base_model, facts.license))
    members = tuple(
        Member(each.revision, each.history.trimmed, each.history.depth, each.num_weight_bytes)
        for each in reversed(family)
    )
    name = run.repo_id.split("/")[-1]
    facts = replace(facts, model_name=name)
    if staged.report is not None:
        history = replace(staged.history, card=facts)
        text = render_export_card(staged.report, history, name, run.repo_id, staged.revision)
    else:
        text = render_card(
            staged.history, facts, run.repo_id, staged.revision, members, staged.has_adapter, staged.has_code
        )
    if (staged.folder / CARD_NAME).is_file():
        try:
            text = merge_cards((staged.folder / CARD_NAME).read_text(encoding="utf-8"), text)
        except ValueError as error:
            raise StagingError(f"{str(staged.folder / CARD_NAME)!r}: {error}. Nothing was sent.") from error
    check_text(f"the card of {staged.revision}", text)
    with run.step(f"have the card of {staged.revision} checked"):
        ModelCard(text).validate()
    return replace(staged, files=staged.files | {CARD_NAME: text.encode("utf-8")})


def _license_of(api: HfApi, base_model: str, wanted: str | None) -> dict[str, str]:
    """The licence that the base model's card names, with its name and its place where the Hub has no name for it.

    Args:
        api: The Hub.
        base_model: Who is asked.
        wanted: Only what belongs to this licence; None: any.
    """
    try:
        data = api.model_info(base_model).card_data
    except HUB_ERRORS as error:
        logger.warning("The licence of %s is not known (%s); set `license` in the recipe.", base_model, _reason(error))
        return {}
    said = {name: data.get(name) for name in ("license", "license_name", "license_link")} if data is not None else {}
    if wanted not in (None, said.get("license")):
        return {}
    link = said.get("license_link")
    if link and "://" not in link:  # a file beside the base model's weights
        said["license_link"] = f"{api.endpoint}/{base_model}/blob/main/{link.lstrip('./')}"
    return {name: value for name, value in said.items() if value is not None}


def _publish_one(run: _Run, staged: Staged, commit_message: str | None) -> Published:
    revision, api, depth = staged.revision, run.api, staged.history.depth
    with run.step(f"make the branch {revision}"):
        if revision != "main":
            api.create_branch(run.repo_id, branch=revision, exist_ok=True)
    with run.step(f"read what {revision} holds"):
        head = api.repo_info(run.repo_id, revision=revision).sha
        existing = _read_card(api, run.repo_id, head)
        text = merge_cards(existing, staged.files[CARD_NAME].decode("utf-8"))
        staged = replace(staged, files=staged.files | {CARD_NAME: text.encode("utf-8")})
        there = _list_files(api, run.repo_id, head)
        differing, stale = _differing(staged, there), stale_files(there, staged.files, _ours(run, revision))
    is_new = bool(differing or stale)
    if is_new:
        message = commit_message or f"Publish {staged.title}"
        with run.step(f"upload {revision}"):
            head = _commit(run, staged, head, message, differing, stale)
    with run.step(f"tag {revision}"):
        tag = _tag(api, run.repo_id, head, staged.ending)
    url = f"{api.endpoint}/{run.repo_id}/tree/{revision}"
    return Published(run.repo_id, revision, depth, head, tag, url, is_new, tuple(stale), staged.left_out)


def _commit(run: _Run, staged: Staged, head: str, message: str, differing: list[str], stale: list[str]) -> str:
    """Make one commit of weights and card, read it back, and return its id."""
    operations: list = [
        CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        for name in differing
        for content in [staged.files[name]]
    ]
    operations += [CommitOperationDelete(name) for name in stale]
    removed = f"Removed, since loaders would take them: {', '.join(stale)}." if stale else None
    try:
        made = run.api.create_commit(
            run.repo_id, operations, commit_message=message, commit_description=removed, revision=staged.revision,
            parent_commit=head,
        ).oid  # fmt: skip
    except HUB_ERRORS:
        # The answer to a commit can be lost after it was made: then it is there, and is not repeated.
        made = run.api.repo_info(run.repo_id, revision=staged.revision).sha
        if made == head or _problems(run, staged, made, stale):
            raise
    problems = _problems(run, staged, made, stale)
    if problems:
        raise RuntimeError(f"after the upload these files are not as they are here: {', '.join(problems)}")
    return made


def _problems(run: _Run, staged: Staged, commit: str, stale: list[str]) -> list[str]:
    """Files of a commit that are not as they are here, or that loaders would take instead."""
    there = _list_files(run.api, run.repo_id, commit)
    return [*_differing(staged, there), *(there.keys() & stale), *(weights_taken(there) - weights_taken(staged.files))]


def _read_card(api: HfApi, repo_id: str, commit: str) -> str | None:
    """The card as it is on the Hub; None only where the Hub says that there is none."""
    try:
        path = api.hf_hub_download(repo_id, CARD_NAME, revision=commit)
    except LocalEntryNotFoundError:  # is an EntryNotFoundError too, but says that the Hub did not answer
        raise
    except EntryNotFoundError:
        return None
    return Path(path).read_text(encoding="utf-8")


def _list_files(api: HfApi, repo_id: str, commit: str) -> dict[str, RepoFile]:
    entries = api.list_repo_tree(repo_id, revision=commit, recursive=True)
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def _differing(staged: Staged, there: dict[str, RepoFile]) -> list[str]:
    """The staged files that a commit does not hold as they are here."""
    return [name for name, content in staged.files.items() if not _is_there(content, there.get(name))]


def _ours(run: _Run, revision: str) -> list[str] | None:
    """What a revision held when it was published last, by our tags; None: it never was."""
    tagged = {tag.target_commit for tag in run.api.list_repo_refs(run.repo_id).tags if re.fullmatch(_TAG, tag.name)}
    commits = run.api.list_repo_commits(run.repo_id, revision=revision) if tagged else []
    last = next((commit.commit_id for commit in commits if commit.commit_id in tagged), None)
    return None if last is None else list(_list_files(run.api, run.repo_id, last))


def _is_there(content: Path | bytes, entry: RepoFile | None) -> bool:
    if entry is None:
        return False
    if entry.lfs is not None:
        return entry.lfs.sha256 == sha256(content)
    return entry.blob_id == git_hash(as_bytes(content))


def _tag(api: HfApi, repo_id: str, commit: str, ending: str) -> str:
    """Name a commit for good, as `v1-depth-20`, `v2-depth-20` …; a commit that has its name keeps it."""
    ending, numbers = f"-{ending}", [0]
    for tag in api.list_repo_refs(repo_id).tags:
        if re.fullmatch(rf"v\d+{re.escape(ending)}", tag.name):
            if tag.target_commit == commit:
                return tag.name
            numbers.append(int(tag.name[1:].removesuffix(ending)))
    name = f"v{max(numbers) + 1}{ending}"
    api.create_tag(repo_id, tag=name, revision=commit)
    return name


def failed_pushes(jobs: list) -> list[str]:
    """Say why pushes in the background failed; the Trainer does not look."""
    errors: list[Callable] = [job.exception for job in jobs if job.done()]
    return [_reason(error) for of in errors if (error := of()) is not None]
