"""Old API versions against a real daemon, and requests as clients other than docker's own word them."""

from __future__ import annotations

import io
import json
import os
import socket
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import needs_root

from ketch_testing.clients import Client
from ketch_testing.machine import Machine

pytestmark = [needs_root, pytest.mark.root]
Ask = Callable[..., tuple[int, Any]]


def test_errors_are_text_before_1_24(machine: Machine) -> None:
    for path, message in (
        ("/v1.23/containers/nobody/json", b"No such container: nobody\n"),
        ("/v1.23/nothing", b"page not found\n"),
        ("/v1.11/info", b"client version 1.11 is too old. Minimum supported API version is 1.12, please upgrade "
                        b"your client to a newer version\n"),
    ):  # fmt: skip
        status, answer = machine.request("GET", path)
        assert (status >= 400, answer) == (True, message)
    assert machine.request("GET", "/v1.24/containers/nobody/json")[1].startswith(b'{"message"')


def test_copy_until_1_23(machine: Machine, ketch: Client) -> None:
    """The tar of a path, by POST."""
    name = ketch("create", "busybox", "sh", "-c", "true").strip()
    status, answer = machine.request("POST", f"/v1.23/containers/{name}/copy", {"Resource": "/etc"})
    assert status == 200
    with tarfile.open(fileobj=io.BytesIO(answer)) as tar:
        assert tar.getnames()[0].rstrip("/") == "etc"
    status, answer = machine.request("POST", f"/v1.23/containers/{name}/copy", {"Resource": ""})
    assert (status, answer) == (400, b"Path cannot be empty\n")
    status, answer = machine.request("POST", f"/v1.23/containers/{name}/copy", {"Resource": "/nowhere"})
    assert (status, answer) == (404, f"Could not find the file /nowhere in container {name}\n".encode())
    assert machine.request("POST", f"/v1.24/containers/{name}/copy", {"Resource": "/etc"})[0] == 404


def test_a_signal_for_a_stopped_container_before_1_20(machine: Machine, ketch: Client) -> None:
    name = ketch("create", "busybox", "true").strip()
    assert machine.request("POST", f"/v1.19/containers/{name}/kill")[0] == 204
    assert machine.request("POST", f"/v1.20/containers/{name}/kill")[0] == 409


def test_an_execs_start_needs_no_type_before_1_22(machine: Machine, ketch: Client) -> None:
    name = ketch("run", "-d", "busybox", "sleep", "100").strip()
    for version, expected in (("v1.21", 200), ("v1.22", 400)):
        made = machine.json("POST", f"/containers/{name}/exec", {"Cmd": ["true"]})["Id"]
        status, _ = machine.request(
            "POST", f"/{version}/exec/{made}/start", raw=b'{"Detach":true}', headers={"Content-Type": "text/plain"}
        )  # fmt: skip
        assert status == expected


def test_a_start_with_settings_is_refused(ask: Ask, ketch: Client) -> None:
    """Settings belong to the create since 1.24; what says nothing is no body."""
    name = ketch("create", "busybox", "true").strip()
    status, answer = ask("POST", f"/containers/{name}/start", {"Binds": ["/tmp:/tmp"]})
    assert status == 400 and answer["message"].startswith("starting container with non-empty request body")
    assert ask("POST", f"/containers/{name}/start", {})[0] == 204


def test_an_exec_that_was_never_started_ends_with_its_container(ask: Ask, ketch: Client) -> None:
    """Neither then nor after the next start does it run."""
    name = ketch("run", "-d", "--stop-signal", "KILL", "busybox", "sleep", "100").strip()
    made = ask("POST", f"/containers/{name}/exec", {"Cmd": ["true"]})[1]["Id"]
    ketch("stop", name)
    for _ in range(2):
        status, answer = ask("POST", f"/exec/{made}/start", {"Detach": True})
        assert (status, answer["message"]) == (404, f"No such exec instance: {made}")
        ketch("start", name)
    assert ask("POST", "/exec/nobody/resize?h=x&w=1")[0] == 400  # the size is looked at first


@pytest.mark.usefixtures("ketch")  # which removes what is made here
def test_limits_beside_the_host_config(machine: Machine) -> None:
    """Where clients had them before 1.18; and a HostConfig that is there twice is one."""
    made = []
    for sent in (
        b'{"Image":"busybox","Cmd":["true"],"Memory":16777216,"CpuShares":7,"Cpuset":"0","Dns":["192.0.2.1"]}',
        b'{"Image":"busybox","Cmd":["true"],"HostConfig":{"Memory":1,"Dns":["192.0.2.1"],"RestartPolicy":{"Name":"always"}},'
        b'"CpuShares":7,"HostConfig":{"Memory":16777216,"RestartPolicy":{"MaximumRetryCount":0}},"Cpuset":"0"}',
    ):
        status, answer = machine.request(
            "POST", "/containers/create", raw=sent, headers={"Content-Type": "application/json"}
        )
        assert status == 201, answer
        made.append(json.loads(answer)["Id"])
    for name, policy in zip(made, ("no", "always"), strict=True):
        host = machine.json("GET", f"/containers/{name}/json")["HostConfig"]
        assert (host["Memory"], host["CpuShares"], host["CpusetCpus"]) == (16777216, 7, "0")
        assert (host["Dns"], host["RestartPolicy"]["Name"]) == (["192.0.2.1"], policy)


def test_an_update_before_1_40_has_no_limit_of_processes(machine: Machine, ketch: Client) -> None:
    name = ketch("create", "--pids-limit", "9", "busybox", "true").strip()
    for version, expected in (("v1.39", 9), ("v1.40", 7)):
        machine.json("POST", f"/{version}/containers/{name}/update", {"PidsLimit": 7})
        assert machine.json("GET", f"/containers/{name}/json")["HostConfig"]["PidsLimit"] == expected


def test_an_image_tells_its_container_before_1_45(machine: Machine, ketch: Client) -> None:
    """The one that it was committed from."""
    name = ketch("create", "--hostname", "there", "busybox", "echo", "x").strip()
    ketch("commit", "-c", "CMD other", name, "committed:of")
    try:
        shown = machine.json("GET", "/v1.44/images/committed:of/json")
        assert (shown["Container"], shown["ContainerConfig"]["Hostname"]) == (name, "there")
        assert (shown["ContainerConfig"]["Cmd"], shown["ContainerConfig"]["Image"]) == (
            ["echo", "x"],
            "busybox",
        )
        assert not {"Container", "ContainerConfig"} & set(
            machine.json("GET", "/v1.45/images/committed:of/json")
        )
    finally:
        ketch("rmi", "committed:of")


def test_an_upgrade_without_the_word_connection(machine: Machine, ketch: Client) -> None:
    """Clients that send `Upgrade: tcp` alone get the two-way stream as well."""
    name = ketch("run", "-d", "-i", "busybox", "cat").strip()
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(str(machine.socket))
        link.settimeout(60)
        link.sendall(
            f"POST /containers/{name}/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: x\r\nUpgrade: tcp\r\n"
            "Content-Type: text/plain\r\nContent-Length: 0\r\n\r\n".encode()
        )
        reader = link.makefile("rb")
        assert reader.readline() == b"HTTP/1.1 101 UPGRADED\r\n"
        while reader.readline() != b"\r\n":
            pass
        link.sendall(b"echoed\n")
        assert reader.read(15) == b"\x01\0\0\0\0\0\0\x07echoed\n"


def test_options_that_exclude_each_other(client: Client) -> None:
    """dockerd's words, by both clients."""
    for options, message in (
        (("--network", "host", "--mac-address", "92:d0:c6:0a:29:33"), "mac-address and the network mode"),
        (("--network", "container:x", "--mac-address", "92:d0:c6:0a:29:33"), "mac-address and the network mode"),
        (("--network", "container:"), "invalid container format container:<name|id>"),
    ):  # fmt: skip
        assert message in client.says("run", *options, "busybox", "true", code=125)


def test_a_volume_in_place_of_the_cgroups(client: Client) -> None:
    """Nothing of the usual mounts below it is left."""
    script = "ls -A /sys/fs/cgroup | wc -l; grep -c ' /sys/fs/cgroup' /proc/self/mountinfo"
    assert client.inside("-v", "/sys/fs/cgroup", script=script) == "0\n1"


def test_options_of_another_kind_of_mount(ask: Ask) -> None:
    """Even empty ones."""
    mount = {"Type": "bind", "Source": "/tmp", "Target": "/x", "VolumeOptions": {}}
    status, answer = ask(
        "POST", "/containers/create", {"Image": "busybox", "HostConfig": {"Mounts": [mount]}}
    )
    assert (status, answer["message"]) == (
        400,
        'invalid mount config for type "bind": VolumeOptions must not be specified on mount type "bind"',
    )


def test_archive_mode_without_a_user_keeps_owners(client: Client, tmp_path: Path) -> None:
    """cp -a into a container whose user is nobody in particular."""
    source = tmp_path / "f"
    source.write_text("x")
    os.chown(source, 7, 9)
    name = client("create", "busybox", "stat", "-c", "%u:%g", "/f").strip()
    client("cp", "-a", str(source), f"{name}:/")
    assert client("start", "-a", name) == "7:9\n"


def test_an_attach_that_is_refused_says_so_in_text(machine: Machine, ketch: Client) -> None:
    """Clients take any answer for the stream and print it: it is the message alone, and then the connection ends."""
    name = ketch("run", "-d", "busybox", "sleep", "100").strip()
    ketch("pause", name)
    for reference, query, status, words in (
        ("nobody", "stream=1", "404 Not Found", "No such container: nobody"),
        (name, "stream=1", "409 Conflict", f"container {name} is paused, unpause the container before attach"),
        (name, "stream=1&detachKeys=ctrl-A", "409 Conflict", f"container {name} is paused, unpause the container before attach"),
    ):  # fmt: skip
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(str(machine.socket))
            link.settimeout(60)
            link.sendall(
                f"POST /containers/{reference}/attach?{query} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
                "Content-Length: 0\r\n\r\n".encode()
            )
            head, _, body = link.makefile("rb").read().decode().partition("\r\n\r\n")
        assert head.startswith(f"HTTP/1.1 {status}\r\n"), head
        assert "Content-Type: application/vnd.docker.raw-stream" in head
        assert body.strip() == words
