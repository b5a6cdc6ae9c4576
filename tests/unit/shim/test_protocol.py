"""What crosses the wire: plans, exec plans, failures, exit records."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ketch_wire.frames import FrameReader, pack
from ketch_wire.launch import (
    CgroupPlan,
    DevicePlan,
    LaunchPlan,
    LayerMount,
    LogPlan,
    MountPlan,
    ProcessPlan,
    RootPlan,
)
from ketch_wire.shim import ExecPlan
from ketchd.containers.shims import ExitRecord, LaunchFailed, read_exit
from ketchd.shim import exits
from ketchd.shim.exits import reserve_exit, sync_exit, write_exit
from ketchd.shim.plans import launch_plan, outline, process_plan, whole_plan

# A busy machine is no reason to fail.
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

PLAN = LaunchPlan(
    id="a" * 64,
    root=RootPlan((LayerMount("erofs", "/l1"), LayerMount("directory", "/l2")), "/u", "/w", True),
    process=ProcessPlan(("sh", "-c", "x"), ("A=b",), seccomp=b"\0\xff", rlimits={"nofile": (1, 2)}, tty=True),
    run_dir="/run/x", state_dir="/state", namespaces={"pid": "new"}, hostname="h",
    mounts=(MountPlan("/m", "bind", "/s", ("rbind", "ro")),), devices=(DevicePlan("/dev/x", "c", 1, 2),),
    masked_paths=("/proc/kcore",), sysctls={"a": "b"}, cgroup=CgroupPlan(("/cg",), (("/cg/f", "1"),), b"\x01"),
    log=LogPlan(path="/log"), netlink=(b"\x01\x02",), transient=True,
)  # fmt: skip


def over_the_wire(message: dict[str, object]) -> dict[str, object]:
    """As the other side sees it."""
    return FrameReader().feed(pack(message))[0]


def test_a_plan_survives_the_wire() -> None:
    assert LaunchPlan.from_wire(over_the_wire(PLAN.to_wire())) == PLAN


def test_the_shims_own_reading_agrees_with_the_dataclasses() -> None:
    """Every name that a plan has, the shim's light object has, with the same value."""
    seen = launch_plan(over_the_wire(PLAN.to_wire()))

    def same(plan: object, light: object) -> None:
        for name in getattr(plan, "__dataclass_fields__", {}):
            one, other = getattr(plan, name), getattr(light, name)
            if hasattr(one, "__dataclass_fields__"):
                same(one, other)
            elif isinstance(one, tuple) and one and hasattr(one[0], "__dataclass_fields__"):
                for left, right in zip(one, other, strict=True):
                    same(left, right)
            elif isinstance(one, dict):
                assert {key: tuple(v) if isinstance(v, list) else v for key, v in other.items()} == one
            else:
                assert (
                    tuple(tuple(v) if isinstance(v, list) else v for v in other)
                    if isinstance(one, tuple)
                    else other
                ) == one

    same(PLAN, seen)


def test_the_outline_says_to_the_shim_what_the_plan_says() -> None:
    """Every name it has is the plan's, with the plan's value; layers keep their places."""
    seen = outline(over_the_wire({"outline": PLAN.outline()})["outline"])  # type: ignore[arg-type]

    def plain(value: object) -> object:
        return [plain(one) for one in value] if isinstance(value, (list, tuple)) else value

    def same(plan: object, light: object) -> None:
        for name in type(light).__slots__:  # type: ignore[attr-defined]
            one, other = getattr(plan, name), getattr(light, name)
            if name == "layers":
                for left, right in zip(one, other, strict=True):
                    same(left, right)
            elif hasattr(one, "__dataclass_fields__"):
                same(one, other)
            else:
                assert plain(other) == plain(one)

    same(PLAN, seen)


def test_the_outline_leaves_out_namespaces_that_need_no_shim() -> None:
    plan = replace(PLAN, namespaces={"pid": "host", "network": "pid:7", "uts": "new", "ipc": "host"})

    assert outline(plan.outline()).namespaces == {"pid": "host", "network": "pid:7"}


def test_the_child_reads_the_whole_plan() -> None:
    plan = whole_plan(pack(PLAN.to_wire()))

    assert (plan.process.argv, plan.mounts[0].target) == (["sh", "-c", "x"], "/m")


def test_a_plan_of_an_older_daemon_is_understood() -> None:
    wire = PLAN.to_wire()
    for name in ("transient", "netlink"):
        del wire[name]
    del wire["process"]["init"]

    seen = launch_plan(wire)

    assert (seen.transient, tuple(seen.netlink), seen.process.init) == (False, (), False)


def test_an_exec_plan_survives_the_wire() -> None:
    plan = ExecPlan("e" * 64, PLAN.process)

    again = ExecPlan.from_wire(over_the_wire(plan.to_wire()))

    assert (again.id, again.process.argv, again.process.seccomp) == (plan.id, plan.process.argv, b"\0\xff")
    assert process_plan(plan.to_wire()["process"]).argv == ("sh", "-c", "x")
    assert ExecPlan.from_wire(over_the_wire(ExecPlan("e", PLAN.process, transient=True).to_wire())).transient
    older = plan.to_wire()
    del older["transient"]
    assert not again.transient and not ExecPlan.from_wire(older).transient


@pytest.mark.parametrize(
    ("told", "exec_", "message"),
    [
        ({"kind": "plain", "code": 128, "status": 500, "message": "unable to find user x"}, False, "unable to find user x"),
        (
            {"kind": "init", "code": 127, "status": 400, "message": "exec: x"}, True,
            "OCI runtime exec failed: exec failed: unable to start container process: exec: x: unknown",
        ),
        (
            {"kind": "init", "code": 127, "status": 400, "message": "exec: x"}, False,
            "failed to create task for container: failed to create shim task: OCI runtime create failed: runc create failed: "
            "unable to start container process: error during container init: exec: x: unknown",
        ),
    ],
)  # fmt: skip
def test_failures_are_told_in_dockerds_words(told: dict[str, object], exec_: bool, message: str) -> None:
    failure = LaunchFailed.from_wire(told, exec=exec_)

    assert (failure.message, failure.exit_code, failure.status) == (message, told["code"], told["status"])


@CALM
@given(st.integers(0, 255), st.integers(0, 1 << 40), st.integers(0, 1 << 62))
def test_exit_records(tmp_path_factory: pytest.TempPathFactory, code: int, ooms: int, finished: int) -> None:
    path = tmp_path_factory.mktemp("exit")
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    write_exit(directory, code, ooms, finished)
    sync_exit(directory)
    os.close(directory)

    assert read_exit(path) == ExitRecord(code, ooms, finished)
    assert os.listdir(path) == ["exit"]


def test_an_exit_record_with_more_than_its_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The codes of execs, of which none may cost the container's own when the disk is full."""
    codes = {f"{number:064x}": number for number in range(200)}
    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    reserve_exit(directory)
    write_exit(directory, 1, 0, 2, codes)
    assert read_exit(tmp_path) == ExitRecord(1, 0, 2, codes)

    def put(fd: int, content: bytes, offset: int) -> int:
        """The disk has what was reserved."""
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, content[:128])

    monkeypatch.setattr(exits.os, "pwrite", put)
    reserve_exit(directory)
    write_exit(directory, 3, 1, 4, codes)
    os.close(directory)
    assert read_exit(tmp_path) == ExitRecord(3, 1, 4)


@pytest.mark.parametrize(
    "content", [b"", b"\x83", b"rubbish", b"\xff" * 100, b"\x81\xa4code\x01", b"\x93\x01\x02\x03"]
)
def test_half_a_record_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "exit").write_bytes(content)

    assert read_exit(tmp_path) is None
    assert read_exit(tmp_path / "nowhere") is None


def test_syncing_what_somebody_removed_is_no_failure(tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    write_exit(directory, 1, 0, 2)
    (tmp_path / "exit").unlink()

    sync_exit(directory)

    os.close(directory)


def test_the_end_of_a_connection_is_told_from_messages() -> None:
    """Closed, and what is no frame: the same end for both sides. Half a frame is neither."""
    whole = pack({"op": "go"})
    assert FrameReader().take(whole[:3]) == []
    assert FrameReader().take(whole) == [{"op": "go"}]
    assert FrameReader().take(b"") is None
    assert FrameReader().take(b"\xff\xff\xff\xff") is None
