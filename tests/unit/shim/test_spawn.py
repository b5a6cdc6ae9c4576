"""Making a child: what is open when it cannot be made."""

from __future__ import annotations

import os
import resource
from typing import NoReturn

import pytest

from ketchd.shim.spawn import spawn


@pytest.mark.parametrize("free", range(8))
def test_a_child_for_which_there_are_no_descriptors_leaves_none_open(free: int) -> None:
    """Wherever the limit is met: at the pair, at the first pipe, at the last."""

    def become(*_: object) -> NoReturn:
        os._exit(0)

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = sorted(os.listdir("/proc/self/fd"))
    held = []
    while (fd := os.dup(0)) < 200:
        held.append(fd)
    os.close(fd)
    for one in held[-free:] if free else []:
        os.close(one)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
        with pytest.raises(OSError, match="Too many open files"):
            spawn(become, terminal=False, stdin=True, stdout=True, stderr=True, cgroup="")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for one in held[: len(held) - free]:
            os.close(one)
    assert sorted(os.listdir("/proc/self/fd")) == before
