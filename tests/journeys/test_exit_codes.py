"""How a container's end is told: 125, 126, 127, 128 and a signal's number, and what is searched where."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator

import pytest
from conftest import needs_root

from ketch_testing.clients import Client
from ketch_testing.machine import Machine

pytestmark = [needs_root, pytest.mark.root]


@pytest.fixture(scope="module")
def odd(machine: Machine) -> Iterator[str]:
    """An image with files that cannot be executed, each for another reason."""
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        for name, content, mode in (
            ("Dockerfile", b"FROM busybox\nCOPY files /odd/\n", 0o644),
            ("files/noexec", b"#!/bin/sh\n", 0o644),
            ("files/lost", b"#!/no/such/interpreter\n", 0o755),
            ("files/rubbish", b"\0\1\2\3", 0o755),
            ("files/script", b"#!/bin/sh\necho from the script\n", 0o755),
            ("files/dir/file", b"", 0o644),
        ):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            tar.addfile(entry, io.BytesIO(content))
    status, answer = machine.request(
        "POST", "/build?t=odd", raw=context.getvalue(), headers={"Content-Type": "application/x-tar"}
    )
    assert status == 200 and b"Successfully tagged" in answer, answer
    yield "odd"


def test_of_the_program(client: Client) -> None:
    """The program's own, and 128 + n for a signal."""
    for code in (0, 1, 42, 255):
        client("run", "--rm", "busybox", "sh", "-c", f"exit {code}", code=code)
    for number in (9, 15, 10):
        # PID 1 ignores what it does not handle, whoever sends it from inside: its child takes the signal.
        client("run", "--rm", "--init", "busybox", "sh", "-c", f"kill -{number} $$", code=128 + number)


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("nosuch", 127, 'exec: "nosuch": executable file not found in $PATH'),
        ("/no/such", 127, 'exec: "/no/such": stat /no/such: no such file or directory'),
        ("/odd/noexec", 126, 'exec: "/odd/noexec": permission denied'),
        ("/odd/dir", 126, 'exec: "/odd/dir": is a directory'),
        ("", 127, 'exec: "": executable file not found in $PATH'),
    ],
)
def test_never_started(client: Client, odd: str, command: str, code: int, words: str) -> None:
    """The start fails, the state says why, and nothing runs."""
    said = client.says("run", "--name", "failed", odd, command, code=code)
    assert words in said
    state = client.inspect("failed")["State"]
    assert (state["Status"], state["ExitCode"], state["Running"]) == ("created", code, False)
    assert words in state["Error"]


def test_a_mount_that_cannot_be(client: Client) -> None:
    """A file on a directory: the code that the engine keeps is 127, and docker's hint is the end of the message."""
    said = client.says("run", "--name", "it", "-v", "/etc/hostname:/tmp", "busybox", "true", code=125)
    assert (
        "not a directory: unknown: Are you trying to mount a directory onto a file (or vice-versa)?" in said
    )
    assert client.inspect("it")["State"]["ExitCode"] == 127


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("/odd/lost", "exec /odd/lost: no such file or directory\n"),
        ("/odd/rubbish", "exec /odd/rubbish: exec format error\n"),
    ],
)
def test_refused_by_execve(client: Client, odd: str, command: str, words: str) -> None:
    """The start succeeds, then execve says no: one line on stderr and 255."""
    assert client.says("run", "--rm", odd, command, code=255) == words


_DIRECTORY = "Are you trying to mount a directory onto a file (or vice-versa)? Check if the specified host path exists and is the expected type"


@pytest.mark.parametrize(
    ("options", "command", "status", "code", "words"),
    [
        ({"WorkingDir": "/nosuch"}, "true", 400, 127, 'chdir to cwd ("/nosuch") set in config.json failed: no such file or directory'),
        ({"WorkingDir": "/etc/passwd"}, "true", 400, 127, f"not a directory: unknown: {_DIRECTORY}"),
        ({"WorkingDir": "here"}, "true", 500, 128, "OCI runtime exec failed: exec failed: Cwd must be an absolute path: unknown"),
        ({}, "nosuch", 400, 127, 'exec: "nosuch": executable file not found in $PATH: unknown'),
        ({}, "/odd/noexec", 400, 126, 'exec: "/odd/noexec": permission denied: unknown'),
        ({}, "/odd/dir", 400, 126, 'exec: "/odd/dir": is a directory: unknown: permission denied'),
        ({"User": "nosuch"}, "true", 500, 126, "unable to find user nosuch: no matching entries in passwd file"),
        ({"User": "0:nosuch"}, "true", 500, 126, "unable to find group nosuch: no matching entries in group file"),
        ({"User": "-1"}, "true", 500, 126, "uids and gids must be in range 0-2147483647"),
    ],
)  # fmt: skip
def test_exec_never_started(
    client: Client, odd: str, options: dict[str, str], command: str, status: int, code: int, words: str
) -> None:
    """As dockerd 28 has them: its status where the client waits for the start, its code and its words everywhere."""
    client("run", "-d", "--name", "host", odd, "sleep", "3600")
    names = {"WorkingDir": "--workdir", "User": "--user"}
    flags = [f"{names[name]}={value}" for name, value in options.items()]
    said = client.machine.run(client.program, "exec", *flags, "host", command, check=False)
    assert (said.returncode, words in said.stdout + said.stderr) == (code, True), said
    made = client.machine.json("POST", "/containers/host/exec", {"Cmd": [command], **options})
    answered, body = client.machine.request("POST", f"/exec/{made['Id']}/start", {"Detach": True})
    assert (answered, words in json.loads(body)["message"]) == (status, True), body
    shown = client.machine.json("GET", f"/exec/{made['Id']}/json")
    assert (shown["Running"], shown["ExitCode"], shown["Pid"]) == (False, code, 0)


@pytest.mark.parametrize(
    ("directory", "words"),
    [
        ("/etc/passwd", "Cannot mkdir: /etc/passwd is not a directory"),
        ("/etc/passwd/below", "lstat /etc/passwd/below: not a directory"),
        ("/bin/sh", "Cannot mkdir: /bin/sh is not a directory"),
    ],
)
def test_a_file_where_the_working_directory_should_be(client: Client, directory: str, words: str) -> None:
    """Refused at the create, and nothing is made, by way of a link either."""
    machine = client.machine

    def made() -> list[str]:
        return sorted(
            str(path)
            for part in ("containers", "stage", "volumes")
            for path in (machine.data_root / part).glob("*")
        )

    before = made()
    wanted = {"Image": "busybox", "Cmd": ["true"], "WorkingDir": directory, "Volumes": {"/v": {}}}
    status, answer = machine.request("POST", "/containers/create?name=failed", wanted)

    assert (status, json.loads(answer)) == (500, {"message": words})
    assert words in client.says("run", "--name", "failed", "-w", directory, "busybox", "true", code=125)
    assert machine.json("GET", "/containers/json?all=1") == [] and made() == before


def test_the_working_directory_is_made_at_the_create(client: Client) -> None:
    """What is copied into it before the start is there, and the image's own is left alone."""
    for number in (1, 2):  # the second time it is known what the image has
        client("create", "--name", f"it{number}", "-w", "/new/deep", "busybox", "cat", "copied")
        assert client("diff", f"it{number}").split() == ["A", "/new", "A", "/new/deep"]
        client("create", "--name", f"old{number}", "-w", "/etc", "busybox", "true")
        assert client("diff", f"old{number}") == ""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo("copied")
        entry.size = 5
        tar.addfile(entry, io.BytesIO(b"here\n"))
    client("cp", "-", "it1:/new/deep", stdin=archive.getvalue())
    assert client("start", "-a", "it1") == "here\n"


@pytest.mark.parametrize(
    ("options", "directory", "file"),
    [
        (["-v", "/etc:/w"], "/w/passwd", "/w/passwd"),
        (["-v", "/etc:/w"], "/w/passwd/below", "/w/passwd"),
        ([], "/dev/null", "/dev/null"),
    ],
)
def test_a_mounted_file_where_the_working_directory_should_be(
    client: Client, options: list[str], directory: str, file: str
) -> None:
    """runc's refusal: dockerd, which looks at the image alone, has not seen it. 125, and 127 in the state."""
    words = f"error during container init: mkdir {file}: not a directory: unknown: {_DIRECTORY}"
    said = client.says("run", "--name", "failed", *options, "-w", directory, "busybox", "true", code=125)
    assert words in said
    state = client.inspect("failed")["State"]
    assert (state["Status"], state["ExitCode"]) == ("created", 127) and words in state["Error"]
    assert client.machine.request("POST", "/containers/failed/start")[0] == 400


@pytest.mark.parametrize("name", ["hostname", "hosts", "resolv.conf"])
def test_a_working_directory_where_the_network_files_are(client: Client, name: str) -> None:
    """They are files of every image, as dockerd sees it."""
    said = client.says("run", "--name", "failed", "-w", f"/etc/{name}", "busybox", "true", code=125)
    assert f"Cannot mkdir: /etc/{name} is not a directory" in said


def test_working_directory_on_a_read_only_root(client: Client) -> None:
    """It is made before the root is shut."""
    assert client("run", "--rm", "--read-only", "-w", "/made/here", "busybox", "pwd") == "/made/here\n"


def test_engine_errors(client: Client) -> None:
    """125: no container came to be."""
    client.says("run", "--rm", "--no-such-flag", "busybox", code=125)
    client.says("run", "--rm", "-v", "relative/path:/x", "busybox", "true", code=125)
    client.says("run", "--rm", "--network", "nosuch", "busybox", "true", code=125)


def test_path_of_the_container(ketch: Client, odd: str) -> None:
    """PATH is the container's: its elements, in its root, in their order; the working directory for a relative path."""
    assert ketch("run", "--rm", "-e", "PATH=/odd:/bin", odd, "script") == "from the script\n"
    assert ketch("run", "--rm", "-w", "/odd", odd, "./script") == "from the script\n"
    ketch("run", "--rm", "-e", "PATH=/nowhere", odd, "script", code=127)
    ketch("run", "--rm", "-e", "PATH=/odd:/bin", odd, "noexec", code=127)
    assert ketch("run", "--rm", odd, "sh", "-c", "echo $PATH") == (
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
    )


def test_signals(client: Client) -> None:
    """kill by name and number."""
    for signal, code in (("KILL", 137), ("SIGUSR1", 138), ("12", 140)):
        client("run", "-d", "--name", "target", "--init", "busybox", "sleep", "3600")
        client("kill", "--signal", signal, "target")
        assert client("wait", "target") == f"{code}\n"
        client("rm", "target")
