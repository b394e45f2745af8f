"""A small Hugging Face Hub on loopback, with a log of requests and with faults to order."""

import os
import re
import select
import socket
import socketserver
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from tests.hub_api import Hub, Refusal, Repo, Request, Response

FaultKind = Literal[
    "dribble", "json", "truncate", "short", "flip", "reset", "stall", "slow", "status", "html", "no_etag"
]
PATIENCE = 6.0  # seconds that a stall lasts at most, so that a client that waits for ever fails a test and no more


@dataclass
class Fault:
    pattern: str
    kind: FaultKind
    times: float
    keep: int
    status: int
    ranges: bool
    headers: dict[str, str]


class HubServer(ThreadingHTTPServer):
    """The server; `clear` makes it as new, so that one serves all tests of a process."""

    daemon_threads = True
    allow_reuse_port = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.port = self.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        # Bound and never listening: keeps the port ours, and refusing, while the server is down.
        self.guard = socket.socket()
        self.guard.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.guard.bind(self.server_address)
        self.lock = threading.RLock()
        self.over = threading.Event()
        self.clear()
        self._serve()

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # without looking up the name of this machine

    def clear(self) -> None:
        """No repositories, no faults, an empty log; whoever was stalled is let go."""
        self.over.set()
        with self.lock:
            self.over = threading.Event()
            self.hub = Hub(self.port)
            self.requests: list[Request] = []
            self.errors: list[BaseException] = []
            self.outlasted: list[str] = []  # what a client still waited for when the server lost its patience
            self._faults: list[Fault] = []
            self._callbacks: list[tuple[str, Callable[[], object]]] = []

    def close(self) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()
        self.guard.close()

    @contextmanager
    def down(self) -> Iterator[None]:
        """Connections are refused for a while."""
        self.shutdown()
        self.socket.close()
        yield
        self.socket = socket.socket()
        self.server_bind()
        self.server_activate()
        self._serve()

    def repo(
        self, name: str, files: Mapping[str, bytes] | None = None, *, private: bool = False, gated: bool = False
    ) -> Repo:
        """A new repository, with a first commit of these files."""
        with self.lock:
            repo = self.hub.repos[name] = Repo(name, private=private, gated=gated)
            if files:
                repo.push(files)
        return repo

    def fail(
        self,
        pattern: str,
        kind: FaultKind,
        *,
        times: float = float("inf"),
        keep: int = 0,
        status: int = 500,
        ranges: bool = True,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Answer the next requests that match with a fault.

        Args:
            pattern: Regular expression searched in `"METHOD /path"`.
            kind: What goes wrong.
            times: How often.
            keep: Bytes of the body sent before it breaks off (`truncate`, `reset`, `stall`) or ends (`short`).
                At 0 not even a status line is sent.
            status: For `status`, with these `headers`.
            ranges: Whether `Range` is honoured meanwhile.
            headers: Further headers of a `status`.
        """
        with self.lock:
            self._faults.append(Fault(pattern, kind, times, keep, status, ranges, dict(headers or {})))

    def heal(self) -> None:
        with self.lock:
            self._faults.clear()

    def after(self, pattern: str, callback: Callable[[], object]) -> None:
        """Call back once: when the next matching request has its answer, before the client can make another."""
        with self.lock:
            self._callbacks.append((pattern, callback))

    def bodies(self) -> list[str]:
        """The paths of the file bodies that were asked for."""
        return [it.path for it in self.requests if it.method == "GET" and re.search("/resolve/|/cdn/", it.path)]

    def take_fault(self, request: Request) -> Fault | None:
        for fault in self._faults:
            if fault.times > 0 and re.search(fault.pattern, request.text):
                fault.times -= 1
                return fault
        return None

    def call_back(self, request: Request) -> None:
        due = [entry for entry in self._callbacks if re.search(entry[0], request.text)]
        for entry in due:
            self._callbacks.remove(entry)
            entry[1]()

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, ConnectionError):  # clients may hang up
            self.errors.append(error)

    def _serve(self) -> None:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = Request(
            self.command,
            self.path,
            self.headers.get("Range", ""),
            (self.headers.get("Authorization") or "").removeprefix("Bearer "),
            self.headers.get("User-Agent", ""),
        )
        with self.server.lock:
            self.server.requests.append(request)
            fault = self.server.take_fault(request)
            over = self.server.over
            try:
                response = self.server.hub.respond(request, body)
            except Refusal as refusal:
                response = refusal.response
            self.server.call_back(request)
        self._send(_whole(response, request, fault), fault, over)

    do_HEAD = do_POST = do_DELETE = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _send(self, response: Response, fault: Fault | None, over: threading.Event) -> None:
        kind, keep = (fault.kind, fault.keep) if fault else (None, 0)
        breaks_off = kind in ("truncate", "reset", "stall")
        if not breaks_off or keep > 0:
            self._send_head(response)
        if self.command != "HEAD":
            self._send_body(
                response.body[:keep] if breaks_off else response.body, slowly=kind == "slow", dribbles=kind == "dribble"
            )
        self.close_connection = True
        if kind == "stall":
            self._wait_for_the_client_to_leave(over)
        if kind == "reset":
            # Lingering for no time turns a close into a reset; the file objects around the socket would delay it.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())

    def _send_head(self, response: Response) -> None:
        self.send_response(response.status)
        for name, value in {"Content-Type": "application/json", **response.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(response.body)))
        self.send_header("Connection", "close")  # no state is left in a connection from one request to the next
        self.end_headers()

    def _send_body(self, body: bytes, *, slowly: bool, dribbles: bool) -> None:
        step = 1 if dribbles else len(body) // 8 + 1 if slowly else len(body) or 1
        for start in range(0, len(body), step):
            try:
                self.wfile.write(body[start : start + step])
            except OSError:
                return  # the client has left
            if slowly or dribbles:
                time.sleep(0.05)

    def _wait_for_the_client_to_leave(self, over: threading.Event) -> None:
        for _ in range(int(PATIENCE / 0.05)):
            left, _, _ = select.select([self.connection], [], [], 0)
            if left or over.wait(0.05):
                return
        self.server.outlasted.append(self.path)


def _whole(response: Response, request: Request, fault: Fault | None) -> Response:
    """The answer, once its range is cut out and faults of the content are in it."""
    body, headers, status = response.body, dict(response.headers), response.status
    if fault and fault.kind == "status":
        return Response(fault.status, b'{"error": "out of order"}', fault.headers)
    if fault and fault.kind == "json":
        return Response(200, fault.headers["body"].encode(), {})
    if fault and fault.kind == "html":
        return Response(200, b"<html>Sign in to this network</html>", {"Content-Type": "text/html"})
    if fault and fault.kind == "no_etag":
        headers = {name: value for name, value in headers.items() if not name.lower().endswith("etag")}
    if fault and fault.kind == "flip" and body:
        middle = len(body) * 3 // 4
        body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
    if fault and fault.kind == "short":
        body = body[: fault.keep]
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.range)
    if asked and status == 200 and (fault is None or fault.ranges):
        start, size = int(asked[1]), len(body)
        if start >= size:
            return Response(416, b"", {"Content-Range": f"bytes */{size}"})
        body = body[start : int(asked[2]) + 1 if asked[2] else size]
        headers["Content-Range"] = f"bytes {start}-{start + len(body) - 1}/{size}"
        status = 206
    return Response(status, body, headers)
