"""Device rules: their text, version 1's lines, and version 2's program run by a small interpreter of eBPF."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ketch_wire.faults import InvalidInput
from ketchd.kernel.cgroups import Cgroups, device_rules
from ketchd.kernel.devicepolicy import DEFAULT_RULES, DeviceRule, lines, parse_rule, program

ACCESS = {"m": 1, "r": 2, "w": 4}


def allowed(code: bytes, kind: str, major: int, minor: int, access: str) -> bool:
    """Run the program on one question. Raises AssertionError on what it should not contain."""
    context = struct.pack(
        "=III", sum(ACCESS[one] for one in access) << 16 | {"b": 1, "c": 2}[kind], major, minor
    )
    registers = [0] * 11
    at = 0
    while True:
        opcode, pair, offset, value = struct.unpack_from("=BBhi", code, at * 8)
        target, source = pair & 15, pair >> 4
        at += 1
        if opcode == 0x61:
            registers[target] = struct.unpack_from("=I", context, offset)[0]
        elif opcode == 0xB7:
            registers[target] = value
        elif opcode == 0xBF:
            registers[target] = registers[source]
        elif opcode == 0x57:
            registers[target] &= value & ((1 << 64) - 1)
        elif opcode == 0x77:
            registers[target] >>= value
        elif opcode == 0x55:
            at += offset if registers[target] != value else 0
        else:
            assert opcode == 0x95
            return registers[0] == 1


@pytest.mark.parametrize(
    ("kind", "major", "minor", "access", "expected"),
    [
        ("c", 1, 3, "rw", True), ("c", 136, 9, "rw", True), ("c", 5, 2, "r", True), ("b", 8, 0, "m", True),
        ("b", 8, 0, "r", False), ("c", 1, 1, "r", False), ("c", 10, 229, "rw", False), ("b", 1, 3, "r", False),
        ("c", 1, 11, "rm", False),
    ],
)  # fmt: skip
def test_defaults(kind: str, major: int, minor: int, access: str, expected: bool) -> None:
    """Nodes may be made of everything; used are only the harmless ones."""
    assert allowed(program(DEFAULT_RULES), kind, major, minor, access) is expected


NUMBERS = st.none() | st.integers(0, 3)
RULES = st.builds(
    DeviceRule, st.sampled_from("abc"), NUMBERS, NUMBERS,
    st.text("rwm", min_size=1, max_size=3).filter(lambda text: len(set(text)) == len(text)),
)  # fmt: skip


@given(
    st.lists(RULES, max_size=6), st.sampled_from("bc"), st.integers(0, 3), st.integers(0, 3),
    st.sets(st.sampled_from("rwm"), min_size=1),
)  # fmt: skip
def test_program_decides_as_the_rules_say(
    rules: list[DeviceRule], kind: str, major: int, minor: int, access: set[str]
) -> None:
    """A question is allowed when one rule covers all of it."""
    covered = any(
        rule.kind in ("a", kind) and rule.major in (None, major) and rule.minor in (None, minor) and access <= set(rule.access)
        for rule in rules
    )  # fmt: skip
    assert allowed(program(rules), kind, major, minor, "".join(access)) is covered


def test_lines() -> None:
    """Version 1 reads `a` as everything, so it is never written."""
    assert lines([parse_rule("a 7:* rw"), parse_rule("c 1:3 r")]) == ["b 7:* rw", "c 7:* rw", "c 1:3 r"]


@pytest.mark.parametrize(
    "text", ["", "c 1:3", "d 1:3 r", "c 1:3 rwmx", "c x:3 r", "c 1:3 r ", "c 99999999999:1 r", "c 1:3 r\0"]
)
def test_bad_rules(text: str) -> None:
    """dockerd's words."""
    with pytest.raises(InvalidInput, match="invalid device cgroup rule format"):
        parse_rule(text)


def test_rules_of_a_host_config() -> None:
    """Devices by their numbers, rules as they are, everything when privileged."""
    rules = device_rules(
        {
            "Devices": [{"PathOnHost": "/dev/full", "CgroupPermissions": "r"}],
            "DeviceCgroupRules": ["b 7:* rmw"],
        }
    )
    assert rules is not None
    assert rules[len(DEFAULT_RULES) :] == [DeviceRule("c", 1, 7, "r"), DeviceRule("b", 7, None, "rmw")]
    assert device_rules({"Privileged": True}) is None
    with pytest.raises(InvalidInput):
        device_rules({"Devices": [{"PathOnHost": "/dev/full", "CgroupPermissions": "x"}]})


def test_host_without_cgroups() -> None:
    """Nothing is planned, nothing fails; the limits asked for are said to be lost; pausing cannot be pretended."""
    bare = Cgroups(1, None)
    plan = bare.plan("id", "/docker", {"Memory": 1 << 30})
    assert plan.join == plan.writes == ()
    asked = {"Memory": 1 << 30, "CpuShares": 0}
    assert len(bare.discard(asked)) == 1
    assert asked == {"Memory": 0, "MemorySwap": -1, "CpuShares": 0}
    bare.remove("id")
    assert bare.usage("id") is None and bare.pids("id") == []
    with pytest.raises(InvalidInput, match="NanoCPUs can not be set"):
        bare.check({"NanoCpus": 10**9})


def test_parent_cannot_leave_the_base() -> None:
    """CgroupParent comes from a client."""
    assert Cgroups(1, None).place("id", "../../etc/../x") == "x/id"
    assert Cgroups(1, None).place("id", "") == "docker/id"
    assert Cgroups(1, None).place("id", "/../..") == "docker/id"


def test_cpusets_that_the_host_has_not() -> None:
    """Refused at create, as dockerd does."""
    with pytest.raises(InvalidInput, match="Requested CPUs are not available - requested 4000, available: "):
        Cgroups(1, None).check({"CpusetCpus": "4000"})
    with pytest.raises(InvalidInput, match="Invalid value 1-x for cpuset cpus"):
        Cgroups(1, None).check({"CpusetCpus": "1-x"})
