"""One HTTP origin: a table of routes, a handler that matches requests with it, and the faults in between."""

import json
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from .faults import Fault, Faults

WILDCARDS = {  # matched on the raw path: a revision such as refs%2Fpr%2F1 is one segment
    "{type}": "(?P<type>model|dataset|space)",
    "{url_type}": "(?P<url_type>(?:datasets/|spaces/)?)",
    "{repo}": "(?P<repo>[^/]+/[^/]+)",
    "{scope}": "(?P<scope>read|write)",
    "{path}": "(?P<path>.+)",
}


@dataclass
class Request:
    """What a client asks for."""

    method: str
    path: str  # raw, without the query
    query: dict[str, list[str]]
    headers: Any  # email.message.Message: reads names in any case
    params: dict[str, str]  # what the wildcards of the route matched, decoded
    body: bytes = b""

    def json(self) -> Any:
        """The body, {} if there is none."""
        return json.loads(self.body or b"{}")

    @property
    def bearer(self) -> str | None:
        """The token of the `Authorization` header."""
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None


@dataclass
class Answer:
    """What goes back; everything but bytes is sent as JSON."""

    body: Any = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def content(self) -> bytes:
        """The bytes of the body."""
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


class Refusal(Exception):  # noqa: N818 - it is an answer, not a defect
    """An error answer in the form from which the client picks its exception."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None):
        super().__init__(message)
        headers = {"X-Error-Message": message.replace("\n", " "), **(headers or {})}
        if code:
            headers["X-Error-Code"] = code
        self.answer = Answer({"error": message}, status, headers)


class LogRow(NamedTuple):
    """A request that came in, and how it was answered; status 0 is a connection that the server closed."""

    method: str
    path: str
    origin: str
    step: str
    status: int


class Route:
    """A row of a route table: the step's name, a method and path, and the function that answers."""

    def __init__(self, step: str, methods: str, pattern: str, answer: Callable[..., Answer]):
        self.step, self.methods, self.answer = step, methods.split(), answer
        for wildcard, regex in WILDCARDS.items():
            pattern = pattern.replace(wildcard, regex)
        self.regex = re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", pattern))

    def match(self, method: str, path: str) -> dict[str, str] | None:
        """The decoded wildcards if this route answers the request."""
        found = self.regex.fullmatch(path) if method in self.methods else None
        return found and {name: unquote(value or "") for name, value in found.groupdict().items()}


class Origin(ThreadingHTTPServer):
    """An HTTP server on a free port of 127.0.0.1, with one thread a connection."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, name: str, routes: Iterable[Route], state: Any, faults: Faults, log: list[LogRow]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.name, self.routes, self.state, self.faults, self.log = name, list(routes), state, faults, log
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self.errors: list[BaseException] = []  # defects of this server
        self.lock = threading.RLock()
        self.watch: Callable[[Request], None] = lambda request: None  # sees every request, also those that fail
        self._connections: set[socket.socket] = set()

    def start(self) -> None:
        """Serve from a background thread."""
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        """Free the port and close connections that clients keep alive."""
        self.shutdown()
        self.server_close()
        for connection in list(self._connections):
            with suppress(OSError):  # the client may have closed it
                connection.shutdown(socket.SHUT_RDWR)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Remember a connection until it closes."""
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget a connection."""
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep a defect for the test to see; a client that hangs up is none."""
        error = sys.exc_info()[1]
        if not isinstance(error, (ConnectionError, TimeoutError)):
            self.errors.append(error)


class Handler(BaseHTTPRequestHandler):
    """Reads a request, lets a fault act, and sends the answer of the route."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet: two would wait 40 ms for a delayed acknowledgement
    disable_nagle_algorithm = True
    timeout = 60
    server: Origin

    def serve(self) -> None:
        """Answer one request; `http.server` calls it by the names set below."""
        split = urlsplit(self.path)
        request = Request(self.command, split.path, parse_qs(split.query), self.headers, {})
        route = self._find_route(request)
        step = route.step if route else "unknown"
        with self.server.lock:
            self.server.watch(request)
            fault = self.server.faults.take(step, request.method, request.path)
        if fault and fault.kind == "cut" and self._has_body():
            self._read_body(half=True)
            return self._hang_up(step)
        request.body = self._read_body()
        answer = self._find_answer(route, request, fault)
        if fault and fault.kind == "lost":
            return self._hang_up(step)
        if fault and fault.kind == "cut":
            return self._send_half(answer, step)
        self._send(answer, step)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve  # noqa: N815 - names that http.server looks for

    def _find_route(self, request: Request) -> Route | None:
        for route in self.server.routes:
            params = route.match(request.method, request.path)
            if params is not None:
                request.params = params
                return route
        return None

    def _find_answer(self, route: Route | None, request: Request, fault: Fault | None) -> Answer:
        try:
            with self.server.lock:
                if fault and isinstance(fault.kind, int):
                    raise Refusal(fault.kind, fault.message)
                if route is None:
                    raise Refusal(404, f"No such repository or page: {request.path}", "RepoNotFound")
                return route.answer(self.server.state, request)
        except Refusal as refusal:
            return refusal.answer

    def _has_body(self) -> bool:
        return self._is_chunked() or int(self.headers.get("Content-Length", 0)) > 0

    def _is_chunked(self) -> bool:
        return "chunked" in self.headers.get("Transfer-Encoding", "")

    def _read_body(self, half: bool = False) -> bytes:
        if not self._is_chunked():
            length = int(self.headers.get("Content-Length", 0))
            return self.rfile.read(length // 2 if half else length)
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
            if half:
                return parts[0]
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, answer: Answer, step: str) -> None:
        self._log(step, answer.status)
        self._write_head(answer)
        if self.command != "HEAD":
            self.wfile.write(answer.content)
        self.wfile.flush()

    def _send_half(self, answer: Answer, step: str) -> None:
        self._log(step, 0)
        if self.command != "HEAD" and answer.content:  # without a body, the head alone would be a whole answer
            self._write_head(answer)
            self.wfile.write(answer.content[: len(answer.content) // 2])
            self.wfile.flush()
        self.close_connection = True

    def _write_head(self, answer: Answer) -> None:
        headers = {"Content-Type": "application/json", "Content-Length": str(len(answer.content))}
        headers["X-Request-Id"] = f"Root=1-{len(self.server.log):08d}"
        self.send_response(answer.status)
        for name, value in (headers | answer.headers).items():
            self.send_header(name, value)
        self.end_headers()

    def _hang_up(self, step: str) -> None:
        self._log(step, 0)
        self.close_connection = True

    def _log(self, step: str, status: int) -> None:
        self.server.log.append(LogRow(self.command, self.path, self.server.name, step, status))

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing on stderr: tests read the log."""


def serve_range(content: bytes, request: Request, headers: dict[str, str] | None = None) -> Answer:
    """Answer with the bytes that the `Range` header asks for, or all of them.

    Raises:
        Refusal: 416 if the range starts after the end.
    """
    headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **(headers or {})}
    span = parse_range(request, len(content))
    if span is None:
        return Answer(content, 200, headers)
    start, end = span
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
    return Answer(content[start:end], 206, headers)


def parse_range(request: Request, size: int) -> tuple[int, int] | None:
    """Start and end (exclusive) of the requested bytes, None for all.

    Raises:
        Refusal: 416 if the range starts after the end.
    """
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range") or "")
    if not found:
        return None
    first, last = found.groups()
    start = int(first) if first else max(0, size - int(last))
    end = min(int(last) + 1, size) if first and last else size
    if start >= end:
        raise Refusal(416, "The requested range cannot be satisfied", headers={"Content-Range": f"bytes */{size}"})
    return start, end
