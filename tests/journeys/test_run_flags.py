"""Flags of `run` about the process: its streams, identity, environment, names, end. Looked at from inside, by both clients."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import needs_root

from ketch_testing.clients import Client
from ketch_testing.machine import Machine

pytestmark = [needs_root, pytest.mark.root]
Ask = Callable[..., tuple[int, Any]]


def test_interactive(client: Client) -> None:
    """-i: standard input to its end. Without it there is none."""
    assert client("run", "--rm", "-i", "busybox", "cat", stdin=b"typed\n") == "typed\n"
    assert client("run", "--rm", "busybox", "cat", stdin=b"typed\n") == ""


def test_terminal(client: Client) -> None:
    """-t: a terminal as /dev/pts/0 and /dev/console, TERM set, lines ending in CR LF; and none without it."""
    script = "tty; echo $TERM; grep -c ' /dev/console ' /proc/self/mountinfo; exec sleep 0"
    assert client("run", "--rm", "-t", "busybox", "sh", "-c", script) == "/dev/pts/0\r\nxterm\r\n1\r\n"
    assert client.inside(script="tty; echo [$TERM]") == "not a tty\n[]"


def test_terminal_of_the_client(client: Client) -> None:
    """-it from a terminal: what is typed arrives, the size is the client's."""
    master, slave = pty.openpty()
    subprocess.run(["stty", "rows", "33", "cols", "77"], stdin=slave, check=True)
    process = subprocess.Popen(
        [client.program, "run", "--rm", "-it", "busybox", "sh", "-c", "read word; echo got-$word; stty size; exit 7"],
        stdin=slave, stdout=slave, stderr=slave, env=client.machine.env, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    os.write(master, b"hello\n")
    seen = b""
    while select.select([master], [], [], 30)[0]:
        try:
            seen += os.read(master, 4096)
        except OSError:
            break
    os.close(master)
    assert process.wait(30) == 7
    assert b"got-hello" in seen and b"33 77" in seen


def test_attach(client: Client) -> None:
    """-a: only the named streams."""
    for stream, out, error in (("stdout", "out\n", ""), ("stderr", "", "err\n")):
        done = client.machine.run(
            client.program, "run", "--rm", "-a", stream, "busybox", "sh", "-c", "echo out; echo err >&2"
        )
        assert (done.stdout, done.stderr) == (out, error)
    config = client.inspect(client("create", "-a", "stdin", "-a", "stdout", "busybox").strip())["Config"]
    assert [config[key] for key in ("AttachStdin", "AttachStdout", "AttachStderr")] == [True, True, False]


def test_rm(client: Client, machine: Machine) -> None:
    """--rm: gone with its anonymous volumes when it ends, whatever its exit code; a named volume stays."""
    client("run", "--rm", "-v", "/anonymous", "-v", "kept:/named", "busybox", "false", code=1)
    assert machine.json("GET", "/containers/json?all=1") == []
    assert [volume["Name"] for volume in machine.json("GET", "/volumes")["Volumes"]] == ["kept"]
    client("volume", "rm", "kept")


def test_name_labels_cidfile(client: Client, tmp_path: Path) -> None:
    """--name, -l, --label-file, --cidfile; an existing id file is refused."""
    (tmp_path / "labels").write_text("# no label\nfrom=file\n")
    client(
        "create", "--name", "called", "-l", "a=b", "--label", "bare", "--label-file", str(tmp_path / "labels"),
        "--cidfile", str(tmp_path / "id"), "busybox",
    )  # fmt: skip
    seen = client.inspect("called")
    assert seen["Id"] == (tmp_path / "id").read_text()
    assert seen["Name"] == "/called" and seen["Config"]["Labels"] == {"a": "b", "bare": "", "from": "file"}
    assert seen["HostConfig"]["ContainerIDFile"] == str(tmp_path / "id")
    assert "container ID file found" in client.says(
        "create", "--cidfile", str(tmp_path / "id"), "busybox", code=1
    )


def test_environment(client: Client, tmp_path: Path) -> None:
    """-e and --env-file over what the image and Docker set; a bare name comes from the client, or is nothing."""
    (tmp_path / "vars").write_text("FILE=from file\n# comment\nBOTH=file\n")
    got = client(
        "run", "--rm", "-h", "box", "--env-file", str(tmp_path / "vars"), "-e", "BOTH=flag", "-e", "EMPTY=", "-e",
        "NOT_SET_ANYWHERE", "-e", "PATH=/bin:/x", "busybox", "env",
    )  # fmt: skip
    assert dict(line.split("=", 1) for line in got.splitlines()) == {
        "PATH": "/bin:/x", "HOSTNAME": "box", "FILE": "from file", "BOTH": "flag", "EMPTY": "", "HOME": "/root",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("user", "identity", "home"),
    [
        ("", "uid=0(root) gid=0(root) groups=0(root)", "/root"),
        ("user", "uid=1000(user) gid=1000(user) groups=1000(user),2000(extra)", "/home"),
        ("1000", "uid=1000(user) gid=1000(user) groups=1000(user),2000(extra)", "/home"),
        ("user:extra", "uid=1000(user) gid=2000(extra) groups=2000(extra)", "/home"),
        ("user:0", "uid=1000(user) gid=0(root) groups=0(root)", "/home"),
        ("4711", "uid=4711 gid=0(root) groups=0(root)", "/"),
        ("4711:4712", "uid=4711 gid=4712 groups=4712", "/"),
        (":extra", "uid=0(root) gid=2000(extra) groups=2000(extra)", "/root"),
    ],
)
def test_user(ketch: Client, user: str, identity: str, home: str) -> None:
    """-u by name and by number, with and without a group, in the container's own files."""
    assert ketch.inside("-u", user, script="id; echo $HOME") == f"{identity}\n{home}"


def test_user_group_add_and_capabilities(client: Client) -> None:
    """--group-add by name and number; another user than root has no effective capability, and the bounding set stays."""
    script = "id -G; grep -E 'CapEff|CapPrm|CapBnd' /proc/self/status | tr -d '\\n\\t'"
    got = client.inside("-u", "nobody", "--group-add", "extra", "--group-add", "77", script=script)
    assert got == "65534 77 2000\nCapPrm:0000000000000000CapEff:0000000000000000CapBnd:00000000a80425fb"


@pytest.mark.parametrize(
    ("user", "words"),
    [
        ("nosuch", "unable to find user nosuch: no matching entries in passwd file"),
        ("root:nosuch", "unable to find group nosuch: no matching entries in group file"),
        ("2147483648", "uids and gids must be in range 0-2147483647"),
    ],
)
def test_unknown_user(client: Client, user: str, words: str) -> None:
    assert words in client.says("run", "--rm", "-u", user, "busybox", "true", code=125)


def test_workdir(client: Client) -> None:
    """-w: made with its parents when it is missing, root's, 0755; a file in its place is refused."""
    assert client.inside("-w", "/new/place", script="pwd; stat -c '%a %u:%g' . ..") == (
        "/new/place\n755 0:0\n755 0:0"
    )
    assert client.inside("-w", "/tmp", "-u", "user", script="pwd") == "/tmp"
    assert client.inside("-w", "/root", "-u", "user", script="pwd; ls 2>&1; true") == (
        "/root\nls: .: Permission denied"
    )
    assert "not a directory" in client.says("run", "--rm", "-w", "/etc/passwd", "busybox", "true", code=125)


def test_entrypoint(client: Client) -> None:
    """--entrypoint replaces, and takes the image's command away; an empty one leaves the command alone."""
    assert client("run", "--rm", "--entrypoint", "echo", "busybox", "a", "b") == "a b\n"
    assert client("run", "--rm", "--entrypoint", "", "busybox", "echo", "c") == "c\n"
    seen = client.inspect(client("create", "--entrypoint", "env", "busybox").strip())
    assert (seen["Path"], seen["Args"], seen["Config"]["Cmd"]) == ("env", [], None)


def test_names_of_the_host(client: Client) -> None:
    """--hostname, --domainname, --add-host, --dns, --dns-search, --dns-option."""
    script = "hostname; cat /proc/sys/kernel/domainname /etc/hostname; cat /etc/hosts; cat /etc/resolv.conf"
    got = client.inside(
        "--hostname", "box", "--domainname", "example.org", "--add-host", "db:10.1.2.3", "--add-host",
        "gw:host-gateway", "--dns", "10.9.8.7", "--dns-search", "corp.example", "--dns-option", "ndots:3",
        script=script,
    ).splitlines()  # fmt: skip
    assert got[:3] == ["box", "example.org", "box"]
    assert "10.1.2.3\tdb" in got and any(line.endswith("\tgw") for line in got)
    assert any(line.endswith("\tbox.example.org box") for line in got)
    assert {"nameserver 10.9.8.7", "search corp.example", "options ndots:3"} <= set(got)
    container = client("create", "busybox").strip()
    assert client.inspect(container)["Config"]["Hostname"] == container[:12]


def test_init(client: Client) -> None:
    """--init: PID 1 is a reaper, the command its child; signals reach it and its exit code comes home."""
    assert client.inside("--init", script="echo $$ $PPID").split()[1] == "1"
    client("run", "--rm", "--init", "busybox", "sh", "-c", "exit 9", code=9)
    client("run", "-d", "--name", "obeys", "--init", "busybox", "sleep", "3600")
    client("stop", "obeys")
    assert client.inspect("obeys")["State"]["ExitCode"] == 143


def test_what_is_said_and_what_is_left_out_is_told_apart(ask: Ask) -> None:
    """Inspect shows `--init=false` and `--stop-timeout 0`, which say something, and nothing that is as if it was not said."""
    empty = {"StopSignal": "", "MacAddress": "", "NetworkDisabled": False, "Shell": [], "ExposedPorts": {}}
    host = {"Tmpfs": {}, "Sysctls": {}, "KernelMemoryTCP": 0}
    for made in ({"StopTimeout": 0, "HostConfig": {**host, "Init": False}}, {"HostConfig": host}):
        answer = ask("POST", "/containers/create", {"Image": "busybox", **empty, **made})[1]
        shown = ask("GET", f"/containers/{answer['Id']}/json")[1]
        assert shown["Config"].get("StopTimeout") == made.get("StopTimeout")
        assert shown["HostConfig"].get("Init") == made["HostConfig"].get("Init")
        assert not empty.keys() & shown["Config"].keys() and not host.keys() & shown["HostConfig"].keys()


def test_stop_signal_and_timeout(client: Client) -> None:
    """--stop-signal is what `stop` sends; after --stop-timeout seconds comes SIGKILL."""
    script = "trap 'echo usr1; exit 5' USR1; while :; do sleep 0.05; done"
    client("run", "-d", "--name", "asked", "--stop-signal", "USR1", "busybox", "sh", "-c", script)
    client("stop", "asked")
    assert client.inspect("asked")["State"]["ExitCode"] == 5 and client("logs", "asked") == "usr1\n"
    client(
        "run",
        "-d",
        "--name",
        "deaf",
        "--stop-timeout",
        "0",
        "busybox",
        "sh",
        "-c",
        "trap '' TERM; sleep 3600",
    )
    client("stop", "deaf")
    assert client.inspect("deaf")["State"]["ExitCode"] == 137


def test_log_driver(client: Client) -> None:
    """--log-driver none keeps nothing; --log-opt rotates."""
    client("run", "--name", "silent", "--log-driver", "none", "busybox", "echo", "gone")
    assert "configured logging driver does not support reading" in client.says("logs", "silent", code=1)
    client(
        "run", "--name", "turning", "--log-opt", "max-size=1k", "--log-opt", "max-file=2", "busybox", "sh", "-c",
        "i=0; while [ $i -lt 100 ]; do echo line $i; i=$((i+1)); done",
    )  # fmt: skip
    path = Path(client.inspect("turning")["LogPath"])
    assert sorted(file.name for file in path.parent.glob("*.log*")) == [path.name, path.name + ".1"]
    assert client("logs", "--tail", "1", "turning") == "line 99\n"
    assert 'error looking up logging plugin abacus: plugin "abacus" not found' in client.says(
        "create", "--log-driver", "abacus", "busybox", code=1
    )


def test_health(client: Client) -> None:
    """--health-*: the probe as given, its result seen; --no-healthcheck."""
    client(
        "run", "-d", "--name", "well", "--health-cmd", "test -d /tmp", "--health-interval", "100ms",
        "--health-timeout", "9s", "--health-retries", "4", "--health-start-period", "1s", "busybox", "sleep", "3600",
    )  # fmt: skip
    assert client.machine.json("POST", "/containers/well/wait?condition=healthy")["StatusCode"] == 0
    seen = client.inspect("well")
    assert seen["State"]["Health"]["Status"] == "healthy"
    assert seen["Config"]["Healthcheck"] == {
        "Test": ["CMD-SHELL", "test -d /tmp"], "Interval": 100_000_000, "Timeout": 9_000_000_000, "Retries": 4,
        "StartPeriod": 1_000_000_000,
    }  # fmt: skip
    client("create", "--name", "unasked", "--no-healthcheck", "busybox")
    assert client.inspect("unasked")["Config"]["Healthcheck"] == {"Test": ["NONE"]}


def test_platform_pull_runtime(client: Client) -> None:
    """--platform, --pull, --runtime: what is here is used, what is not is refused."""
    machine = json.loads(client("image", "inspect", "busybox"))[0]["Architecture"]
    assert (
        client("run", "--rm", "--platform", f"linux/{machine}", "--pull", "never", "busybox", "echo", "x")
        == "x\n"
    )
    assert "does not match the specified platform" in client.says(
        "run", "--pull", "never", "--platform", "linux/s390x", "busybox", "true", code=125
    )
    assert "No such image: nope:latest" in client.says("run", "--pull", "never", "nope", "true", code=125)
    assert "invalid pull option" in client.says("run", "--pull", "perhaps", "busybox", "true", code=125)
    assert client("run", "--rm", "--runtime", "runc", "busybox", "echo", "y") == "y\n"
    assert "unknown or invalid runtime name: kata" in client.says(
        "run", "--runtime", "kata", "busybox", "true", code=125
    )
