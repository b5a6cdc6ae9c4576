"""Flags of `run` about what a process may do: capabilities, seccomp, privileges, devices, sysctls. Looked at from inside."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from conftest import needs_root

from ketch_testing.clients import Client
from ketchd.kernel.capabilities import permitted
from ketchd.sandbox.defaults import ALL_CAPABILITIES

pytestmark = [needs_root, pytest.mark.root]
DEFAULT = 0xA80425FB


def bit(name: str) -> int:
    """The mask of one capability."""
    return 1 << ALL_CAPABILITIES.index(f"CAP_{name}")


def status(client: Client, *options: str) -> dict[str, str]:
    """/proc/self/status of a container's first process."""
    text = client("run", "--rm", *options, "busybox", "cat", "/proc/self/status")
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


@pytest.mark.parametrize(
    ("options", "mask"),
    [
        ((), DEFAULT),
        (("--cap-add", "NET_ADMIN"), DEFAULT | bit("NET_ADMIN")),
        (("--cap-add", "cap_net_admin", "--cap-drop", "CHOWN"), DEFAULT & ~bit("CHOWN") | bit("NET_ADMIN")),
        (("--cap-drop", "ALL"), 0),
        (("--cap-drop", "ALL", "--cap-add", "SETUID"), bit("SETUID")),
        (("--cap-add", "ALL", "--cap-drop", "SYS_ADMIN"), permitted() & ~bit("SYS_ADMIN")),
        (("--privileged",), permitted()),
    ],
)
def test_capabilities(client: Client, options: tuple[str, ...], mask: int) -> None:
    """Bounding, permitted and effective alike, clipped to what the daemon has; inheritable and ambient empty."""
    seen = status(client, *options)
    sets = {key: int(seen[key], 16) for key in ("CapBnd", "CapPrm", "CapEff", "CapInh", "CapAmb")}
    wanted = mask & permitted()
    assert sets == {"CapBnd": wanted, "CapPrm": wanted, "CapEff": wanted, "CapInh": 0, "CapAmb": 0}


def test_seccomp(client: Client, tmp_path: Path) -> None:
    """A filter by default, none when unconfined or privileged, the user's from a file."""
    assert status(client)["Seccomp"] == "2"
    assert status(client, "--security-opt", "seccomp=unconfined")["Seccomp"] == "0"
    assert status(client, "--privileged")["Seccomp"] == "0"
    profile = tmp_path / "profile.json"
    profile.write_text(
        json.dumps(
            {
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}],
            }
        )
    )
    for more in ((), ("--privileged",)):
        got = client.inside("--security-opt", f"seccomp={profile}", *more, script="mkdir /x 2>&1; echo done")
        assert got == "mkdir: can't create directory '/x': Function not implemented\ndone"
    profile.write_text('{"defaultAction": "SCMP_ACT_PERHAPS"}')
    said = client.says("run", "--security-opt", f"seccomp={profile}", "busybox", "true", code=125)
    assert "SCMP_ACT_PERHAPS" in said
    assert "opening seccomp profile (/no/file) failed" in client.says(
        "run", "--security-opt", "seccomp=/no/file", "busybox", "true", code=125
    )


def test_default_filter_bites(client: Client) -> None:
    """unshare(2) of a user namespace, mount(2) and keyctl are refused; a default profile lets nobody make namespaces."""
    got = client.inside(script="busybox unshare -U true 2>&1; mount -t tmpfs x /tmp 2>&1; true")
    assert (
        got
        == "unshare: unshare(0x10000000): Operation not permitted\nmount: permission denied (are you root?)"
    )


def test_no_new_privileges(client: Client) -> None:
    """Both spellings, and `false`."""
    assert status(client)["NoNewPrivs"] == "0"
    for option in ("no-new-privileges", "no-new-privileges:true", "no-new-privileges=true"):
        seen = status(client, "--security-opt", option)
        assert (seen["NoNewPrivs"], seen["Seccomp"]) == ("1", "2"), option
    assert status(client, "--security-opt", "no-new-privileges=false")["NoNewPrivs"] == "0"


def test_system_paths(client: Client) -> None:
    """Masked and read-only paths, and none with systempaths=unconfined or --privileged."""
    script = "grep -c -E ' (/proc/kcore|/proc/sys|/proc/keys|/proc/timer_list) ' /proc/self/mountinfo; head -c1 /proc/keys | wc -c"
    masked = client.inside(script=script).split()
    assert int(masked[0]) >= 3 and masked[1] == "0"
    for option in (("--security-opt", "systempaths=unconfined"), ("--privileged",)):
        assert client.inside(*option, script=script).split()[0] == "0", option


def test_bad_security_options(client: Client) -> None:
    assert 'invalid --security-opt 2: "colour=red"' in client.says(
        "run", "--security-opt", "colour=red", "busybox", code=125
    )


def test_device(client: Client) -> None:
    """--device: the node where it is wanted, with its permissions; outside of the list even root may not."""
    got = client.inside(
        "--device", "/dev/zero:/dev/nought:r", "--device", "/dev/full",
        script="stat -c '%t:%T %F' /dev/nought; head -c2 /dev/nought | wc -c; (echo x > /dev/nought) 2>&1; ls /dev/full",
    )  # fmt: skip
    assert got.startswith("1:5 character special file\n2\n") and got.endswith("/dev/full")
    said = client.says("run", "--device", "/dev/no-such-device", "busybox", "true", code=127)
    assert 'error gathering device information while adding custom device "/dev/no-such-device"' in said


def test_device_policy(client: Client) -> None:
    """A node that somebody makes inside works only when a rule says so."""
    if not os.path.exists("/dev/loop-control"):
        pytest.skip("the host has no /dev/loop-control")
    script = "busybox mknod /tmp/k c 10 237 && (: < /tmp/k) 2>&1 && echo opened; true"
    assert "Operation not permitted" in client.inside(script=script)
    assert client.inside("--device-cgroup-rule", "c 10:237 rwm", script=script) == "opened"
    assert "invalid device cgroup format" in client.says(
        "run", "--device-cgroup-rule", "z 1:1 r", "busybox", code=125
    )


def test_privileged_devices(client: Client) -> None:
    """Every device of the host, and no policy."""
    names = set(client.inside("--privileged", script="ls /dev").split())
    host = {
        name
        for name in os.listdir("/dev")
        if not os.path.islink(f"/dev/{name}") and not os.path.isdir(f"/dev/{name}")
    }
    assert host - {"console", "ptmx"} <= names
    assert "permitted" not in client.inside("--privileged", script="head -c1 /dev/kmsg 2>&1 >/dev/null")


def test_sysctl(client: Client) -> None:
    """--sysctl of the container's own namespaces; Docker's two by default; others are refused."""
    got = client.inside(
        "--sysctl", "net.ipv4.ip_forward=0", "--sysctl", "kernel.msgmax=4321", "--sysctl", "net.core.somaxconn=77",
        script="cd /proc/sys; cat net/ipv4/ip_forward kernel/msgmax net/core/somaxconn net/ipv4/ip_unprivileged_port_start",
    )  # fmt: skip
    assert got == "0\n4321\n77\n0"
    assert "is not allowed" in client.says("run", "--sysctl", "kernel.core_pattern=x", "busybox", code=125)
    said = client.says("run", "--sysctl", "net.no.such=1", "busybox", "true", code=127)
    assert "open sysctl net.no.such file: no such file or directory" in said


def test_ports_below_1024_as_anybody(client: Client) -> None:
    """What net.ipv4.ip_unprivileged_port_start=0 is for."""
    script = "nc -l -p 80 & sleep 0.2; kill $! 2>/dev/null && echo listened"
    assert client.inside("-u", "nobody", script=script) == "listened"
