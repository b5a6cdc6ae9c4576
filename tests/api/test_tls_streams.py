"""Streams over TLS: what a shim writes reaches the client encrypted, and nothing else leaves on that connection."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import import_busybox, needs_root

from ketch_testing.certificates import Authority
from ketch_testing.eventscenarios import Api
from ketch_testing.machine import BIN, Machine, free_port
from ketch_wire.stdcopy import StreamReader

pytestmark = [
    needs_root,
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed"),
]


class Encrypted:
    """A ketchd behind TLS with client certificates, which `--tls` alone asks for."""

    def __init__(self, base: Path) -> None:
        self.port = free_port()
        authority = Authority(base / "ca")
        certificate, key = authority.issue("localhost", addresses=("127.0.0.1",))
        self.context = ssl.create_default_context(cafile=str(authority.certificate))
        issued = authority.issue("client")
        self.context.load_cert_chain(*map(str, issued))
        self.certificates = base / "certificates"
        self.certificates.mkdir()
        for name, file in zip(
            ("ca.pem", "cert.pem", "key.pem"), (authority.certificate, *issued), strict=True
        ):
            shutil.copy(file, self.certificates / name)
        self.machine = Machine(
            base / "m",
            flags=(
                *("-H", f"tcp://127.0.0.1:{self.port}", "--tls", "--tlscacert", str(authority.certificate)),
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


def test_a_client_without_a_certificate_is_refused(tls: Encrypted) -> None:
    """Its handshake may end before ours has looked: then its first read tells."""
    stranger = ssl.create_default_context(cafile=str(tls.certificates / "ca.pem"))
    with pytest.raises((ssl.SSLError, ConnectionError)):  # noqa: SIM117
        with stranger.wrap_socket(
            socket.create_connection(("127.0.0.1", tls.port), 30), server_hostname="localhost"
        ) as client:
            client.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            client.recv(1000)
    assert not any("API is accessible" in one for one in tls.api("GET", "/info")["Warnings"] or ())


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


def typed(
    tls: Encrypted, program: str, *words: str, code: int = 0, stdin: bytes = b"", **variables: str
) -> tuple[bytes, bytes]:
    """(stdout, stderr) of a client program, which has the certificates and must exit with `code`."""
    if program == "docker" and shutil.which("docker") is None:
        pytest.skip("the docker CLI is not installed (apt-get install docker-cli)")
    env = {
        **tls.machine.env, "DOCKER_HOST": f"tcp://127.0.0.1:{tls.port}", "DOCKER_TLS_VERIFY": "1",
        "DOCKER_CERT_PATH": str(tls.certificates), **variables,
    }  # fmt: skip
    done = subprocess.run(
        [program, *words], env=env, input=stdin, capture_output=True, timeout=120, check=False
    )
    assert done.returncode == code, (words, done.returncode, done.stdout[:500], done.stderr[:500])
    return done.stdout, done.stderr


@pytest.mark.parametrize("program", ["ketch", "docker"])
@pytest.mark.parametrize("size", [3, 3_000_000])
def test_input_has_an_end_and_output_goes_on(tls: Encrypted, program: str, size: int) -> None:
    """A close_notify of the client is the end of stdin, not of the connection."""
    sent = os.urandom(size)
    script = "cat; sleep 0.5; echo after >&2; head -c 1000000 /dev/zero; exit 7"
    out, err = typed(tls, program, "run", "--rm", "-i", "busybox", "sh", "-c", script, code=7, stdin=sent)
    assert out == sent + bytes(1_000_000)
    assert err == b"after\n"


@pytest.mark.parametrize("program", ["ketch", "docker"])
def test_bodies_both_ways(tls: Encrypted, program: str, tmp_path: Path) -> None:
    """A save and a load: more than any buffer, and answers that come while the body is sent."""
    saved, _ = typed(tls, program, "save", "busybox")
    assert b"Loaded image" in typed(tls, program, "load", stdin=saved)[0]
    assert typed(tls, program, "images", "-q")[0]


def test_a_dial_stdio_by_tls(tls: Encrypted) -> None:
    """What ssh runs on a host whose engine is behind TLS: the end of input goes through as well."""
    made = tls.api.create("dial", "cat", OpenStdin=True, StdinOnce=True)
    env = {
        **tls.machine.env, "DOCKER_HOST": f"tcp://127.0.0.1:{tls.port}", "DOCKER_TLS_VERIFY": "1",
        "DOCKER_CERT_PATH": str(tls.certificates),
    }  # fmt: skip
    sent = os.urandom(1_000_000)
    head = f"POST /containers/{made}/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
    with subprocess.Popen(
        [str(BIN / "ketch"), "system", "dial-stdio"], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as dialled:
        assert dialled.stdin is not None and dialled.stdout is not None
        dialled.stdin.write(head.encode())
        dialled.stdin.flush()
        while (line := dialled.stdout.readline()) != b"\r\n":
            assert line
        tls.api("POST", f"/containers/{made}/start")
        sending = threading.Thread(target=lambda: (dialled.stdin.write(sent), dialled.stdin.close()))  # type: ignore[union-attr]
        sending.start()
        reader = StreamReader()
        received = b"".join(one.payload for one in reader.feed(dialled.stdout.read()))
        sending.join()
        assert received == sent
        assert dialled.wait(60) == 0
    tls.api.remove("dial")


def test_a_client_without_a_certificate_is_told(tls: Encrypted, tmp_path: Path) -> None:
    shutil.copy(tls.certificates / "ca.pem", tmp_path / "ca.pem")
    _, err = typed(tls, str(BIN / "ketch"), "ps", code=1, DOCKER_CERT_PATH=str(tmp_path))
    assert err.startswith(f"error during connect: tcp://127.0.0.1:{tls.port}: tls: ".encode())
    assert err.count(b"\n") == 1 and b"certificate" in err


def test_an_engine_of_another_authority_is_not_trusted(tls: Encrypted, tmp_path: Path) -> None:
    shutil.copy(Authority(tmp_path / "other").certificate, tmp_path / "ca.pem")
    _, err = typed(tls, str(BIN / "ketch"), "ps", code=1, DOCKER_CERT_PATH=str(tmp_path))
    assert err.startswith(f"error during connect: tcp://127.0.0.1:{tls.port}: tls: ".encode())


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01"])
def test_what_is_no_tls_ends(tls: Encrypted, said: bytes) -> None:
    """Plain HTTP, a cut hello, nothing: the connection ends, and the door stays open for others."""
    with socket.create_connection(("127.0.0.1", tls.port), 30) as client:
        client.sendall(said)
        client.shutdown(socket.SHUT_WR)
        while client.recv(4096):
            pass
    assert tls.api("GET", "/containers/json?all=1") is not None
    assert "Traceback" not in tls.machine.log.read_text()
