"""The container list's filters: what each chooses, and dockerd's words for a value that cannot be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from conftest import needs_root

from ketch_testing.machine import Machine, free_port

pytestmark = [needs_root, pytest.mark.root]


@pytest.fixture(scope="module")
def listed(machine: Machine) -> Iterator[tuple[Machine, int]]:
    """`runs` with a published and an exposed port, `made` with an exposed one; the port on the host."""
    port = free_port()
    made = []
    for name, config in (
        ("runs", {"ExposedPorts": {"80/tcp": {}, "53/udp": {}}, "HostConfig": {"PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(port)}]}}}),
        ("made", {"ExposedPorts": {"90/tcp": {}}}),
    ):  # fmt: skip
        body = {"Image": "busybox", "Cmd": ["sleep", "3600"], **config}
        made.append(machine.json("POST", f"/containers/create?name={name}", body)["Id"])
    try:
        machine.json("POST", "/containers/runs/start")
        yield machine, port
    finally:
        for one in made:
            machine.request("DELETE", f"/containers/{one}?force=1")


def chosen(machine: Machine, key: str, value: str) -> tuple[int, object]:
    """Status and names, or the message."""
    status, answer = machine.request(
        "GET", f"/containers/json?all=1&filters={quote(json.dumps({key: [value]}))}"
    )
    told = json.loads(answer)
    return status, told["message"] if status != 200 else sorted(row["Names"][0][1:] for row in told)


@pytest.mark.parametrize(
    ("key", "value", "names"),
    [
        ("publish", "PORT", ["runs"]),
        ("publish", "PORT/tcp", ["runs"]),
        ("publish", "PORT/udp", []),
        ("publish", "1-65535", ["runs"]),
        ("expose", "80", ["runs"]),
        ("expose", "70-80/tcp", ["runs"]),
        ("expose", "50-60/udp", ["runs"]),
        ("expose", "90", []),  # its ports are shown, and found, while it runs
        ("name", "^/?runs$", ["runs"]),
        ("name", "[", []),
        ("is-task", "false", ["made", "runs"]),
        ("health", "none", ["made", "runs"]),
        ("exited", "0", []),
    ],
)
def test_filter(listed: tuple[Machine, int], key: str, value: str, names: list[str]) -> None:
    machine, port = listed
    assert chosen(machine, key, value.replace("PORT", str(port))) == (200, names)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("exited", "x", 'strconv.Atoi: parsing "x": invalid syntax'),
        ("health", "fine", "unrecognised filter value for health: fine"),
        ("is-task", "perhaps", "invalid filter 'is-task=[perhaps]'"),
        ("publish", "http", 'error while looking up for publish http: strconv.ParseUint: parsing "http": invalid syntax'),
        ("expose", "1:2", "filter for 'expose' should not contain ':': 1:2"),
        ("expose", "9-1", "error while looking up for expose 9-1: invalid range specified for port: 9-1"),
        ("since", "nobody", "No such container: nobody"),
        ("colour", "red", "invalid filter 'colour'"),
    ],
)  # fmt: skip
def test_refused(listed: tuple[Machine, int], key: str, value: str, words: str) -> None:
    machine, _ = listed
    status, said = chosen(machine, key, value)
    assert (status, said) == (404 if key == "since" else 400, words)


def test_prune_until_what_is_no_time(listed: tuple[Machine, int]) -> None:
    machine, _ = listed
    status, answer = machine.request(
        "POST", "/containers/prune?filters=" + quote(json.dumps({"until": ['"soon']}))
    )
    assert (status, json.loads(answer)["message"]) == (
        400,
        'failed to parse value as time or duration: "\\"soon"',
    )


def test_ancestor_is_also_what_the_image_was_built_on(listed: tuple[Machine, int]) -> None:
    """Through two commits; and neither of the base nor of a sister's."""
    machine, _ = listed
    made: list[str] = []
    try:
        for step, image in enumerate(("busybox", "grown:1", "grown:2")):
            machine.json("POST", f"/containers/create?name=of{step}", {"Image": image})
            made.append(f"containers/of{step}")
            if step < 2:
                machine.json("POST", f"/commit?container=of{step}&repo=grown&tag={step + 1}&comment={step}")
                made.append(f"images/grown:{step + 1}")
        found = {name: chosen(machine, "ancestor", name)[1] for name in ("busybox", "grown:1", "grown:2")}
        assert found == {
            "busybox": ["made", "of0", "of1", "of2", "runs"],
            "grown:1": ["of1", "of2"],
            "grown:2": ["of2"],
        }
    finally:
        for one in sorted(made):
            machine.request("DELETE", f"/{one}?force=1")
