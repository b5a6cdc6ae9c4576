"""Flags of `run` about namespaces: --pid, --ipc, --uts, --cgroupns, --network, --userns, each of them compared from inside."""

from __future__ import annotations

import os

import pytest
from conftest import needs_root

from ketch_testing.clients import Client

pytestmark = [needs_root, pytest.mark.root]
KINDS = ("pid", "ipc", "uts", "cgroup", "net", "mnt", "user")


def spaces(client: Client, *options: str) -> dict[str, str]:
    """The namespaces of a container's process."""
    script = f"for n in {' '.join(KINDS)}; do readlink /proc/self/ns/$n; done"
    lines = client.inside(*options, script=script).splitlines()
    return dict(zip(KINDS, lines, strict=True))


def own(kind: str) -> str:
    """The daemon's and ours."""
    return os.readlink(f"/proc/self/ns/{kind}")


def test_default(client: Client) -> None:
    """All are the container's own but the user's, and on version 1 the cgroup's."""
    seen = spaces(client)
    shared = {kind for kind in KINDS if seen[kind] == own(kind)}
    mode = client.inspect(client("create", "busybox").strip())["HostConfig"]["CgroupnsMode"]
    assert shared == ({"user", "cgroup"} if mode == "host" else {"user"})


@pytest.mark.parametrize(
    ("option", "kind"),
    [("--pid", "pid"), ("--ipc", "ipc"), ("--uts", "uts"), ("--cgroupns", "cgroup"), ("--network", "net")],
)
def test_host(client: Client, option: str, kind: str) -> None:
    seen = spaces(client, option, "host")
    assert seen[kind] == own(kind)
    assert seen["mnt"] != own("mnt")


def test_private(client: Client) -> None:
    """--cgroupns private on any version; --ipc private; --userns host is what there is without a remap."""
    seen = spaces(client, "--cgroupns", "private", "--ipc", "private", "--userns", "host")
    assert seen["cgroup"] != own("cgroup") and seen["ipc"] != own("ipc") and seen["user"] == own("user")
    assert (
        client.inside("--cgroupns", "private", script="cat /proc/self/cgroup | cut -d: -f3 | sort -u") == "/"
    )


@pytest.fixture
def donor(client: Client) -> str:
    """A running container that shares its IPC namespace."""
    client("run", "-d", "--name", "donor", "--ipc", "shareable", "-h", "giver", "busybox", "sleep", "3600")
    return "container:donor"


def test_of_another_container(client: Client, donor: str) -> None:
    """pid, ipc with its /dev/shm, and network with its names."""
    script = "readlink /proc/self/ns/%s"
    for option, kind in (("--pid", "pid"), ("--ipc", "ipc"), ("--network", "net")):
        assert (
            client.inside(option, donor, script=script % kind)
            == client("exec", "donor", "readlink", f"/proc/self/ns/{kind}").strip()
        )
    assert "sleep 3600" in client.inside("--pid", donor, script="ps")
    client("exec", "donor", "sh", "-c", "echo shared > /dev/shm/word")
    assert client.inside("--ipc", donor, script="cat /dev/shm/word") == "shared"
    assert client.inside("--network", donor, script="hostname; cat /etc/hostname") == "giver\ngiver"


def test_of_another_container_refused(client: Client) -> None:
    """A donor that does not run, is not there, or does not share."""
    client("create", "--name", "asleep", "busybox", "sleep", "3600")
    for option, what in (("--pid", "PID"), ("--ipc", "IPC"), ("--network", "network")):
        said = client.says("run", "--rm", option, "container:asleep", "busybox", "true", code=125)
        assert (
            f"cannot join {what} of a non running container" in said
            or f"cannot join {what} namespace of a non running" in said
        )
        assert "No such container: nobody" in client.says(
            "run", "--rm", option, "container:nobody", "busybox", "true", code=125
        )
    client("start", "asleep")
    said = client.says("run", "--rm", "--ipc", "container:asleep", "busybox", "true", code=125)
    assert "non-shareable IPC (hint: use IpcMode:shareable for the donor container)" in said


def test_ipc_none(client: Client) -> None:
    """No /dev/shm mount."""
    assert client.inside("--ipc", "none", script="grep ' /dev/shm ' /proc/self/mountinfo; true") == ""


def test_pid_host(client: Client) -> None:
    """Every process is seen; all of the container's own end with its first."""
    assert client.inside("--pid", "host", script=f"test -d /proc/{os.getpid()} && echo seen") == "seen"
    client("run", "--rm", "--pid", "host", "busybox", "sh", "-c", "sleep 98765 & true")
    assert "98765" not in client.inside("--pid", "host", script="ps | grep '[9]8765'; true")


def test_uts_host(client: Client) -> None:
    assert client.inside("--uts", "host", script="hostname") == os.uname().nodename
    said = client.says("run", "--rm", "--uts", "host", "-h", "x", "busybox", "true", code=125)
    assert "conflicting options: hostname and the UTS mode" in said


def test_bad_words(client: Client) -> None:
    for option, words in (
        ("--pid", "invalid PID mode"), ("--uts", "invalid UTS mode"), ("--userns", "invalid USER mode"),
        ("--cgroupns", "invalid CGROUP mode"), ("--ipc", "invalid IPC mode"),
    ):  # fmt: skip
        assert words in client.says("run", "--rm", option, "nonsense", "busybox", "true", code=125)
