"""A repository on the Hub: commits, and the branches and tags that name them."""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from .git_objects import Blob, commit_id

LARGE_FILE_SUFFIXES = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".onnx", ".msgpack", ".gguf", ".model", ".npy", ".npz"),
    *(".arrow", ".parquet", ".pkl", ".zip", ".tar", ".gz", ".7z", ".png", ".jpg", ".jpeg", ".gif"),
)
GIT_ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE_FILE_SUFFIXES)


class UnknownRevision(LookupError):
    """No branch, tag or commit has this name."""


@dataclass(frozen=True)
class Commit:
    """A state of all files."""

    id: str
    parents: tuple[str, ...]
    title: str
    description: str
    author: str
    seconds: int  # since 1970, UTC
    blobs: Mapping[str, Blob]

    @property
    def date(self) -> str:
        """The time as the Hub writes it."""
        return datetime.fromtimestamp(self.seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


class Repo:
    """A repository as tests look at it; a new one has the first commit that the Hub makes itself."""

    def __init__(self, repo_type: str, repo_id: str, private: bool = False):
        self.type, self.id, self.private, self.gated = repo_type, repo_id, private, False
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self._commits: dict[str, Commit] = {}
        self.commit("main", {".gitattributes": Blob(GIT_ATTRIBUTES.encode())}, self.namespace, "initial commit")

    @property
    def namespace(self) -> str:
        """The user or organization that owns the repository."""
        return self.id.partition("/")[0]

    def find(self, revision: str) -> Commit:
        """The commit that a branch, a tag, a ref or a commit id names.

        Raises:
            UnknownRevision: If there is none.
        """
        name = re.sub("^refs/(heads|tags)/", "", revision)
        commit = self.branches.get(name) or self.tags.get(name) or revision
        if commit not in self._commits:
            raise UnknownRevision(f"Invalid rev id: {revision}")
        return self._commits[commit]

    def head(self, revision: str = "main") -> str:
        """The id of the commit that a revision names."""
        return self.find(revision).id

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """The content of every file, large files included."""
        return {path: blob.content for path, blob in self.find(revision).blobs.items()}

    def commits(self, revision: str = "main") -> list[Commit]:
        """The history, newest first."""
        history = [self.find(revision)]
        while history[-1].parents:
            history.append(self._commits[history[-1].parents[0]])
        return history

    def commit(
        self, branch: str, changes: Mapping[str, Blob | None], author: str, title: str, description: str = ""
    ) -> Commit:
        """Put a commit on a branch.

        Args:
            branch: An existing branch, or a new one in a repository without commits.
            changes: The new blob of each changed path, None to delete the path.
            author: A user name.
            title: The first line of the message.
            description: The rest of the message.
        """
        parents = (self.branches[branch],) if branch in self.branches else ()
        blobs = dict(self._commits[parents[0]].blobs) if parents else {}
        blobs = {path: blob for path, blob in (blobs | dict(changes)).items() if blob is not None}
        seconds = int(time.time())
        oid = commit_id(blobs, parents, author, seconds, f"{title}\n\n{description}".strip() + "\n")
        commit = Commit(oid, parents, title, description, author, seconds, dict(sorted(blobs.items())))
        self._commits[oid] = commit
        self.branches[branch] = oid
        return commit
