"""What is decided on a request is decided on the object that is carried out, whatever way it came; and who can reach the API."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import needs_root

from ketch_testing.machine import Machine

pytestmark = [needs_root, pytest.mark.root]

IMAGE: dict[str, Any] = {"Image": "busybox", "Cmd": ["true"]}
PADDING, TOO_MUCH = 3 << 20, 5 << 20


def sent(machine: Machine, head: str, body: bytes, *, pieces: int = 1 << 20) -> tuple[int, Any]:
    """(status, answer) of a create whose bytes are these; the connection is the request's own."""
    with socket.socket(socket.AF_UNIX) as wire:
        wire.settimeout(60)
        wire.connect(str(machine.socket))
        wire.sendall(
            f"POST /v1.43/containers/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n{head}\r\n".encode()
        )
        with contextlib.suppress(BrokenPipeError):  # it may be refused by its headers
            for at in range(0, len(body), pieces):
                wire.sendall(body[at : at + pieces])
        answer = http.client.HTTPResponse(wire)
        answer.begin()
        content = answer.read()
        return answer.status, json.loads(content) if content.startswith(b"{") else content.decode()


def chunked(body: bytes, size: int) -> bytes:
    """The body in chunks of `size`."""
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def _ways(document: dict[str, Any]) -> dict[str, tuple[str, bytes]]:
    """By name: the headers and the bytes of one and the same object."""
    plain = json.dumps(document).encode()
    inner = json.dumps(document["HostConfig"]).encode()
    start = json.dumps({key: value for key, value in document.items() if key != "HostConfig"}).encode()[:-1]
    space = b" " * PADDING

    def length(body: bytes) -> tuple[str, bytes]:
        return f"Content-Length: {len(body)}\r\n", body

    return {
        "plain": length(plain),
        "chunked": ("Transfer-Encoding: chunked\r\n", chunked(plain, 4096)),
        "byte by byte": ("Transfer-Encoding: chunked\r\n", chunked(plain, 1)),
        "padded before": length(space + plain),
        "padded after": length(plain + space),
        "padded inside": length(b"{" + space + plain[1:]),
        "padded by a key": length(plain[:-1] + b', "Unknown": "' + b"x" * PADDING + b'"}'),
        "padded and chunked": ("Transfer-Encoding: chunked\r\n", chunked(space + plain, 65536)),
        "harmless first": length(start + b', "HostConfig": {"Privileged": false}, "HostConfig": ' + inner + b"}"),
        "in capitals": length(start + b', "HOSTCONFIG": ' + inner + b"}"),
        "escaped": length(start + b', "\\u0048ostConfig": ' + inner + b"}"),
    }  # fmt: skip


WAYS = list(_ways({"HostConfig": {}}))


@pytest.fixture
def empty(machine: Machine) -> Iterator[Machine]:
    """A machine without containers; those of the test are removed."""
    yield machine
    for row in machine.json("GET", "/containers/json?all=1"):
        machine.request("DELETE", f"/containers/{row['Id']}?force=1&v=1")


@pytest.mark.parametrize("way", WAYS)
def test_cve_2024_41110_cve_2026_34040_one_decision_whatever_way_a_body_comes(
    empty: Machine, tmp_path: Path, way: str
) -> None:
    """What is forbidden is refused by the same words, what is granted is the same to the last field: nothing is dropped."""
    for host, words in (
        ({"Binds": [f"{tmp_path}:/proc/self"]}, "it is inside /proc"),
        ({"Mounts": [{"Type": "tmpfs", "Target": "/"}]}, "destination can't be '/'"),
        ({"CapAdd": ["ALL", "GOD"], "Privileged": True}, "GOD"),
    ):
        status, answer = sent(empty, *_ways({**IMAGE, "HostConfig": host})[way])
        assert status == 400 and words in answer["message"], answer
    assert empty.json("GET", "/containers/json?all=1") == []

    host = {
        "Privileged": True, "ReadonlyRootfs": True, "CapDrop": ["NET_RAW"], "Memory": 64 << 20,
        "Binds": [f"{tmp_path}:/b:ro"],
        "Mounts": [{"Type": "bind", "Source": str(tmp_path), "Target": "/m", "ReadOnly": True}],
    }  # fmt: skip
    shown = []
    for one in ("plain", way):
        status, answer = sent(empty, *_ways({**IMAGE, "HostConfig": host})[one])
        assert status == 201, answer
        found = empty.json("GET", f"/containers/{answer['Id']}/json")
        shown.append((found["HostConfig"], sorted(found["Mounts"], key=lambda mount: mount["Destination"])))
    assert shown[0] == shown[1]
    assert shown[0][0]["Privileged"] and [(mount["Destination"], mount["RW"]) for mount in shown[0][1]] == [
        ("/b", False), ("/m", False)
    ]  # fmt: skip


def test_cve_2024_41110_of_two_objects_the_last_is_decided_on_and_carried_out(empty: Machine) -> None:
    """What is shown is what it has: nothing of the object before it is in force unseen."""
    body = b'{"Image": "busybox", "Cmd": ["grep", "CapEff", "/proc/self/status"], "HostConfig": {"Privileged": %s}, "HostConfig": {"Privileged": %s}}'
    for pair, is_privileged in (((b"true", b"false"), False), ((b"false", b"true"), True)):
        whole = body % pair
        status, answer = sent(empty, f"Content-Length: {len(whole)}\r\n", whole)
        assert status == 201, answer
        made = answer["Id"]
        assert empty.json("GET", f"/containers/{made}/json")["HostConfig"]["Privileged"] is is_privileged
        empty.json("POST", f"/containers/{made}/start")
        empty.json("POST", f"/containers/{made}/wait")
        _, output = empty.request("GET", f"/containers/{made}/logs?stdout=1")
        assert (b"00000000a80425fb" in output) is not is_privileged


@pytest.mark.parametrize("is_chunked", [False, True])
def test_cve_2026_34040_a_body_that_is_too_large_is_refused_as_a_whole(
    empty: Machine, is_chunked: bool
) -> None:
    """Whatever the part of it that would have been read says; nobody decides on half of it."""
    plain = json.dumps({**IMAGE, "HostConfig": {"Privileged": True}}).encode()
    for body in (b" " * TOO_MUCH + plain, plain + b" " * TOO_MUCH, plain[:-1] + b" " * TOO_MUCH + b"}"):
        whole = chunked(body, 65536) if is_chunked else body
        head = "Transfer-Encoding: chunked\r\n" if is_chunked else f"Content-Length: {len(body)}\r\n"
        status, answer = sent(empty, head, whole)
        assert status == 400 and "request body is larger than 4194304 bytes" in answer["message"]
    assert empty.json("GET", "/containers/json?all=1") == []


def test_cve_2024_41110_a_body_that_is_said_to_be_empty(empty: Machine) -> None:
    """`Content-Length: 0` is no request at all; what follows is never read as its body."""
    body = json.dumps({**IMAGE, "HostConfig": {"Privileged": True}}).encode()
    for head in ("Content-Length: 0\r\n", "", "Transfer-Encoding: chunked\r\n"):
        follows = b"0\r\n\r\n" + body if "chunked" in head else body
        status, answer = sent(empty, head, follows)
        assert status == 400, answer
    for head in (
        f"Content-Length: {len(body)}\r\nTransfer-Encoding: chunked\r\n",
        f"Content-Length: 0\r\nContent-Length: {len(body)}\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: +0\r\n",
        "Transfer-Encoding: identity, chunked, x\r\n",
    ):
        status, _ = sent(empty, head, body)
        assert status == 400, head
    assert empty.json("GET", "/containers/json?all=1") == []


def test_cve_2026_6406_binds_mounts_and_volumes_from_are_one_list(empty: Machine, tmp_path: Path) -> None:
    """The same mount by each of its spellings is the same to who looks, and inside."""
    source = str(tmp_path)
    giver = empty.json(
        "POST", "/containers/create?name=giver", {**IMAGE, "HostConfig": {"Binds": [f"{source}:/m"]}}
    )
    spellings: list[dict[str, Any]] = [
        {"Binds": [f"{source}:/m:ro"]},
        {"Mounts": [{"Type": "bind", "Source": source, "Target": "/m", "ReadOnly": True}]},
        {"VolumesFrom": ["giver:ro"]},
        {"VolumesFrom": [f"{giver['Id']}:ro"]},
    ]
    script = "touch /m/made 2>&1; grep ' /m ' /proc/self/mountinfo | cut -d ' ' -f 4,5"
    seen = []
    for host in spellings:
        made = empty.json(
            "POST", "/containers/create", {**IMAGE, "Cmd": ["sh", "-c", script], "HostConfig": host}
        )["Id"]
        (mount,) = empty.json("GET", f"/containers/{made}/json")["Mounts"]
        empty.json("POST", f"/containers/{made}/start")
        empty.json("POST", f"/containers/{made}/wait")
        _, output = empty.request("GET", f"/containers/{made}/logs?stdout=1")
        assert b"Read-only file system" in output and b" /m" in output, (host, output)
        seen.append(
            ({key: mount[key] for key in ("Type", "Source", "Destination", "RW", "Propagation")}, output)
        )
    assert all(one == seen[0] for one in seen), seen
    assert seen[0][0]["RW"] is False and os.listdir(tmp_path) == []


@pytest.mark.parametrize("place", ["/proc", "/proc/sys", "/../proc", "/sys/../proc/self", "/", "relative"])
def test_cve_2026_6406_a_forbidden_place_is_one_by_every_spelling(
    empty: Machine, tmp_path: Path, place: str
) -> None:
    """Nobody gets by another field what one field refuses."""
    for body in (
        {"HostConfig": {"Binds": [f"{tmp_path}:{place}:ro"]}},
        {"HostConfig": {"Binds": [f"named:{place}"]}},
        {"HostConfig": {"Mounts": [{"Type": "volume", "Source": "named", "Target": place}]}},
        {"HostConfig": {"Mounts": [{"Type": "bind", "Source": str(tmp_path), "Target": place}]}},
        {"HostConfig": {"Mounts": [{"Type": "tmpfs", "Target": place}]}},
        {"HostConfig": {"Tmpfs": {place: ""}}},
        {"Volumes": {place: {}}},
    ):
        if (place in ("/proc", "/../proc") and str(tmp_path) in json.dumps(body)) or (
            place == "relative" and "Volumes" in body
        ):
            continue  # a procfs of the host may be bound there; an image's relative volume lies below `/`
        status, answer = empty.request("POST", "/containers/create", {**IMAGE, **body})
        assert status == 400, (body, answer)
    assert (
        empty.json("GET", "/volumes")["Volumes"] == [] and empty.json("GET", "/containers/json?all=1") == []
    )


@pytest.mark.parametrize(
    "word",
    [
        "up",
        "RSHARED",
        "rshared,exec",
        "rshared,rslave",
        " rshared",
        "rshared\n",
        "1",
        "shared\0",
        "unbindable",
        "../x",
    ],
)
def test_cve_2024_9407_propagation_is_one_of_six_words(empty: Machine, tmp_path: Path, word: str) -> None:
    """By either spelling; nothing else reaches a mount's options."""
    mount = {"Type": "bind", "Source": str(tmp_path), "Target": "/m", "BindOptions": {"Propagation": word}}
    for host in ({"Mounts": [mount]}, {"Binds": [f"{tmp_path}:/m:{word}"]}):
        status, answer = empty.request("POST", "/containers/create", {**IMAGE, "HostConfig": host})
        assert status == 400, answer
    assert empty.json("GET", "/containers/json?all=1") == []


def _listening(pid: int, inodes: set[str]) -> list[int]:
    """The TCP ports that listen in the network namespace of `pid`; with `inodes`, those by these sockets."""
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and (not inodes or words[9] in inodes):
                found.append(int(words[1].rpartition(":")[2], 16))
    return sorted(set(found))


def _family(pid: int) -> list[int]:
    """The process and everything below it."""
    found = [pid]
    for thread in Path(f"/proc/{pid}/task").iterdir():
        for child in (thread / "children").read_text().split():
            found += _family(int(child))
    return found


def _sockets(pids: list[int]) -> set[str]:
    """The inodes of their sockets."""
    links = [
        os.readlink(path)
        for pid in pids
        for path in Path(f"/proc/{pid}/fd").iterdir()
        if path.is_symlink() and os.path.lexists(path)
    ]
    return {link[8:-1] for link in links if link.startswith("socket:[")}


@pytest.mark.parametrize("network", ["bridge", "own", "none", "host"])
def test_cve_2025_9074_no_container_reaches_the_api(empty: Machine, network: str) -> None:
    """Nothing of ketchd listens on TCP on the host but DNS; from inside, no address that leads to the host answers as an API does.

    Asked for are Docker's ports and, in a container's own network, every port that listens there."""
    assert empty.process is not None
    identity = empty.json("GET", "/info")["ID"]
    if network == "own":
        empty.json("POST", "/networks/create", {"Name": "own"})
    try:
        made = empty.json(
            "POST",
            "/containers/create",
            {**IMAGE, "Cmd": ["sleep", "1000"], "HostConfig": {"NetworkMode": network}},
        )["Id"]
        empty.json("POST", f"/containers/{made}/start")
        shown = empty.json("GET", f"/containers/{made}/json")
        pid = shown["State"]["Pid"]
        gateways = [one["Gateway"] for one in shown["NetworkSettings"]["Networks"].values() if one["Gateway"]]
        assert bool(gateways) is (network in ("bridge", "own"))
        ours = _listening(empty.process.pid, _sockets(_family(empty.process.pid)))
        assert len(ours) == (network == "own")  # names of a network of one's own, also by TCP
        inside = [] if network == "host" else _listening(pid, set())
        addresses = ["127.0.0.1", "127.0.0.11", *gateways, *host_addresses()]
        script = (
            f"for a in {' '.join(dict.fromkeys(addresses))}; do for p in {' '.join(map(str, [2375, 2376, 2377, *ours, *inside]))}; do "
            "printf 'GET /info HTTP/1.0\\r\\n\\r\\n' | timeout 2 nc -w 1 $a $p 2>&1; done; done; ls /run/docker.sock /var/run/docker.sock; echo asked"
        )
        done = empty.run("ketch", "exec", made, "sh", "-c", script)
        assert done.stdout.endswith("asked\n")
        assert identity not in done.stdout and "Api-Version" not in done.stdout
    finally:
        for row in empty.json("GET", "/containers/json?all=1"):
            empty.request("DELETE", f"/containers/{row['Id']}?force=1&v=1")
        if network == "own":
            empty.json("DELETE", "/networks/own")


def host_addresses() -> list[str]:
    """Addresses of this host by which a container may try."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent
            return [str(probe.getsockname()[0])]
        except OSError:
            return []
