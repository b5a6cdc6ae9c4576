"""Streams over TLS: what a shim writes reaches the client encrypted, and nothing else leaves on that connection."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import import_busybox, needs_root

from ketch_testing.certificates import Authority
from ketch_testing.eventscenarios import Api
from ketch_testing.machine import Machine, free_port
from ketch_wire.stdcopy import StreamReader

pytestmark = [
    needs_root,
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed"),
]


class Encrypted:
    """A ketchd behind TLS with client certificates."""

    def __init__(self, base: Path) -> None:
        self.port = free_port()
        authority = Authority(base / "ca")
        certificate, key = authority.issue("localhost", addresses=("127.0.0.1",))
        self.context = ssl.create_default_context(cafile=str(authority.certificate))
        self.context.load_cert_chain(*map(str, authority.issue("client")))
        self.machine = Machine(
            base / "m",
            flags=(
                *("-H", f"tcp://127.0.0.1:{self.port}", "--tlsverify", "--tlscacert", str(authority.certificate)),
                *("--tlscert", str(certificate), "--tlskey", str(key)),
            ),
        )  # fmt: skip
        self.machine.start()
        import_busybox(self.machine)
        self.api = Api(str(self.machine.socket))

    def hijack(self, path: str, body: object = None) -> ssl.SSLSocket:
        """A POST that becomes a stream; its answer's head is read."""
        client = self.context.wrap_socket(
            socket.create_connection(("127.0.0.1", self.port), 30), server_hostname="localhost"
        )
        content = b"" if body is None else json.dumps(body).encode()
        client.sendall(
            f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n".encode()
            + content
        )
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(1)
        assert b" 101 " in head.split(b"\r\n", 1)[0], head
        return client


@pytest.fixture(scope="module")
def tls() -> Iterator[Encrypted]:
    with tempfile.TemporaryDirectory(prefix="ketch-tls-") as base:
        made = Encrypted(Path(base))
        try:
            yield made
        finally:
            made.machine.close()
        assert made.machine.leftovers() == []


def frames(client: ssl.SSLSocket) -> bytes:
    reader, data = StreamReader(), b""
    while part := client.recv(65536):
        data += b"".join(one.payload for one in reader.feed(part))
    return data


def test_attach_before_the_start(tls: Encrypted) -> None:
    made = tls.api.create("att", "sh", "-c", "echo hello; read x; echo got $x", OpenStdin=True)
    with tls.hijack(f"/containers/{made}/attach?stream=1&stdin=1&stdout=1&stderr=1") as client:
        tls.api("POST", f"/containers/{made}/start")
        client.sendall(b"typed\n")
        assert frames(client) == b"hello\ngot typed\n"
    tls.api.remove("att")


def test_much_output_and_a_log_before_it(tls: Encrypted) -> None:
    tls.api.run("big", "sh", "-c", "echo first; read x; seq 500000", OpenStdin=True)
    with tls.hijack("/containers/big/attach?logs=1&stream=1&stdin=1&stdout=1&stderr=1") as client:
        client.sendall(b"\n")
        wanted = b"first\n" + b"".join(b"%d\n" % number for number in range(1, 500_001))
        assert hashlib.sha256(frames(client)).digest() == hashlib.sha256(wanted).digest()
    tls.api.remove("big")


def test_exec_with_input(tls: Encrypted) -> None:
    tls.api.run("exe", "sleep", "100")
    wanted = {"Cmd": ["sh", "-c", "read x; echo $x; exit 3"], "AttachStdin": True, "AttachStdout": True}
    made = tls.api("POST", "/containers/exe/exec", wanted)["Id"]
    with tls.hijack(f"/exec/{made}/start", {"Detach": False}) as client:
        client.sendall(b"in\n")
        assert frames(client) == b"in\n"
    assert tls.api("GET", f"/exec/{made}/json")["ExitCode"] == 3
    tls.api.remove("exe")


def test_a_client_that_leaves_changes_nothing(tls: Encrypted) -> None:
    tls.api.run("stay", "sh", "-c", "read x; sleep 100", OpenStdin=True)
    tls.hijack("/containers/stay/attach?stream=1&stdin=1&stdout=1").close()
    assert tls.api("GET", "/containers/stay/json")["State"]["Running"]
    tls.api.remove("stay")
