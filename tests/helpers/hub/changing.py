"""The Hub's calls that make, name and delete repositories, branches and tags."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .access import check_write_role, find_writable_repo, page_url, require_account
from .listing import API, find_commit
from .repos import Repo, UnknownRevision
from .web import Answer, Refusal, Request, Route

if TYPE_CHECKING:
    from .server import HubServer


def create_repo(hub: HubServer, request: Request) -> Answer:
    """Make a repository; without an organization it belongs to the account."""
    account = require_account(hub, request)
    wanted = request.json()
    repo_type, namespace = wanted.get("type") or "model", wanted.get("organization") or account.name
    check_write_role(account)
    if not account.owns(namespace):
        raise Refusal(403, f'You don\'t have the rights to create a {repo_type} under the namespace "{namespace}"')
    repo_id = f"{namespace}/{wanted['name']}"
    page = {"url": page_url(hub, repo_type, repo_id), "name": repo_id, "id": "0" * 24}
    if (repo_type, repo_id) in hub.repos:
        refusal = Refusal(409, f"You already created this {repo_type} repo")
        refusal.answer.body |= page  # `exist_ok` reads the address
        raise refusal
    private = wanted.get("visibility") == "private" or wanted.get("private") is True
    hub.repos[repo_type, repo_id] = Repo(repo_type, repo_id, private)
    return Answer(page)


def delete_repo(hub: HubServer, request: Request) -> Answer:
    """Delete a repository with all its commits."""
    wanted = request.json()
    namespace = wanted.get("organization") or require_account(hub, request).name
    request.params |= {"type": wanted.get("type") or "model", "repo": f"{namespace}/{wanted['name']}"}
    repo = find_writable_repo(hub, request)
    del hub.repos[repo.type, repo.id]
    return Answer({})


def change_settings(hub: HubServer, request: Request) -> Answer:
    """Change who sees a repository."""
    repo, wanted = find_writable_repo(hub, request), request.json()
    repo.gated = wanted.get("gated", repo.gated)
    repo.private = wanted["visibility"] == "private" if "visibility" in wanted else repo.private
    return Answer({"gated": repo.gated, "private": repo.private})


def create_branch(hub: HubServer, request: Request) -> Answer:
    """Start a branch at a revision, or at the head of main."""
    repo, branch = find_writable_repo(hub, request), request.params["branch"]
    if branch in repo.branches:
        raise Refusal(409, f"Reference already exists: refs/heads/{branch}")
    try:
        repo.branches[branch] = repo.head(request.json().get("startingPoint") or "main")
    except UnknownRevision as error:
        raise Refusal(404, str(error), "RevisionNotFound") from error
    return Answer({})


def delete_branch(hub: HubServer, request: Request) -> Answer:
    """Forget a branch; main stays."""
    repo, branch = find_writable_repo(hub, request), request.params["branch"]
    if branch == "main":
        raise Refusal(400, "Cannot delete the main branch")
    if repo.branches.pop(branch, None) is None:
        raise Refusal(404, f"Reference does not exist: refs/heads/{branch}", "RevisionNotFound")
    return Answer({})


def create_tag(hub: HubServer, request: Request) -> Answer:
    """Name the commit of a revision for good."""
    repo = find_writable_repo(hub, request)
    commit, tag = find_commit(repo, request), request.json()["tag"]
    if tag in repo.tags:
        raise Refusal(409, f"Tag reference exists already: refs/tags/{tag}")
    repo.tags[tag] = commit.id
    return Answer({})


def delete_tag(hub: HubServer, request: Request) -> Answer:
    """Forget a tag."""
    repo, tag = find_writable_repo(hub, request), request.params["tag"]
    if repo.tags.pop(tag, None) is None:
        raise Refusal(404, f"Tag reference does not exist: refs/tags/{tag}", "RevisionNotFound")
    return Answer({})


ROUTES = [
    Route("create", "POST", "/api/repos/create", create_repo),
    Route("delete", "DELETE", "/api/repos/delete", delete_repo),
    Route("settings", "PUT", API + "/settings", change_settings),
    Route("branch", "POST", API + "/branch/{branch}", create_branch),
    Route("branch", "DELETE", API + "/branch/{branch}", delete_branch),
    Route("tag", "POST", API + "/tag/{rev}", create_tag),
    Route("tag", "DELETE", API + "/tag/{tag}", delete_tag),
]
