"""The Hub's calls of an upload: which files are large, where their content goes, and the commit."""

from __future__ import annotations

import base64
import json
import time
from typing import TYPE_CHECKING, Any

from .access import find_readable_repo, find_writable_repo, page_url
from .cards import check_card
from .faults import STORAGE_LIMIT
from .git_objects import Blob
from .listing import API, find_commit
from .repos import LARGE_FILE_SUFFIXES, Repo
from .web import Answer, Refusal, Request, Route

if TYPE_CHECKING:
    from .server import HubServer

MAX_REGULAR_BYTES = 10 * 1024 * 1024
XET_TOKEN_SECONDS = 3600
MISSING_OBJECT = (
    "Your push was rejected because an LFS pointer pointed to a file that does not exist. Offending file: - "
)


def find_branch(repo: Repo, request: Request) -> str:
    """The branch that the path names.

    Raises:
        Refusal: 404 if there is no such branch; 501 for a pull request, which this server does not know.
    """
    if "create_pr" in request.query:
        raise Refusal(501, "This server has no pull requests")
    branch = request.params["rev"].removeprefix("refs/heads/")
    if branch not in repo.branches:
        raise Refusal(404, f"Invalid rev id: {branch}", "RevisionNotFound")
    return branch


def preupload(hub: HubServer, request: Request) -> Answer:
    """Tell for each file how to send it, and what is there now, so that the client skips unchanged files."""
    repo = find_writable_repo(hub, request)
    blobs = repo.find(find_branch(repo, request)).blobs
    files = []
    for file in request.json()["files"]:
        row = {"path": file["path"], "uploadMode": "lfs" if _is_large(file) else "regular", "shouldIgnore": False}
        files.append(row | ({"oid": blobs[file["path"]].upload_id} if file["path"] in blobs else {}))
    return Answer({"files": files})


def _is_large(file: dict[str, Any]) -> bool:
    if file["path"].endswith(LARGE_FILE_SUFFIXES) or file["size"] > MAX_REGULAR_BYTES:
        return True
    return b"\0" in base64.b64decode(file["sample"])  # as git tells binary files from text


def check_quota(hub: HubServer, num_new_bytes: int) -> None:
    """Refuse what does not fit into `hub.quota_bytes`.

    Raises:
        Refusal: 403.
    """
    num_bytes = sum(len(content) for content in hub.storage.objects.values()) + num_new_bytes
    if hub.quota_bytes is not None and num_bytes > hub.quota_bytes:
        raise Refusal(403, STORAGE_LIMIT)


def start_upload(hub: HubServer, request: Request) -> Answer:
    """Tell for each large file where to put it; nothing for one that is in the storage already."""
    repo, wanted = find_writable_repo(hub, request), request.json()
    new = [row for row in wanted["objects"] if row["oid"] not in hub.storage.objects]
    check_quota(hub, sum(row["size"] for row in new))
    verify = {"href": f"{hub.endpoint}/{request.params['url_type']}{repo.id}.git/info/lfs/objects/verify"}
    objects, transfer = [], "basic"
    for row in wanted["objects"]:
        answer = {"oid": row["oid"], "size": row["size"]}
        if row in new and row["size"] > hub.multipart_bytes and "multipart" in wanted["transfers"]:
            transfer = "multipart"
            answer["actions"] = {"upload": _plan_parts(hub, row), "verify": verify}
        elif row in new:
            answer["actions"] = {"upload": {"href": hub.storage.sign(f"/lfs/{row['oid']}")}, "verify": verify}
        objects.append(answer)
    return Answer({"transfer": transfer, "objects": objects})


def _plan_parts(hub: HubServer, row: dict[str, Any]) -> dict[str, Any]:
    num_parts = -(-row["size"] // hub.multipart_bytes)
    header = {"chunk_size": str(hub.multipart_bytes)}
    header |= {f"{number:05d}": hub.storage.sign(f"/lfs/{row['oid']}/{number}") for number in range(1, num_parts + 1)}
    return {"href": f"{hub.endpoint}/api/complete_multipart/{row['oid']}", "header": header}


def complete_parts(hub: HubServer, request: Request) -> Answer:
    """Join the parts of a large file; the address is known to the uploader only, so it needs no token."""
    sha256 = request.params["sha256"]
    parts = hub.storage.parts.pop(sha256, {})
    named = [part["partNumber"] for part in request.json()["parts"]]
    if not parts or named != sorted(parts):
        raise Refusal(400, f"Expected the parts {sorted(parts)}, got {named}")
    hub.storage.add(sha256, b"".join(parts[number] for number in named))
    return Answer({})


def verify_upload(hub: HubServer, request: Request) -> Answer:
    """Confirm that a large file has arrived; the storage has checked its sha256."""
    find_writable_repo(hub, request)
    wanted = request.json()
    content = hub.storage.objects.get(wanted["oid"])
    if content is None or len(content) != wanted["size"]:
        raise Refusal(404, f"The object {wanted['oid']} of {wanted['size']} bytes is not in the storage")
    return Answer({})


def get_xet_token(hub: HubServer, request: Request) -> Answer:
    """Hand out an access token for the Xet service; it is not the Hub token."""
    scope = request.params["scope"]
    if scope == "write":
        repo = find_writable_repo(hub, request)
        find_branch(repo, request)
        check_quota(hub, 1)  # the sizes come with the shard only
    else:
        find_commit(find_readable_repo(hub, request), request)
    token, expiration = hub.storage.grant(scope), int(time.time()) + XET_TOKEN_SECONDS
    headers = {"X-Xet-Cas-Url": hub.storage.endpoint, "X-Xet-Access-Token": token}
    headers["X-Xet-Token-Expiration"] = str(expiration)
    return Answer({"casUrl": hub.storage.endpoint, "accessToken": token, "exp": expiration}, 200, headers)


def commit(hub: HubServer, request: Request) -> Answer:
    """Make a commit of all changes, or of none."""
    repo = find_writable_repo(hub, request)
    branch = find_branch(repo, request)
    lines = [json.loads(line) for line in request.body.splitlines()]
    header = lines[0]["value"]
    if header.get("parentCommit", repo.head(branch)) != repo.head(branch):
        raise Refusal(412, "A commit has happened since. Please refresh and try again.")
    changes = _read_changes(hub, repo.find(branch).blobs, lines[1:])
    _check_card(changes.get("README.md"))
    author = hub.accounts[request.bearer].name
    new = repo.commit(branch, changes, author, header["summary"], header.get("description", ""))
    url = f"{page_url(hub, repo.type, repo.id)}/commit/{new.id}"
    return Answer({"success": True, "commitOid": new.id, "commitUrl": url, "hookOutput": ""})


def _read_changes(hub: HubServer, blobs: dict[str, Blob], lines: list[dict[str, Any]]) -> dict[str, Blob | None]:
    changes: dict[str, Blob | None] = {}
    for line in lines:
        key, value = line["key"], line["value"]
        path = value["path"].rstrip("/")
        if key == "file":
            changes[path] = Blob(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            changes[path] = Blob(_find_object(hub, value), is_lfs=True)
        elif key == "deletedFile" and path in blobs:
            changes[path] = None
        elif key == "deletedFolder" and any(other.startswith(path + "/") for other in blobs):
            changes |= {other: None for other in blobs if other.startswith(path + "/")}
        else:
            raise Refusal(404, f'Cannot apply {key} to "{path}": it does not exist', "EntryNotFound")
    return changes


def _find_object(hub: HubServer, value: dict[str, Any]) -> bytes:
    content = hub.storage.objects.get(value["oid"])
    if content is None or len(content) != value.get("size", len(content)):
        raise Refusal(400, MISSING_OBJECT + value["path"])
    return content


def _check_card(card: Blob | None) -> None:
    errors = check_card(card.content.decode())[0] if card and not card.is_lfs else []
    if errors:
        refusal = Refusal(400, "Invalid metadata in README.md.")
        refusal.answer.body["errors"] = [{"message": text} for text in errors]
        raise refusal


GIT = "/{url_type}{repo}.git/info/lfs/objects"
ROUTES = [
    Route("preupload", "POST", API + "/preupload/{rev}", preupload),
    Route("batch", "POST", GIT + "/batch", start_upload),
    Route("complete", "POST", "/api/complete_multipart/{sha256}", complete_parts),
    Route("verify", "POST", GIT + "/verify", verify_upload),
    Route("xet-token", "GET", API + "/xet-{scope}-token/{rev}", get_xet_token),
    Route("commit", "POST", API + "/commit/{rev}", commit),
]
