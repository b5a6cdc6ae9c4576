"""Which devices a container may touch: rules, as version 1's lines and as version 2's BPF program. Pure.

A rule allows; what no rule allows is refused. Making nodes is always allowed (it gives no access).
Source: admin-guide/cgroup-v1/devices.rst, linux/bpf.h (bpf_cgroup_dev_ctx), moby oci/defaults.go.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from ketch_wire.faults import InvalidInput

_RULE = re.compile(r"([acb]) ([0-9]+|\*):([0-9]+|\*) ([rwm]{1,3})")
_KINDS = {"b": 1, "c": 2}  # BPF_DEVCG_DEV_*
_ACCESS = {"m": 1, "r": 2, "w": 4}  # BPF_DEVCG_ACC_*
_LARGEST = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class DeviceRule:
    """kind: `a`, `b` or `c`. major, minor: None for any. access: letters of `rwm`."""

    kind: str
    major: int | None
    minor: int | None
    access: str


def parse_rule(text: str) -> DeviceRule:
    """`c 42:* rmw`. Raises InvalidInput."""
    match = _RULE.fullmatch(text)
    if not match or any(part != "*" and int(part) > _LARGEST for part in (match[2], match[3])):
        raise InvalidInput(f"invalid device cgroup rule format: '{text[:100]}'")
    major, minor = (None if part == "*" else int(part) for part in (match[2], match[3]))
    return DeviceRule(match[1], major, minor, match[4])


DEFAULT_RULES: tuple[DeviceRule, ...] = tuple(
    parse_rule(text)
    for text in (
        "c *:* m", "b *:* m",
        "c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 1:8 rwm", "c 1:9 rwm",  # null zero full random urandom
        "c 5:0 rwm", "c 5:1 rwm", "c 5:2 rwm", "c 136:* rwm",  # tty console ptmx pts
    )
)  # fmt: skip


def lines(rules: Iterable[DeviceRule]) -> list[str]:
    """For version 1's devices.allow, one write each. Version 1 reads `a` as everything, whatever follows."""
    written: list[str] = []
    for rule in rules:
        major, minor = ("*" if part is None else str(part) for part in (rule.major, rule.minor))
        for kind in "bc" if rule.kind == "a" else rule.kind:
            written.append(f"{kind} {major}:{minor} {rule.access}")
    return written


_INSTRUCTION = struct.Struct("=BBhi")  # opcode, source register << 4 | destination, offset, immediate
_LOAD_WORD, _MOVE, _COPY, _AND, _SHIFT_RIGHT, _NOT_EQUAL, _EXIT = 0x61, 0xB7, 0xBF, 0x57, 0x77, 0x55, 0x95


def program(rules: Iterable[DeviceRule]) -> bytes:
    """BPF_PROG_TYPE_CGROUP_DEVICE: 1 when a rule allows, else 0.

    The context is {access_type: access << 16 | kind, major, minor}, 32 bits each.
    """
    code = [
        (_LOAD_WORD, 1 << 4 | 2, 0, 0), (_AND, 2, 0, 0xFFFF),  # r2: kind
        (_LOAD_WORD, 1 << 4 | 3, 0, 0), (_SHIFT_RIGHT, 3, 0, 16),  # r3: access
        (_LOAD_WORD, 1 << 4 | 4, 4, 0),  # r4: major
        (_LOAD_WORD, 1 << 4 | 5, 8, 0),  # r5: minor
    ]  # fmt: skip
    for rule in rules:
        code += _rule(rule)
    code += [(_MOVE, 0, 0, 0), (_EXIT, 0, 0, 0)]
    return b"".join(
        _INSTRUCTION.pack(op, registers, offset, _signed(value)) for op, registers, offset, value in code
    )


def _rule(rule: DeviceRule) -> list[tuple[int, int, int, int]]:
    """Falls through to the next rule unless it matches."""
    tail = [(_MOVE, 0, 0, 1), (_EXIT, 0, 0, 0)]
    for register, wanted in ((5, rule.minor), (4, rule.major)):
        if wanted is not None:
            # BPF_JMP compares 64 bits with a sign-extended immediate; a number that large names no device.
            tail = [(_NOT_EQUAL, register, len(tail), wanted), *tail]
    refused = 7 & ~sum(_ACCESS[letter] for letter in set(rule.access))
    if refused:
        tail = [(_COPY, 3 << 4 | 1, 0, 0), (_AND, 1, 0, refused), (_NOT_EQUAL, 1, len(tail), 0), *tail]
    if rule.kind != "a":
        tail = [(_NOT_EQUAL, 2, len(tail), _KINDS[rule.kind]), *tail]
    return tail


def _signed(value: int) -> int:
    return value - (1 << 32) if value >= 1 << 31 else value
