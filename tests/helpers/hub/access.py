"""Who may do what: accounts by token, and the repositories that each may read or write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .repos import Repo
from .web import Refusal, Request

if TYPE_CHECKING:
    from .server import HubServer

URL_TYPES = {"": "model", "datasets/": "dataset", "spaces/": "space"}


@dataclass(frozen=True)
class Account:
    """A user, seen through one of the user's tokens."""

    name: str
    role: str = "write"  # of the token: "read" or "write"
    organizations: tuple[str, ...] = ()

    def owns(self, namespace: str) -> bool:
        """Whether repositories under this name are the user's."""
        return namespace == self.name or namespace in self.organizations


def find_account(hub: HubServer, request: Request) -> Account | None:
    """The account that asks, None without a token.

    Raises:
        Refusal: 401 if the token is unknown, also where none is needed.
    """
    if request.bearer is None:
        return None
    if request.bearer not in hub.accounts:
        raise Refusal(401, "Invalid credentials in Authorization header")
    return hub.accounts[request.bearer]


def require_account(hub: HubServer, request: Request) -> Account:
    """The account that asks.

    Raises:
        Refusal: 401 without a valid token.
    """
    account = find_account(hub, request)
    if account is None:
        raise Refusal(401, "Invalid username or password.")
    return account


def find_repo(hub: HubServer, request: Request) -> Repo:
    """The repository that the path names, if the account may see it.

    Raises:
        Refusal: 404 if it is missing or hidden, 401 without a token.
    """
    account = find_account(hub, request)
    repo_type = request.params.get("type") or URL_TYPES[request.params["url_type"]]
    repo = hub.repos.get((repo_type, request.params["repo"]))
    if repo and (not repo.private or (account and account.owns(repo.namespace))):
        return repo
    if account is None:
        raise Refusal(401, "Invalid username or password.", "RepoNotFound")
    raise Refusal(404, "Repository not found", "RepoNotFound")


def find_readable_repo(hub: HubServer, request: Request) -> Repo:
    """The repository that the path names, if the account may read its files.

    Raises:
        Refusal: As `find_repo`; 403 if it is gated.
    """
    repo, account = find_repo(hub, request), find_account(hub, request)
    if repo.gated and not (account and account.owns(repo.namespace)):
        raise Refusal(403, f"Access to {repo.type} {repo.id} is restricted.", "GatedRepo")
    return repo


def find_writable_repo(hub: HubServer, request: Request) -> Repo:
    """The repository that the path names, if the account may change it.

    Raises:
        Refusal: As `find_repo`; 401 without a token; 403 for a read token or somebody else's repository.
    """
    repo, account = find_repo(hub, request), require_account(hub, request)
    check_write_role(account)
    if not account.owns(repo.namespace):
        raise Refusal(403, "Authorization error.")
    return repo


def check_write_role(account: Account) -> None:
    """Refuse a token that may only read.

    Raises:
        Refusal: 403.
    """
    if account.role == "read":
        raise Refusal(403, "Forbidden: you must use a write token to upload to a repository.")


def page_url(hub: HubServer, repo_type: str, repo_id: str) -> str:
    """The address of a repository's page."""
    folder = next(folder for folder, name in URL_TYPES.items() if name == repo_type)
    return f"{hub.endpoint}/{folder}{repo_id}"
