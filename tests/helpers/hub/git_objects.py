"""Identities of blobs, trees and commits, computed as git computes them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property


def git_id(kind: str, content: bytes) -> str:
    """The sha1 by which git knows an object of this kind."""
    return hashlib.sha1(f"{kind} {len(content)}".encode() + b"\0" + content).hexdigest()


@dataclass(frozen=True)
class Blob:
    """The content of a file; git sees only a pointer to it if `is_lfs`."""

    content: bytes
    is_lfs: bool = False

    @cached_property
    def sha256(self) -> str:
        """Under this name the large-file storage has the content."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        """What git stores instead of the content of a large file."""
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()

    @property
    def size(self) -> int:
        """Bytes of the content, also for a large file."""
        return len(self.content)

    @cached_property
    def git_id(self) -> str:
        """The identity of the content, or of the pointer for a large file."""
        return git_id("blob", self.pointer if self.is_lfs else self.content)

    @property
    def upload_id(self) -> str:
        """What the client compares to know that a file is unchanged."""
        return self.sha256 if self.is_lfs else self.git_id


def list_folders(paths: Mapping[str, Blob] | list[str]) -> list[str]:
    """Every folder that holds one of the files, at any depth."""
    folders = set()
    for path in paths:
        while "/" in path:
            path = path.rpartition("/")[0]
            folders.add(path)
    return sorted(folders)


def tree_id(files: Mapping[str, Blob]) -> str:
    """The identity of a folder.

    Args:
        files: Blobs by their path relative to the folder.
    """
    entries = {name: (b"100644", blob.git_id) for name, blob in files.items() if "/" not in name}
    for folder in {path.partition("/")[0] for path in files if "/" in path}:
        entries[folder + "/"] = (b"40000", tree_id(files_below(files, folder)))  # git sorts folders with the slash
    lines = []
    for name, (mode, oid) in sorted(entries.items()):
        lines.append(mode + b" " + name.rstrip("/").encode() + b"\0" + bytes.fromhex(oid))
    return git_id("tree", b"".join(lines))


def files_below(files: Mapping[str, Blob], folder: str) -> dict[str, Blob]:
    """The files in a folder and its subfolders, by their path relative to it; "" is the root."""
    prefix = f"{folder}/" if folder else ""
    return {path.removeprefix(prefix): blob for path, blob in files.items() if path.startswith(prefix)}


def commit_id(files: Mapping[str, Blob], parents: tuple[str, ...], author: str, time: int, message: str) -> str:
    """The identity of a commit made at `time`, in seconds since 1970, UTC."""
    person = f"{author} <{author}@users.noreply.hf.co> {time} +0000"
    lines = [f"tree {tree_id(files)}", *(f"parent {parent}" for parent in parents)]
    lines += [f"author {person}", f"committer {person}", "", message]
    return git_id("commit", "\n".join(lines).encode())
