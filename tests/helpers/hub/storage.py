"""The storage origin: large files by their sha256, and the Xet service that takes chunks instead of files."""

import hashlib
import secrets

from .web import Answer, Refusal, Request, Route, parse_range, serve_range
from .xet import ShardFile, Xorb, parse_shard, parse_xorb


class Storage:
    """What the storage knows; it opens for signed URLs and its own tokens, never for a Hub token."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}  # by sha256
        self.parts: dict[str, dict[int, bytes]] = {}  # by sha256, of multipart uploads under way
        self.xorbs: dict[str, Xorb] = {}
        self.xet_files: dict[str, ShardFile] = {}
        self.xet_hashes: dict[str, str] = {}  # by sha256
        self.grants: dict[str, str] = {}  # "read" or "write" by access token
        self.num_uploaded_bytes = 0
        self.endpoint = ""
        self._secret = secrets.token_hex(16)

    def add(self, sha256: str, content: bytes) -> None:
        """Keep an object.

        Raises:
            Refusal: 400 if the content is not what its name says.
        """
        if hashlib.sha256(content).hexdigest() != sha256:
            raise Refusal(400, f"The content does not have the sha256 {sha256}")
        self.objects[sha256] = content

    def grant(self, scope: str) -> str:
        """A new access token for the Xet service."""
        token = f"xet_{scope}_{secrets.token_hex(8)}"
        self.grants[token] = scope
        return token

    def sign(self, path: str) -> str:
        """A URL that opens this path without a token."""
        return f"{self.endpoint}{path}?signature={self._signature(path)}"

    def check_signature(self, request: Request) -> None:
        """Refuse a URL that the Hub has not handed out.

        Raises:
            Refusal: 403 if the signature is missing or wrong.
        """
        if request.query.get("signature") != [self._signature(request.path)]:
            raise Refusal(403, "SignatureDoesNotMatch")

    def check_grant(self, request: Request, scope: str) -> None:
        """Refuse an access token that does not allow this.

        Raises:
            Refusal: 401 if the token is unknown, 403 if it may only read.
        """
        granted = self.grants.get(request.bearer or "")
        if granted is None:
            raise Refusal(401, "Unknown access token")
        if scope == "write" and granted != "write":
            raise Refusal(403, "This access token may only read")

    def _signature(self, path: str) -> str:
        return hashlib.sha256((self._secret + path).encode()).hexdigest()[:16]


def put_object(storage: Storage, request: Request) -> Answer:
    """Take a whole large file."""
    storage.check_signature(request)
    storage.num_uploaded_bytes += len(request.body)
    storage.add(request.params["sha256"], request.body)
    return Answer(headers={"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})


def put_part(storage: Storage, request: Request) -> Answer:
    """Take a part of a large file; the Hub joins the parts when the client says that all are there."""
    storage.check_signature(request)
    storage.num_uploaded_bytes += len(request.body)
    parts = storage.parts.setdefault(request.params["sha256"], {})
    parts[int(request.params["number"])] = request.body
    return Answer(headers={"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})


def get_object(storage: Storage, request: Request) -> Answer:
    """Hand out a large file or a range of it."""
    storage.check_signature(request)
    sha256 = request.params["sha256"]
    if sha256 not in storage.objects:
        raise Refusal(404, "NoSuchKey")
    return serve_range(storage.objects[sha256], request, {"ETag": f'"{sha256}"'})


def post_xorb(storage: Storage, request: Request) -> Answer:
    """Take a container of chunks."""
    storage.check_grant(request, "write")
    storage.num_uploaded_bytes += len(request.body)
    is_new = request.params["hash"] not in storage.xorbs
    try:
        storage.xorbs[request.params["hash"]] = parse_xorb(request.body)
    except ValueError as error:
        raise Refusal(400, str(error)) from error
    return Answer({"was_inserted": is_new})


def post_shard(storage: Storage, request: Request) -> Answer:
    """Take the description of files; each is put together and checked, so that it can be read without Xet too."""
    storage.check_grant(request, "write")
    for file in parse_shard(request.body):
        missing = [term.xorb for term in file.terms if term.xorb not in storage.xorbs]
        if missing:
            raise Refusal(400, f"The shard names xorbs that were never uploaded: {', '.join(missing)}")
        content = b"".join(storage.xorbs[term.xorb].unpack(term.first, term.end) for term in file.terms)
        sha256 = file.sha256 or hashlib.sha256(content).hexdigest()
        storage.add(sha256, content)
        storage.xet_files[file.xet_hash] = file
        storage.xet_hashes[sha256] = file.xet_hash
    return Answer({"result": 1})


def get_reconstruction(storage: Storage, request: Request) -> Answer:
    """Say which bytes of which xorbs make a file, or the requested range of it."""
    storage.check_grant(request, "read")
    file = storage.xet_files.get(request.params["hash"])
    if file is None:
        raise Refusal(404, "Unknown file")
    size = sum(term.num_bytes for term in file.terms)
    start, end = parse_range(request, size) or (0, size)
    terms, fetches, offset, position = [], {}, 0, 0
    for term in file.terms:
        if position < end and position + term.num_bytes > start:
            offset = offset if terms else start - position
            span = {"start": term.first, "end": term.end}
            terms.append({"hash": term.xorb, "unpacked_length": term.num_bytes, "range": span})
            fetches.setdefault(term.xorb, []).append(_describe_fetch(storage, term.xorb, span))
        position += term.num_bytes
    return Answer({"offset_into_first_range": offset, "terms": terms, "fetch_info": fetches})


def _describe_fetch(storage: Storage, xorb: str, span: dict[str, int]) -> dict:
    chunks = storage.xorbs[xorb].chunks[span["start"] : span["end"]]
    url_range = {"start": chunks[0].start, "end": chunks[-1].end - 1}
    return {"range": span, "url": storage.sign(f"/xorbs/{xorb}"), "url_range": url_range}


def get_xorb(storage: Storage, request: Request) -> Answer:
    """Hand out the bytes of a xorb."""
    storage.check_signature(request)
    return serve_range(storage.xorbs[request.params["hash"]].body, request)


def say_unknown(storage: Storage, request: Request) -> Answer:
    """404 makes the client go on without: no deduplication across users, and version 1 of the calls."""
    raise Refusal(404, "Not found")


def say_ok(storage: Storage, request: Request) -> Answer:
    """Swallow telemetry."""
    return Answer({})


ROUTES = [
    Route("put", "PUT", "/lfs/{sha256}", put_object),
    Route("put", "PUT", "/lfs/{sha256}/{number}", put_part),
    Route("download", "GET HEAD", "/lfs/{sha256}", get_object),
    Route("chunk", "GET", "/v1/chunks/{prefix}/{hash}", say_unknown),
    Route("xorb", "POST", "/v1/xorbs/{prefix}/{hash}", post_xorb),
    Route("shard", "POST", "/v1/shards", post_shard),
    Route("reconstruction", "GET", "/v1/reconstructions/{hash}", get_reconstruction),
    Route("xorb-download", "GET", "/xorbs/{hash}", get_xorb),
    Route("telemetry", "POST", "/v1/telemetry", say_ok),
    Route("other", "GET POST HEAD PUT", "/{path}", say_unknown),
]
