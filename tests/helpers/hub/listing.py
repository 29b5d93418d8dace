"""The read side of the Hub: what repositories, trees, refs and commits look like in JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import yaml

from .access import find_account, find_readable_repo, find_repo, find_writable_repo, require_account
from .cards import check_card, read_metadata
from .git_objects import Blob, files_below, list_folders, tree_id
from .repos import Commit, Repo, UnknownRevision
from .web import Answer, Refusal, Request, Route, serve_range

if TYPE_CHECKING:
    from .server import HubServer


def find_commit(repo: Repo, request: Request) -> Commit:
    """The commit that the path names, the head of main if it names none.

    Raises:
        Refusal: 404 if there is no such revision.
    """
    try:
        return repo.find(request.params.get("rev", "main"))
    except UnknownRevision as error:
        raise Refusal(404, str(error), "RevisionNotFound") from error


def get_whoami(hub: HubServer, request: Request) -> Answer:
    """Who the token belongs to, and what it allows."""
    account = require_account(hub, request)
    organizations = [{"name": name, "type": "org", "roleInOrg": "write"} for name in account.organizations]
    token = {"displayName": f"{account.name}-{account.role}", "role": account.role}
    answer = {"type": "user", "id": account.name, "name": account.name, "fullname": account.name}
    answer |= {"email": f"{account.name}@example.com", "orgs": organizations}
    return Answer(answer | {"auth": {"type": "access_token", "accessToken": token}})


def check_access(hub: HubServer, request: Request) -> Answer:
    """Whether the account may read the files."""
    find_readable_repo(hub, request)
    return Answer({})


def check_write_access(hub: HubServer, request: Request) -> Answer:
    """Whether the account may change the repository."""
    find_writable_repo(hub, request)
    return Answer({})


def get_info(hub: HubServer, request: Request) -> Answer:
    """Describe a repository at a revision."""
    repo = find_repo(hub, request)
    info = describe_repo(repo, find_commit(repo, request), with_blobs="blobs" in request.query)
    if "expand" in request.query:
        info = {key: value for key, value in info.items() if key in ("_id", "id", *request.query["expand"])}
    return Answer(info)


def describe_repo(repo: Repo, commit: Commit, with_blobs: bool) -> dict[str, Any]:
    """What the Hub tells about a repository; card and config are read from the files."""
    card = _read_card(commit)
    model_config = json.loads(commit.blobs["config.json"].content) if "config.json" in commit.blobs else {}
    info = {"_id": "0" * 24, "id": repo.id, "author": repo.namespace, "sha": commit.id, "private": repo.private}
    info |= {"lastModified": commit.date, "createdAt": repo.commits("main")[-1].date, "gated": repo.gated}
    info |= {"disabled": False, "downloads": 0, "likes": 0, "cardData": card, "tags": _list_tags(card)}
    info["config"] = {key: model_config[key] for key in ("architectures", "model_type") if key in model_config}
    optional = {key: card.get(key) for key in ("pipeline_tag", "library_name", "model-index")}
    info |= {key: value for key, value in optional.items() if value is not None}
    info["evalResults"] = list(_read_eval_results(commit))
    info["siblings"] = [_describe_sibling(path, blob, with_blobs) for path, blob in commit.blobs.items()]
    return info


def _read_card(commit: Commit) -> dict[str, Any]:
    card = commit.blobs.get("README.md")
    return read_metadata(card.content.decode()) if card and not card.is_lfs else {}


def _list_tags(card: dict[str, Any]) -> list[str]:
    tags = [card["library_name"]] if "library_name" in card else []
    for key, prefix in {
        "tags": "",
        "datasets": "dataset:",
        "base_model": "base_model:",
        "license": "license:",
    }.items():
        values = card.get(key) or []
        tags += [prefix + value for value in (values if isinstance(values, list) else [values])]
    return [*tags, "region:us"]


def _read_eval_results(commit: Commit) -> list[dict[str, Any]]:
    paths = [path for path in commit.blobs if path.startswith(".eval_results/") and path.endswith(".yaml")]
    return [
        {"filename": path, "data": entry} for path in paths for entry in yaml.safe_load(commit.blobs[path].content)
    ]


def _describe_sibling(path: str, blob: Blob, with_blob: bool) -> dict[str, Any]:
    if not with_blob:
        return {"rfilename": path}
    large = (
        {"lfs": {"sha256": blob.sha256, "size": blob.size, "pointerSize": len(blob.pointer)}} if blob.is_lfs else {}
    )
    return {"rfilename": path, "size": blob.size, "blobId": blob.git_id, **large}


def describe_entries(hub: HubServer, commit: Commit) -> dict[str, dict[str, Any]]:
    """Files and folders of a commit as tree listings have them, by path."""
    entries = {path: _describe_file(hub, path, blob) for path, blob in commit.blobs.items()}
    for folder in list_folders(list(commit.blobs)):
        oid = tree_id(files_below(commit.blobs, folder))
        entries[folder] = {"type": "directory", "oid": oid, "size": 0, "path": folder}
    return {path: entries[path] for path in sorted(entries)}


def _describe_file(hub: HubServer, path: str, blob: Blob) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "oid": blob.git_id, "size": blob.size, "path": path}
    if blob.is_lfs:
        entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": len(blob.pointer)}
        if blob.sha256 in hub.storage.xet_hashes:
            entry["xetHash"] = hub.storage.xet_hashes[blob.sha256]
    return entry


def get_tree(hub: HubServer, request: Request) -> Answer:
    """List a folder."""
    repo = find_readable_repo(hub, request)
    entries = describe_entries(hub, find_commit(repo, request))
    folder = request.params.get("path", "").strip("/")
    if folder and entries.get(folder, {}).get("type") != "directory":
        raise Refusal(404, f"{folder} does not exist", "EntryNotFound")
    is_recursive = request.query.get("recursive") == ["true"]
    prefix = f"{folder}/" if folder else ""
    below = [path for path in entries if path.startswith(prefix)]
    return cut_page(
        hub, request, [entries[path] for path in below if is_recursive or "/" not in path.removeprefix(prefix)]
    )


def cut_page(hub: HubServer, request: Request, items: list[Any]) -> Answer:
    """One page of a listing, with a link to the next."""
    start = int(request.query.get("cursor", ["0"])[0])
    end = start + hub.page_size
    answer = Answer(items[start:end])
    if end < len(items):
        recursive = "&recursive=true" if request.query.get("recursive") == ["true"] else ""
        answer.headers["Link"] = f'<{hub.endpoint}{request.path}?cursor={end}{recursive}>; rel="next"'
    return answer


def get_paths_info(hub: HubServer, request: Request) -> Answer:
    """Describe the given paths; the request is form-encoded, missing paths are left out."""
    entries = describe_entries(hub, find_commit(find_readable_repo(hub, request), request))
    paths = parse_qs(request.body.decode()).get("paths", [])
    return Answer([entries[path] for path in paths if path in entries])


def get_refs(hub: HubServer, request: Request) -> Answer:
    """List branches and tags."""
    repo = find_repo(hub, request)
    branches, tags = (
        [{"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": commit} for name, commit in names.items()]
        for folder, names in (("heads", repo.branches), ("tags", repo.tags))
    )
    return Answer({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})


def get_commits(hub: HubServer, request: Request) -> Answer:
    """List the history of a revision, newest first."""
    repo = find_repo(hub, request)
    rows = []
    for commit in repo.commits(find_commit(repo, request).id):
        row = {"id": commit.id, "title": commit.title, "message": commit.description, "date": commit.date}
        rows.append({**row, "authors": [{"user": commit.author}]})
    return cut_page(hub, request, rows)


def get_file(hub: HubServer, request: Request) -> Answer:
    """Hand out a file; for a large one, say where the storage has it."""
    repo = find_readable_repo(hub, request)
    commit = find_commit(repo, request)
    headers = {"X-Repo-Commit": commit.id}
    blob = commit.blobs.get(request.params["path"])
    if blob is None:
        raise Refusal(404, "Entry not found", "EntryNotFound", headers)
    if not blob.is_lfs:
        return serve_range(blob.content, request, {**headers, "ETag": f'"{blob.git_id}"'})
    location = hub.storage.sign(f"/lfs/{blob.sha256}")
    headers |= {"Location": location, "X-Linked-Size": str(blob.size), "X-Linked-Etag": f'"{blob.sha256}"'}
    headers["ETag"] = headers["X-Linked-Etag"]
    if blob.sha256 in hub.storage.xet_hashes:
        route = f"{hub.endpoint}/api/{repo.type}s/{repo.id}/xet-read-token/{commit.id}"
        headers |= {"X-Xet-Hash": hub.storage.xet_hashes[blob.sha256], "Link": f'<{route}>; rel="xet-auth"'}
    return Answer(f"Found. Redirecting to {location}".encode(), 302, headers)


def validate_card(hub: HubServer, request: Request) -> Answer:
    """Check a card before it is committed; needs no token."""
    find_account(hub, request)
    errors, warnings = check_card(request.json()["content"])
    report = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
    return Answer(report, 400 if errors else 200)


def get_harnesses(hub: HubServer, request: Request) -> Answer:
    """Name the coding agents that the client should recognise: none."""
    return Answer({})


API = "/api/{type}s/{repo}"
ROUTES = [
    Route("whoami", "GET", "/api/whoami-v2", get_whoami),
    Route("validate-yaml", "POST", "/api/validate-yaml", validate_card),
    Route("telemetry", "GET HEAD POST", "/api/telemetry/{path}", get_harnesses),
    Route("telemetry", "GET", "/api/agent-harnesses", get_harnesses),
    Route("info", "GET", API, get_info),
    Route("info", "GET", API + "/revision/{rev}", get_info),
    Route("auth-check", "GET", API + "/auth-check", check_access),
    Route("auth-check", "GET", API + "/auth-check/write", check_write_access),
    Route("tree", "GET", API + "/tree/{rev}", get_tree),
    Route("tree", "GET", API + "/tree/{rev}/{path}", get_tree),
    Route("paths-info", "POST", API + "/paths-info/{rev}", get_paths_info),
    Route("refs", "GET", API + "/refs", get_refs),
    Route("commits", "GET", API + "/commits/{rev}", get_commits),
    Route("resolve", "GET HEAD", "/{url_type}{repo}/resolve/{rev}/{path}", get_file),
]
