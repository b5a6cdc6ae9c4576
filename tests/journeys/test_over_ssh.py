"""The engine of another host by `ssh://`: with ketch and the stock docker CLI near, and ketch, docker or neither far."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import needs_root

from ketch_testing.machine import BIN, Machine, processes_naming
from ketch_testing.sshserver import SshServer, ssh_server
from ketch_testing.waiting import until

KETCH = str(BIN / "ketch")
pytestmark = [needs_root, pytest.mark.root]


@pytest.fixture(scope="module")
def server(machine: Machine) -> Iterator[SshServer]:
    with ssh_server(machine) as made:
        yield made


@pytest.fixture
def far(server: SshServer) -> Iterator[SshServer]:
    """The host; what a test installs there goes after it."""
    yield server
    for name in ("ketch", "docker"):
        (server.bin / name).unlink(missing_ok=True)


def typed(
    server: SshServer, *words: str, code: int = 0, stdin: bytes = b"", host: str = ""
) -> tuple[str, str]:
    """(stdout, stderr) of a client near, which must exit with `code`."""
    env = {**server.env, **({"DOCKER_HOST": host} if host else {})}
    done = subprocess.run(words, env=env, input=stdin, capture_output=True, timeout=120, check=False)
    out, err = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == code, f"{words}: {done.returncode}\n{out}\n{err}"
    return out, err


def docker() -> str:
    found = shutil.which("docker")
    if found is None:
        pytest.skip("the docker CLI is not installed (apt-get install docker-cli)")
    return found


@pytest.mark.parametrize(
    ("near", "name", "program"),
    [
        ("ketch", "ketch", "ketch"),
        ("ketch", "docker", "ketch"),
        ("ketch", "docker", "docker"),
        ("docker", "docker", "ketch"),
    ],
)
def test_what_is_typed_near_happens_far(far: SshServer, near: str, name: str, program: str) -> None:
    """Input has an end, both outputs come, and the exit code is the program's: through every pair of clients."""
    client = KETCH if near == "ketch" else docker()
    far.install(name, KETCH if program == "ketch" else docker())
    sent = bytes(range(256)) * 8192
    script = "cat | wc -c; echo told >&2; exit 7"
    out, err = typed(far, client, "run", "--rm", "-i", "busybox", "sh", "-c", script, code=7, stdin=sent)
    assert (out, err) == (f"{len(sent)}\n", "told\n")
    script = "yes | head -c 3000000"
    assert typed(far, client, "run", "--rm", "busybox", "sh", "-c", script)[0] == "y\n" * 1500000
    assert typed(far, client, "ps", "-aq")[0] == ""


@pytest.mark.parametrize("near", ["ketch", "docker"])
def test_a_socket_that_is_not_the_default_one(far: SshServer, near: str, machine: Machine) -> None:
    """`/PATH` behind the host, as docker has it since 23."""
    client = KETCH if near == "ketch" else docker()
    if near == "docker" and typed(far, client, "--version")[0].startswith("Docker version 20."):
        pytest.skip("docker 20.10 takes no path in ssh://")
    far.install("ketch", KETCH)
    far.install("docker", KETCH)
    assert "busybox" in typed(far, client, "images", host=f"{far.host}{machine.socket}")[0]
    said = typed(far, client, "images", host=f"{far.host}/nowhere.sock", code=1)[1]
    assert "Cannot connect to the ketch daemon at unix:///nowhere.sock" in said


def test_a_command_logs_in_once(far: SshServer) -> None:
    """Requests that follow each other use one connection: a login costs more than all of them."""
    far.install("ketch", KETCH)
    before = far.logins()
    typed(far, KETCH, "ps")
    assert far.logins() == before + 1
    typed(far, KETCH, "rmi", "nosuch:1", "nosuch:2", "nosuch:3", code=1)
    assert far.logins() == before + 2


def test_many_at_once_are_not_turned_away(far: SshServer) -> None:
    """sshd refuses logins while ten are under way; each of these is told what the engine says."""
    far.install("ketch", KETCH)
    names = [f"nosuch{number}" for number in range(60)]
    said = typed(far, KETCH, "stop", *names, code=1)[1]
    assert said == "".join(f"Error response from daemon: No such container: {name}\n" for name in names)


def test_a_body_that_is_streamed_arrives(far: SshServer, tmp_path: Path) -> None:
    """A build's context and a load, whose answers come while they are sent."""
    far.install("ketch", KETCH)
    (tmp_path / "Dockerfile").write_text("FROM busybox\nCOPY big /\nRUN md5sum /big\n")
    (tmp_path / "big").write_bytes(os.urandom(3_000_000))
    typed(far, KETCH, "build", "-q", "-t", "bigger", str(tmp_path))
    typed(far, KETCH, "save", "-o", str(tmp_path / "saved.tar"), "bigger")
    typed(far, KETCH, "rmi", "bigger")
    assert typed(far, KETCH, "load", "-i", str(tmp_path / "saved.tar"))[0] == "Loaded image: bigger:latest\n"
    typed(far, KETCH, "rmi", "bigger")


def test_a_host_without_any_client(far: SshServer) -> None:
    assert typed(far, KETCH, "ps", code=1)[1] == (
        f"error during connect: {far.host}: neither ketch nor docker is installed there\n"
    )


def test_a_host_whose_engine_is_away(far: SshServer) -> None:
    """What the client there says, whichever it is."""
    far.install("ketch", KETCH)
    said = typed(far, KETCH, "ps", host=f"{far.host}/nowhere.sock", code=1)[1]
    assert said == (
        f"error during connect: {far.host}/nowhere.sock: Cannot connect to the ketch daemon at "
        "unix:///nowhere.sock. Is the ketch daemon running?\n"
    )


def test_a_host_where_nobody_listens(far: SshServer) -> None:
    assert typed(far, KETCH, "ps", host="ssh://root@127.0.0.1:1", code=1)[1] == (
        "error during connect: ssh://root@127.0.0.1:1: connect to host 127.0.0.1 port 1: Connection refused\n"
    )


def test_a_user_who_may_not_log_in(far: SshServer) -> None:
    host = far.host.replace("root@", "nosuch@")
    assert typed(far, KETCH, "ps", host=host, code=1)[1] == (
        f"error during connect: {host}: nosuch@127.0.0.1: Permission denied (publickey)\n"
    )


def test_host_keys_are_ssh_s_business_and_told(far: SshServer) -> None:
    """One that is not known, and one that has changed: one line each, with what to do."""
    begins = (
        f"error during connect: {far.host}: Host key verification failed: the key of [127.0.0.1]:{far.port}"
    )
    kept = far.known.read_text()
    try:
        far.known.write_text("")
        assert typed(far, KETCH, "ps", code=1)[1] == f"{begins} is not known; log in once with ssh\n"
        far.trust((far.base / "user.pub").read_text())
        assert typed(far, KETCH, "ps", code=1)[1] == (
            f"{begins} has changed; if that is right, ssh-keygen -R '[127.0.0.1]:{far.port}'\n"
        )
    finally:
        far.known.write_text(kept)


def test_a_shell_that_talks(far: SshServer) -> None:
    """Text in front of the engine's answer, as from `echo` in a .bashrc, is shown."""
    far.install("ketch", "/bin/echo")
    said = typed(far, KETCH, "ps", code=1)[1]
    assert said.startswith(f"error during connect: {far.host}: malformed HTTP response 'system dial-stdio'")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_client_that_ends_leaves_nobody(far: SshServer, number: signal.Signals) -> None:
    """Neither ssh near nor a dial-stdio far, though the engine has nothing to send that would tell them."""
    far.install("ketch", KETCH)
    before = far.logins()
    with subprocess.Popen([KETCH, "events"], env=far.env, stdin=subprocess.DEVNULL) as client:
        until(lambda: far.logins() > before and len(_dialling(far)) == 2)
        client.send_signal(number)
        try:
            assert client.wait(60) == (130 if number == signal.SIGINT else 128 + number)
        finally:
            client.kill()
    until(lambda: not _dialling(far))


def test_detach_keys_and_interrupts_are_the_container_s(far: SshServer, machine: Machine) -> None:
    """Ctrl-C at a terminal goes to every process that has it: ssh must live on for what the container still says."""
    far.install("ketch", KETCH)
    script = "trap 'sleep 1; echo ended; exit 3' INT; echo begun; while :; do sleep 0.1; done"
    with subprocess.Popen(
        [KETCH, "run", "--rm", "busybox", "sh", "-c", script],
        env=far.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True,
    ) as client:  # fmt: skip
        assert client.stdout is not None
        assert client.stdout.readline() == b"begun\n"
        os.killpg(client.pid, signal.SIGINT)
        assert client.stdout.read() == b"ended\n"
        assert client.wait(60) == 3


def _dialling(server: SshServer) -> list[int]:
    """Processes of ssh connections near and of dial-stdio far."""
    near = processes_naming(str(server.base / "ssh_config"))
    far = [
        pid for pid in processes_naming("dial-stdio") if _engine_of(pid) == f"unix://{server.machine.socket}"
    ]
    return near + far


def _engine_of(pid: int) -> str:
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    return next((entry[12:].decode() for entry in entries if entry.startswith(b"DOCKER_HOST=")), "")


@pytest.mark.parametrize(("maker", "user"), [("ketch", "docker"), ("docker", "ketch")])
def test_a_context_of_either_client_leads_there(far: SshServer, maker: str, user: str) -> None:
    programs = {"ketch": KETCH, "docker": docker()}
    far.install("docker", KETCH)
    config = far.base / "contexts"
    typed(
        far,
        programs[maker],
        "--config",
        str(config),
        "context",
        "create",
        "far",
        "--docker",
        f"host={far.host}",
    )
    words = ("--config", str(config), "--context", "far", "images", "-q")
    assert len(typed(far, programs[user], *words, host="unix:///nowhere")[0].split()) == 1
    typed(far, programs[user], "--config", str(config), "context", "rm", "far")
