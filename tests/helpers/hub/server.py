"""A Hub on 127.0.0.1 that the real client talks to; tests look into it and break it."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from . import changing, listing, storage, uploading
from .access import Account
from .faults import Faults
from .repos import Repo
from .web import LogRow, Origin, Request

WRITE_TOKEN, READ_TOKEN, OTHER_TOKEN = "hf_write_token_of_me", "hf_read_token_of_me", "hf_write_token_of_other"
HUB_ROUTES = [*listing.ROUTES, *changing.ROUTES, *uploading.ROUTES]


class HubServer:
    """Two origins, as in reality: the Hub itself and the storage for large files.

    Use it as a context manager. Clients get `endpoint` and a token, and nothing else is set. Give each server a
    `HF_HOME` of its own: hf_xet remembers there what it has uploaded. On exit, a defect of the server itself is
    raised.

    Attributes:
        accounts: Users by token; by default "me" with a write and a read token, and "other".
        repos: Repositories by type and id; see `repo`.
        faults: Failures to switch on.
        log: All requests, in order of their answers.
        violations: Requests to the storage that carried a Hub token.
        page_size: Items on a page of a listing.
        multipart_bytes: LFS objects above this size go up in parts of this size.
        quota_bytes: The storage refuses more; None is no limit.
    """

    def __init__(self) -> None:
        self.accounts = {
            WRITE_TOKEN: Account("me", "write", ("lab",)),
            READ_TOKEN: Account("me", "read", ("lab",)),
            OTHER_TOKEN: Account("other"),
        }
        self.repos: dict[tuple[str, str], Repo] = {}
        self.storage = storage.Storage()
        self.faults = Faults({route.step for route in [*HUB_ROUTES, *storage.ROUTES]})
        self.log: list[LogRow] = []
        self.violations: list[tuple[str, str]] = []
        self.page_size = 1000
        self.multipart_bytes = 5 * 1024**3
        self.quota_bytes: int | None = None
        self._origins = (
            Origin("hub", HUB_ROUTES, self, self.faults, self.log),
            Origin("storage", storage.ROUTES, self.storage, self.faults, self.log),
        )
        self.endpoint = self._origins[0].endpoint
        self.storage.endpoint = self._origins[1].endpoint
        self._origins[0].lock = self._origins[1].lock  # the Hub reads what the storage writes
        self._origins[1].watch = self._watch_for_tokens

    def __enter__(self) -> HubServer:
        for origin in self._origins:
            origin.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for origin in self._origins:
            origin.stop()
        defects = [defect for origin in self._origins for defect in origin.errors]
        if defects:
            raise defects[0]

    def repo(self, repo_id: str, repo_type: str = "model") -> Repo:
        """The repository with this id.

        Raises:
            KeyError: If there is none.
        """
        return self.repos[repo_type, repo_id]

    def environment(self, home: Path, token: str = WRITE_TOKEN, xet: bool = True) -> dict[str, str]:
        """Environment variables for a client in a process of its own; add them to those of the test.

        Args:
            home: An empty folder for the caches of this client.
            token: The Hub token it logs in with.
            xet: Whether it may use Xet for large files.
        """
        variables = {"HF_ENDPOINT": self.endpoint, "HF_TOKEN": token, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
        variables |= {"HF_HUB_CACHE": str(home / "hub"), "HF_XET_CACHE": str(home / "xet")}
        variables |= {"HF_HUB_DISABLE_XET": "0" if xet else "1"}
        return variables | {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_UPDATE_DOWNLOAD_COUNTS": "0"}

    def requests(self, step: str) -> list[LogRow]:
        """The requests that reached this step."""
        return [row for row in self.log if row.step == step]

    @property
    def num_uploaded_bytes(self) -> int:
        """Bytes of large files that reached the storage; Xet counts them compressed and without repetitions."""
        return self.storage.num_uploaded_bytes

    def _watch_for_tokens(self, request: Request) -> None:
        if any(token in value for token in self.accounts for value in request.headers.values()):
            self.violations.append((request.method, request.path))
