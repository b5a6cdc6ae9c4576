"""The scope that holds what outlives ketchd: when there is one, what it is called, the command that makes it."""

from __future__ import annotations

import pytest

from ketchd.kernel.cgrouphost import Mounted
from ketchd.shim.scope import Scope, scope_beside

TWO = Mounted(2, {}, "/sys/fs/cgroup")
SERVICE = {"SYSTEMD_EXEC_PID": "77"}
SCOPE = Scope("ketchd.service", "ketch.slice", "/sys/fs/cgroup/ketch.slice")


@pytest.mark.parametrize("own", ["/ketch.slice/ketchd.service", "/ketch.slice/ketchd.service/supervisor"])
def test_a_service_has_a_scope_beside_it(own: str) -> None:
    """Also where DelegateSubgroup= put the service into a leaf of its own."""
    scope = scope_beside(SERVICE, 77, TWO, own)

    assert scope == SCOPE
    assert scope.directory == "/sys/fs/cgroup/ketch.slice/ketchd-containers.scope"


def test_without_a_slice_it_is_the_root_slice() -> None:
    scope = scope_beside(SERVICE, 77, TWO, "/ketchd@two.service")

    assert scope == Scope("ketchd@two.service", "-.slice", "/sys/fs/cgroup")
    assert scope.directory == "/sys/fs/cgroup/ketchd@two-containers.scope"


@pytest.mark.parametrize(
    ("environ", "mounted", "own"),
    [
        ({}, TWO, "/ketch.slice/ketchd.service"),  # not of systemd
        ({"SYSTEMD_EXEC_PID": "76"}, TWO, "/system.slice/job.service"),  # started by something that is
        (SERVICE, Mounted(1, {"memory": "/m"}, "/u"), "/ketch.slice/ketchd.service"),  # hybrid
        (SERVICE, TWO, "/"),
        (SERVICE, TWO, "/user.slice/session-1.scope"),
        (SERVICE, TWO, "/user.slice/user@1000.service/app.slice/ketchd.service"),  # of a user's own manager
    ],
)
def test_nothing_else_has_one(environ: dict[str, str], mounted: Mounted, own: str) -> None:
    assert scope_beside(environ, 77, mounted, own) is None


def test_the_command_that_makes_it() -> None:
    """Each property is a name, a signature and a value; the count before them is right."""
    words = SCOPE.describe(4711)

    start = words.index("ssa(sv)a(sa(sv))")
    assert words[start + 1 : start + 4] == ["ketchd-containers.scope", "fail", "8"]
    assert words[start + 4 :] == [
        "Description", "s", "Containers of ketchd.service", "Slice", "s", "ketch.slice", "Delegate", "b", "true",
        "TasksMax", "t", "18446744073709551615", "CollectMode", "s", "inactive-or-failed",
        "Before", "as", "1", "ketchd.service",
        "TimeoutStopUSec", "t", "10000000", "PIDs", "au", "1", "4711", "0",
    ]  # fmt: skip
