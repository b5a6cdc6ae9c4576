"""The compiled filter on a real process."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import socket
from collections.abc import Callable

import pytest

from ketchd.kernel.seccomp import install
from ketchd.sandbox.defaults import ALL_CAPABILITIES, DEFAULT_CAPABILITIES
from ketchd.sandbox.seccomp import default_program, from_profile
from ketchd.sandbox.syscalls import numbers

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="root is needed to filter without no_new_privs"),
]
NUMBERS = numbers(os.uname().machine)


def filtered(program: bytes, job: Callable[[], int]) -> int:
    """What `job` returned in a forked child under `program`; minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            install(program)
            os._exit(job())
        except BaseException:
            os._exit(99)
    _, status = os.waitpid(child, 0)
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def errno_of(name: str, *arguments: int) -> Callable[[], int]:
    """The errno of a raw call, 0 for success."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call() -> int:
        result = libc.syscall(ctypes.c_long(NUMBERS[name]), *(ctypes.c_long(one) for one in arguments))
        return 0 if result >= 0 else ctypes.get_errno()

    return call


def test_default_filter_holds() -> None:
    """Refused, allowed, and the call that must seem absent."""
    program = default_program(DEFAULT_CAPABILITIES)
    assert filtered(program, errno_of("unshare", 0x20000)) == errno.EPERM
    assert filtered(program, errno_of("clone3", 0, 0)) == errno.ENOSYS
    assert filtered(program, errno_of("keyctl", 0, 0)) == errno.EPERM
    assert filtered(program, errno_of("getpid")) == 0
    assert filtered(program, errno_of("socket", 38, 5, 0)) == errno.EPERM
    assert filtered(program, errno_of("socket", socket.AF_INET, socket.SOCK_STREAM, 0)) == 0
    assert filtered(program, lambda: os.waitpid(os.fork() or os._exit(0), 0)[1]) == 0


def test_capability_lifts_a_refusal() -> None:
    """With CAP_SYS_ADMIN in the set the same call passes."""
    assert filtered(default_program(ALL_CAPABILITIES), errno_of("unshare", 0x20000)) == 0


def test_profile_kills() -> None:
    """An action other than an errno."""
    text = json.dumps(
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL_PROCESS"}],
        }
    )
    program = from_profile(text, DEFAULT_CAPABILITIES)
    assert filtered(program, errno_of("mkdirat", -1, 0, 0)) == -signal.SIGSYS
    assert filtered(program, errno_of("getppid")) == 0


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="x32 calls exist on x86_64 only")
def test_x32_calls_are_absent() -> None:
    """The same architecture value with bit 30 set must not slip past."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call() -> int:
        return 0 if libc.syscall(ctypes.c_long(0x40000000 + 39)) >= 0 else ctypes.get_errno()

    assert filtered(default_program(ALL_CAPABILITIES), call) == errno.ENOSYS


def test_bad_program_is_an_oserror() -> None:
    """The kernel's checker speaks through errno."""
    child = os.fork()
    if child == 0:
        try:
            install(b"\xff" * 8)
        except OSError as error:
            os._exit(0 if error.errno == errno.EINVAL else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
