"""An engine that only listens: scripted answers over a unix socket, and what it was asked. For tests of clients."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import parse_qs, urlsplit

CONTAINER = "ab" * 32


class Asked(NamedTuple):
    """One request. `query` as parse_qs gives it; `path` without the version."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)


class Reply(NamedTuple):
    """An answer: status, and a body as bytes or JSON. 101: the connection is taken over, the body is sent, and it ends.

    A Content-Length among `headers` stands for the true one: what is longer than the body is an answer cut short.
    """

    status: int
    body: Any = b""
    headers: tuple[tuple[str, str], ...] = ()


Handler = Callable[[Asked], Any]
# (method, path's expression, answer): bytes, JSON, a Reply, or what makes one of the request.
Route = tuple[str, str, Any]


class FakeEngine:
    """Listens at `path` until `close()`. Routes are tried in their order, then what an engine answers when all is well."""

    def __init__(self, path: Path, routes: Sequence[Route] = ()) -> None:
        self.host = f"unix://{path}"
        self.routes = list(routes)
        self.asked: list[Asked] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        self._links: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def __enter__(self) -> FakeEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every connection."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _accept(self) -> None:
        threads = []
        while True:
            try:
                link, _ = self._listener.accept()
            except OSError:
                break
            self._links.add(link)
            thread = threading.Thread(target=self._serve, args=(link,))
            thread.start()
            threads.append(thread)
        for link in list(self._links):
            try:
                link.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        for thread in threads:
            thread.join()

    def _serve(self, link: socket.socket) -> None:
        try:
            with link, link.makefile("rb") as stream:
                while (asked := read_request(stream)) is not None:
                    if asked.path != "/_ping":
                        self.asked.append(asked)
                    if not self._answer(link, asked):
                        return
        except (OSError, ValueError):
            return
        finally:
            self._links.discard(link)

    def _answer(self, link: socket.socket, asked: Asked) -> bool:
        """Whether the connection goes on."""
        reply = self._reply(asked)
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode() + b"\n"
        extra = "".join(f"{name}: {value}\r\n" for name, value in reply.headers)
        if reply.status == 101:
            head = f"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n{extra}\r\n"
            link.sendall(head.encode() + body)
            link.shutdown(socket.SHUT_WR)
            while link.recv(4096):
                pass
            return False
        head = f"HTTP/1.1 {reply.status} X\r\nApi-Version: 1.50\r\nOstype: linux\r\nServer: Docker/28.2.2 (linux)\r\n{extra}"
        is_cut = any(name == "Content-Length" for name, _ in reply.headers)
        if reply.status != 204:
            head += "Content-Type: application/json\r\n" + (
                f"Content-Length: {len(body)}\r\n" if not is_cut else ""
            )
        link.sendall(
            head.encode() + b"\r\n" + (b"" if asked.method == "HEAD" or reply.status == 204 else body)
        )
        return not is_cut

    def _reply(self, asked: Asked) -> Reply:
        for method, expression, answer in self.routes:
            if method == asked.method and re.fullmatch(expression, asked.path):
                made = answer(asked) if callable(answer) else answer
                return made if isinstance(made, Reply) else Reply(200, made)
        if asked.path == "/containers/create":
            return Reply(201, {"Id": CONTAINER, "Warnings": []})
        if asked.path.endswith("/attach") or re.fullmatch("/exec/.*/start", asked.path):
            return Reply(101)
        if asked.path.endswith("/start"):
            return Reply(204)
        if asked.path.endswith("/wait"):
            return Reply(200, {"StatusCode": 0})
        return Reply(200, b"OK" if asked.path == "/_ping" else {})


def read_request(stream: BinaryIO) -> Asked | None:
    """The next request, with its whole body; None at the end."""
    line = stream.readline().decode()
    if not line.strip():
        return None
    method, target, _ = line.split()
    headers: dict[str, str] = {}
    while text := stream.readline().decode().strip():
        name, _, value = text.partition(":")
        headers[name.lower()] = value.strip()
    body = b""
    if headers.get("transfer-encoding") == "chunked":
        while size := int(stream.readline(), 16):
            body += stream.read(size)
            stream.readline()
        stream.readline()
    elif "content-length" in headers:
        body = stream.read(int(headers["content-length"]))
    url = urlsplit(target)
    path = re.sub(r"^/v[\d.]+", "", url.path)
    return Asked(method, path, parse_qs(url.query, keep_blank_values=True), headers, body)


def messages(*objects: Any) -> bytes:
    """A progress stream."""
    return b"".join(json.dumps(one).encode() + b"\r\n" for one in objects)
