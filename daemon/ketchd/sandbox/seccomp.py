"""Seccomp filters: our default policy, and profiles in Docker's JSON format, compiled to BPF. Pure but for reading a profile's file.

Source: Docker Engine "Seccomp security profiles"; where several rules name one call, the first whose arguments match decides.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from ketch_wire.faults import InvalidInput
from ketchd.sandbox import bpf, policy
from ketchd.sandbox.bpf import Check, Condition, Filter
from ketchd.sandbox.syscalls import GO_NAMES, SECCOMP_NAMES

_COMPAT = {"x86_64": ("x86_64", "i386"), "aarch64": ("aarch64", "arm")}
_ACTIONS = {
    "SCMP_ACT_KILL": bpf.KILL_THREAD, "SCMP_ACT_KILL_THREAD": bpf.KILL_THREAD, "SCMP_ACT_KILL_PROCESS": bpf.KILL_PROCESS,
    "SCMP_ACT_TRAP": bpf.TRAP, "SCMP_ACT_ERRNO": bpf.ERRNO, "SCMP_ACT_TRACE": bpf.TRACE, "SCMP_ACT_LOG": bpf.LOG,
    "SCMP_ACT_ALLOW": bpf.ALLOW,
}  # fmt: skip
_OPERATORS = frozenset(("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"))
_PROFILE_LIMIT = 4 * 1024 * 1024
_RELEVANT = frozenset(policy.WITH_CAPABILITY)


def default_program(capabilities: Iterable[str], machine: str = "") -> bytes:
    """Our policy for a process with `capabilities` (`CAP_X`). Empty where we have no table for the machine."""
    return _default_program(_RELEVANT.intersection(capabilities), machine or os.uname().machine)


@lru_cache(maxsize=256)
def _default_program(capabilities: frozenset[str], machine: str) -> bytes:
    architectures = _COMPAT.get(machine)
    if architectures is None:
        return b""
    return bpf.assemble(Filter(bpf.ERRNO | 1, default_calls(capabilities, machine), architectures))


def default_calls(capabilities: frozenset[str], machine: str) -> dict[str, tuple[Check, ...]]:
    """The policy as checks by call."""
    allow: tuple[Check, ...] = (Check(bpf.ALLOW),)
    calls = {name: allow for names in policy.ALWAYS.values() for name in names.split()}
    calls |= {name: allow for name in policy.SINCE_4_8.split()}
    for architecture in _COMPAT[machine]:
        calls |= {name: allow for name in policy.WITH_ARCHITECTURE[architecture].split()}
    calls["socket"] = (
        *(Check(bpf.ERRNO | 1, (Condition(0, "EQ", family),)) for family in policy.REFUSED_SOCKET_FAMILIES),
        *allow,
    )
    calls["personality"] = tuple(
        Check(bpf.ALLOW, (Condition(0, "EQ", value),)) for value in policy.PERSONALITIES
    )
    # clone3 hides its flags in memory, where a filter cannot look: ENOSYS makes the C library use clone.
    calls["clone"] = (Check(bpf.ALLOW, (Condition(0, "MASKED_EQ", policy.NAMESPACE_FLAGS, 0),)),)
    calls["clone3"] = (Check(bpf.NO_SUCH_CALL),)
    for capability in capabilities:
        calls |= {name: allow for name in policy.WITH_CAPABILITY[capability].split()}
    return calls


def program(choice: str, capabilities: Iterable[str]) -> bytes:
    """The filter that `choice` names: `unconfined` (none at all), `builtin`, `default` or "" (ours), else a profile. Raises InvalidInput."""
    if choice == "unconfined":
        return b""
    if choice in ("default", "builtin", ""):
        return default_program(capabilities)
    return from_profile(choice, capabilities)


def from_profile(profile: str, capabilities: Iterable[str], machine: str = "", kernel: str = "") -> bytes:
    """A profile (JSON text, as the docker CLI sends it, or the path of a file) for a process with `capabilities`.

    Raises InvalidInput on a profile that cannot be read, understood or assembled.
    """
    host = os.uname()
    text = profile
    if not profile.lstrip().startswith("{"):
        try:
            with open(profile, encoding="utf-8") as file:
                text = file.read(_PROFILE_LIMIT)
        except (OSError, UnicodeDecodeError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise InvalidInput(
                f"opening seccomp profile ({profile[:200]}) failed: open {profile[:200]}: {reason}"
            ) from error
    return _from_text(text, frozenset(capabilities), machine or host.machine, kernel or host.release)


@lru_cache(maxsize=64)
def _from_text(text: str, capabilities: frozenset[str], machine: str, kernel: str) -> bytes:
    try:
        profile = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"decoding seccomp profile failed: {error}") from error
    if not isinstance(profile, dict):
        raise InvalidInput("decoding seccomp profile failed: it is no JSON object")
    try:
        wanted = read_profile(profile, capabilities, machine, kernel)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InvalidInput(f"decoding seccomp profile failed: {error}") from error
    if wanted is None:
        return b""
    try:
        return bpf.assemble(wanted)
    except ValueError as error:
        raise InvalidInput(f"seccomp profile: {error}") from error


def read_profile(
    profile: Mapping[str, Any], capabilities: frozenset[str], machine: str, kernel: str
) -> Filter | None:
    """A decoded profile as a Filter; None when it filters nothing. Raises InvalidInput, KeyError, TypeError, ValueError."""
    if not profile:
        return None
    if profile.get("architectures") and profile.get("archMap"):
        raise InvalidInput(
            "both 'architectures' and 'archMap' are specified in the seccomp profile, use either 'architectures' or 'archMap'"
        )
    if machine not in _COMPAT:
        raise InvalidInput(f"seccomp is not supported on {machine}")
    default = _action(profile["defaultAction"], profile.get("defaultErrnoRet"))
    go_name = GO_NAMES[machine]
    calls: dict[str, tuple[Check, ...]] = {}
    for entry in profile.get("syscalls") or []:
        if entry.get("name") and entry.get("names"):
            raise InvalidInput(
                "both 'name' and 'names' are specified in the seccomp profile, use either 'name' or 'names'"
            )
        if not _applies(entry, capabilities, go_name, kernel):
            continue
        action = _action(entry["action"], entry.get("errnoRet"))
        if action == default:
            continue
        checks = _checks(action, entry.get("args") or [])
        for name in entry.get("names") or [entry["name"]]:
            if not isinstance(name, str):
                raise InvalidInput("seccomp profile: a syscall's name is no string")
            calls[name] = (*calls.get(name, ()), *checks)
    return Filter(default, calls, _architectures(profile, machine))


def _architectures(profile: Mapping[str, Any], machine: str) -> tuple[str, ...]:
    """The native one, and those of the profile that we know and that this kernel runs as well."""
    named: list[str] = list(profile.get("architectures") or [])
    for entry in profile.get("archMap") or []:
        if SECCOMP_NAMES.get(entry["architecture"]) == machine:
            named += entry.get("subArchitectures") or []
    known = {SECCOMP_NAMES.get(name) for name in named}
    return (machine, *(one for one in _COMPAT[machine][1:] if one in known))


def _applies(entry: Mapping[str, Any], capabilities: frozenset[str], go_name: str, kernel: str) -> bool:
    includes, excludes = entry.get("includes") or {}, entry.get("excludes") or {}
    if includes.get("arches") and go_name not in includes["arches"]:
        return False
    if not capabilities.issuperset(includes.get("caps") or ()):
        return False
    if includes.get("minKernel") and _version(kernel) < _version(includes["minKernel"]):
        return False
    if go_name in (excludes.get("arches") or ()):
        return False
    if capabilities.intersection(excludes.get("caps") or ()):
        return False
    return not (excludes.get("minKernel") and _version(kernel) >= _version(excludes["minKernel"]))


def _version(text: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", text)
    if not match:
        raise InvalidInput(f"seccomp profile: invalid kernel version: {text[:40]!r}")
    return int(match[1]), int(match[2])


def _action(name: str, errno: int | None) -> int:
    if name not in _ACTIONS:
        raise InvalidInput(f"seccomp profile: action {name!s:.60} is not supported")
    action = _ACTIONS[name]
    if action in (bpf.ERRNO, bpf.TRACE):
        value = 1 if errno is None else errno
        if not isinstance(value, int) or not 0 <= value < 4096:
            raise InvalidInput(f"seccomp profile: errnoRet {value!s:.40} is out of range")
        return action | value
    return action


def _checks(action: int, arguments: list[Mapping[str, Any]]) -> tuple[Check, ...]:
    conditions = tuple(_condition(argument) for argument in arguments)
    if len({condition.index for condition in conditions}) < len(conditions):
        # libseccomp has no AND over one argument; runc takes such conditions as alternatives.
        return tuple(Check(action, (condition,)) for condition in conditions)
    return (Check(action, conditions),)


def _condition(argument: Mapping[str, Any]) -> Condition:
    index, value, second = int(argument["index"]), int(argument["value"]), int(argument.get("valueTwo") or 0)
    operator = str(argument["op"]).removeprefix("SCMP_CMP_")
    if not 0 <= index < 6:
        raise InvalidInput(f"seccomp profile: argument index {index} is out of range")
    if operator not in _OPERATORS:
        raise InvalidInput(f"seccomp profile: operator {operator[:40]} is not supported")
    if not 0 <= value < 1 << 64 or not 0 <= second < 1 << 64:
        raise InvalidInput("seccomp profile: an argument's value is no 64-bit unsigned number")
    return Condition(index, operator, value, second)
