"""The default policy and profiles in Docker's format, run by an interpreter of BPF."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ketch_testing.bpfmachine import run
from ketch_wire.faults import InvalidInput
from ketchd.sandbox import bpf
from ketchd.sandbox.bpf import ALLOW, ERRNO, KILL_PROCESS, NO_SUCH_CALL, Check, Condition, Filter, assemble
from ketchd.sandbox.defaults import ALL_CAPABILITIES, DEFAULT_CAPABILITIES
from ketchd.sandbox.policy import WITH_CAPABILITY
from ketchd.sandbox.seccomp import default_calls, default_program, from_profile
from ketchd.sandbox.syscalls import AUDIT_ARCH, numbers

MOBYS = Path(__file__).parents[2] / "golden/seccomp/moby-default.json"
REFUSED = ERRNO | errno.EPERM
CLONE_NEWUSER, CLONE_VM = 0x10000000, 0x100


def verdict(program: bytes, name: str, *arguments: int, architecture: str = "x86_64") -> int:
    number = numbers(architecture)[name]
    return run(program, number=number, architecture=AUDIT_ARCH[architecture], arguments=arguments)[0]


DEFAULT = default_program(DEFAULT_CAPABILITIES, "x86_64")


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("read", (), ALLOW), ("execve", (), ALLOW), ("chroot", (), ALLOW), ("ptrace", (), ALLOW),
        ("mount", (), REFUSED), ("unshare", (), REFUSED), ("setns", (), REFUSED), ("bpf", (), REFUSED),
        ("keyctl", (), REFUSED), ("add_key", (), REFUSED), ("kexec_load", (), REFUSED), ("userfaultfd", (), REFUSED),
        ("io_uring_setup", (), REFUSED), ("open_by_handle_at", (), REFUSED), ("swapon", (), REFUSED),
        ("clone3", (), NO_SUCH_CALL), ("clone", (CLONE_VM,), ALLOW), ("clone", (CLONE_NEWUSER,), REFUSED),
        ("clone", (CLONE_VM | CLONE_NEWUSER,), REFUSED), ("socket", (2,), ALLOW), ("socket", (37,), ALLOW),
        ("socket", (38,), REFUSED), ("socket", (39,), ALLOW), ("socket", (40,), REFUSED), ("socket", (41,), ALLOW),
        ("personality", (0,), ALLOW), ("personality", (0xFFFFFFFF,), ALLOW), ("personality", (0x0400000,), REFUSED),
        ("personality", (1 << 32,), REFUSED),
    ],
)  # fmt: skip
def test_default_policy(name: str, arguments: tuple[int, ...], expected: int) -> None:
    """What a container without further capabilities may ask."""
    assert verdict(DEFAULT, name, *arguments) == expected


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("capabilities", [(), DEFAULT_CAPABILITIES, ALL_CAPABILITIES])
def test_every_number_of_every_architecture(machine: str, capabilities: tuple[str, ...]) -> None:
    """The tree decides each number as the policy's table does, in few steps."""
    program = default_program(capabilities, machine)
    calls = default_calls(frozenset(WITH_CAPABILITY).intersection(capabilities), machine)
    for architecture in {"x86_64": ("x86_64", "i386"), "aarch64": ("aarch64", "arm")}[machine]:
        table = numbers(architecture)
        newest = max(number for name, number in table.items() if name in calls and number < 0xF0000)
        names = {number: name for name, number in table.items() if name in calls}
        for number in range(600):
            value, steps = run(program, number=number, architecture=AUDIT_ARCH[architecture])
            assert steps < 30
            checks = calls.get(names.get(number, ""), ())
            if not checks:
                assert value == (NO_SUCH_CALL if number > newest else REFUSED)
            elif not checks[0].conditions:
                assert value == checks[0].action


@pytest.mark.parametrize("capability", sorted(WITH_CAPABILITY))
def test_capability_opens_its_calls(capability: str) -> None:
    """Each capability's calls are allowed with it."""
    program = default_program([capability], "x86_64")
    for name in WITH_CAPABILITY[capability].split():
        if name in numbers("x86_64"):
            assert verdict(program, name) == ALLOW


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("capabilities", [(), DEFAULT_CAPABILITIES, ALL_CAPABILITIES])
def test_cve_2022_0847_the_default_is_no_wider_than_mobys(
    machine: str, capabilities: tuple[str, ...]
) -> None:
    """The kernel class: each call of each architecture is decided as by moby's default profile, or stricter.

    Source: moby profiles/seccomp/default.json, unchanged (golden/seccomp)."""
    ours = default_program(capabilities, machine)
    theirs = from_profile(str(MOBYS), capabilities, machine, "6.1.0")
    wider = [
        (architecture, name)
        for architecture in {"x86_64": ("x86_64", "i386"), "aarch64": ("aarch64", "arm")}[machine]
        for name, number in numbers(architecture).items()
        if run(ours, number=number, architecture=AUDIT_ARCH[architecture])[0] == ALLOW
        and run(theirs, number=number, architecture=AUDIT_ARCH[architecture])[0] != ALLOW
    ]
    assert wider == []


def test_cve_2022_0847_what_the_kernels_holes_need_is_refused() -> None:
    """io_uring, userfaultfd, bpf, keyrings, new user namespaces: whether or not moby's profile has them."""
    for name in (
        "io_uring_setup", "io_uring_enter", "io_uring_register", "userfaultfd", "bpf", "add_key", "keyctl", "request_key",
        "perf_event_open", "unshare", "setns", "mount", "fsopen", "fsconfig", "move_mount", "open_tree", "pivot_root",
    ):  # fmt: skip
        assert verdict(DEFAULT, name) == REFUSED, name
    assert verdict(DEFAULT, "clone", CLONE_NEWUSER) == REFUSED and verdict(DEFAULT, "clone3") == NO_SUCH_CALL


def test_same_capabilities_same_program() -> None:
    """Compiled once for a set, in whatever order it is named."""
    assert default_program(["CAP_SYSLOG", "CAP_BPF"]) is default_program(
        ["CAP_BPF", "CAP_SYSLOG", "CAP_CHOWN"]
    )


def test_x32_and_unknown_calls_do_not_exist() -> None:
    """x32 shares the architecture value; a newer kernel's call must make the C library fall back."""
    for number in (0x40000000, 0x40000000 + 520, 0xFFFFFFFF, 5000):
        assert run(DEFAULT, number=number, architecture=AUDIT_ARCH["x86_64"])[0] == NO_SUCH_CALL


def test_foreign_architecture_is_killed() -> None:
    """Numbers of an architecture without a table mean nothing to us."""
    assert run(DEFAULT, number=0, architecture=0x80000016)[0] == KILL_PROCESS
    assert run(DEFAULT, number=numbers("i386")["read"], architecture=AUDIT_ARCH["i386"])[0] == ALLOW
    assert run(DEFAULT, number=numbers("i386")["mount"], architecture=AUDIT_ARCH["i386"])[0] == REFUSED


HOLDS = {
    "EQ": lambda a, v, _: a == v, "NE": lambda a, v, _: a != v, "GT": lambda a, v, _: a > v, "GE": lambda a, v, _: a >= v,
    "LT": lambda a, v, _: a < v, "LE": lambda a, v, _: a <= v, "MASKED_EQ": lambda a, v, m: a & v == m,
}  # fmt: skip
WORDS = st.sampled_from([0, 1, 0xFFFFFFFF, 1 << 32, (1 << 32) + 1, (1 << 64) - 1, 7]) | st.integers(
    0, (1 << 64) - 1
)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from(sorted(HOLDS)), WORDS, WORDS), min_size=1, max_size=4),
    st.lists(WORDS, min_size=6, max_size=6),
)  # fmt: skip
def test_comparisons_are_64_bit(conditions: list[tuple[int, str, int, int]], arguments: list[int]) -> None:
    """Any conditions on any arguments decide as arithmetic does."""
    check = Check(ERRNO | 7, tuple(Condition(*one) for one in conditions))
    program = assemble(Filter(ALLOW, {"read": (check,)}, ("x86_64",)))
    holds = all(HOLDS[name](arguments[index], value, masked) for index, name, value, masked in conditions)
    assert verdict(program, "read", *arguments) == (ERRNO | 7 if holds else ALLOW)


def profile(*entries: dict[str, Any], **more: Any) -> str:
    return json.dumps({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": list(entries), **more})


ALLOW_ALL = "SCMP_ACT_ALLOW"


def test_profile_includes_and_excludes() -> None:
    """Entries count by capability, architecture and kernel."""
    text = profile(
        {"names": ["mount"], "action": ALLOW_ALL, "includes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["umount2"], "action": ALLOW_ALL, "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["bpf"], "action": ALLOW_ALL, "includes": {"minKernel": "5.0"}},
        {"names": ["acct"], "action": ALLOW_ALL, "includes": {"arches": ["arm64"]}},
        {"name": "vhangup", "action": ALLOW_ALL},
    )
    without = from_profile(text, [], "x86_64", "4.19.0-amd64")
    having = from_profile(text, ["CAP_SYS_ADMIN"], "x86_64", "6.1.0")
    assert [verdict(without, name) for name in ("mount", "umount2", "vhangup", "acct")] == [
        REFUSED, ALLOW, ALLOW, REFUSED,
    ]  # fmt: skip
    assert verdict(without, "bpf") == NO_SUCH_CALL  # above every rule's number
    assert [verdict(having, name) for name in ("mount", "umount2", "bpf")] == [ALLOW, REFUSED, ALLOW]


def test_profile_actions_and_errno() -> None:
    """errnoRet, defaultErrnoRet, and a default of ALLOW, where nothing new is refused."""
    text = profile({"names": ["mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}, defaultErrnoRet=22)
    program = from_profile(text, [], "x86_64", "6.1")
    assert (verdict(program, "mount"), verdict(program, "chmod")) == (NO_SUCH_CALL, ERRNO | 22)
    denied = from_profile(
        json.dumps({"defaultAction": ALLOW_ALL, "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_KILL_PROCESS"}]}),
        [], "x86_64", "6.1",
    )  # fmt: skip
    assert (verdict(denied, "mkdir"), verdict(denied, "bpf")) == (KILL_PROCESS, ALLOW)
    assert run(denied, number=9999, architecture=AUDIT_ARCH["x86_64"])[0] == ALLOW


def test_conditions_on_one_argument_are_alternatives() -> None:
    """As runc reads them, for libseccomp cannot join them."""
    arguments = [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"} for value in (3, 5)]
    program = from_profile(
        profile({"names": ["socket"], "action": ALLOW_ALL, "args": arguments}), [], "x86_64", "6.1"
    )  # fmt: skip
    assert [verdict(program, "socket", domain) for domain in (3, 4, 5)] == [ALLOW, REFUSED, ALLOW]


def test_sub_architectures_only_when_mapped() -> None:
    """32-bit programs run only under a profile that says so."""
    entry = {"names": ["read"], "action": ALLOW_ALL}
    plain = from_profile(profile(entry), [], "x86_64", "6.1")
    mapped = from_profile(
        profile(entry, archMap=[{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}]), [], "x86_64", "6.1",
    )  # fmt: skip
    number = numbers("i386")["read"]
    assert run(plain, number=number, architecture=AUDIT_ARCH["i386"])[0] == KILL_PROCESS
    assert run(mapped, number=number, architecture=AUDIT_ARCH["i386"])[0] == ALLOW


@pytest.mark.parametrize(
    "text",
    [
        "{", "{]", '{"defaultAction": "SCMP_ACT_NOTIFY"}', '{"syscalls": []}', "/nowhere/profile.json", "a\0b",
        '{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"action": "SCMP_ACT_ALLOW"}]}',
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": {"a": 1}}',
        '{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 70000}',
        profile({"names": ["read"], "action": ALLOW_ALL, "args": [{"index": 9, "value": 0, "op": "SCMP_CMP_EQ"}]}),
        profile({"names": ["read"], "action": ALLOW_ALL, "args": [{"index": 0, "value": -1, "op": "SCMP_CMP_EQ"}]}),
        profile({"names": ["read"], "action": ALLOW_ALL, "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_X"}]}),
        profile({"names": ["read"], "action": ALLOW_ALL, "includes": {"minKernel": "new"}}),
        profile(architectures=["SCMP_ARCH_X86_64"], archMap=[{"architecture": "SCMP_ARCH_X86_64"}]),
    ],
)  # fmt: skip
def test_bad_profiles_are_refused(text: str) -> None:
    """A typed fault, nothing else."""
    with pytest.raises(InvalidInput):
        from_profile(text, [], "x86_64", "6.1")


def test_empty_profile_filters_nothing() -> None:
    """`{}` is Docker's way of saying no filter."""
    assert from_profile("{}", []) == b""


def test_too_long_a_filter_is_refused() -> None:
    """The kernel takes 4096 instructions."""
    many = [{"index": index % 6, "value": index, "op": "SCMP_CMP_EQ"} for index in range(1200)]
    with pytest.raises(InvalidInput, match="instructions"):
        from_profile(profile({"names": ["read"], "action": ALLOW_ALL, "args": many}), [], "x86_64", "6.1")


@given(st.text(max_size=60) | st.recursive(st.none() | st.integers() | st.text(max_size=8), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["defaultAction", "syscalls", "names", "action", "args", "index", "value", "op", "archMap", "includes", "caps", "architecture"]), inner, max_size=5), max_leaves=20).map(json.dumps))  # fmt: skip
def test_any_text_is_a_program_or_a_fault(text: str) -> None:
    """The parser has no third answer."""
    try:
        assert (
            len(from_profile("{" + text if not text.startswith("{") else text, [], "x86_64", "6.1")) % 8 == 0
        )
    except InvalidInput:
        pass


def test_far_jumps() -> None:
    """A tree too wide for eight-bit jumps still reaches every leaf."""
    calls = {
        name: (Check(ALLOW, (Condition(0, "EQ", number),)), Check(ERRNO | (number & 0xFFF)))
        for name, number in numbers("x86_64").items()
    }
    program = bpf.assemble(Filter(REFUSED, calls, ("x86_64",)))
    for name, number in numbers("x86_64").items():
        assert verdict(program, name, number) == ALLOW
        assert verdict(program, name, number + 1) == ERRNO | (number & 0xFFF)
