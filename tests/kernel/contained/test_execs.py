"""Execs: more processes in a container that runs, with its namespaces, limits and rules."""

from __future__ import annotations

import asyncio
import signal
import socket
from pathlib import Path

import pytest

from ketch_testing.contained import Contained, attached, read_all, read_until, split_frames, until
from ketch_wire.faults import Conflict
from ketchd.containers.shims import LaunchFailed, ShimLink

EXEC = "OCI runtime exec failed: exec failed: unable to start container process: "


@pytest.fixture
async def running(box: Contained) -> ShimLink:
    """A container that waits."""
    return await box.start(
        box.plan("sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.05; done", hostname="outer")
    )


async def over(box: Contained, link: ShimLink) -> None:
    """End it."""
    await link.signal(signal.SIGKILL)
    await box.end(link)


@pytest.mark.parametrize("code", [0, 7, 255])
async def test_the_code_is_known_before_the_stream_closes(
    box: Contained, running: ShimLink, code: int
) -> None:
    """Trap 15 of the streams: whoever saw the end asks for the code at once."""
    assert await box.execute(running, "sh", "-c", f"echo x; exit {code}") == (code, b"x\n")
    await over(box, running)


async def test_it_is_inside(box: Contained, running: ShimLink) -> None:
    code, output = await box.execute(
        running, "sh", "-c", "hostname; ps | grep -c sleep; for n in mnt net ipc uts pid cgroup; do readlink /proc/self/ns/$n; done; "
        "for n in mnt net ipc uts pid cgroup; do readlink /proc/1/ns/$n; done; grep -E 'Cap(Prm|Inh)|Seccomp:' /proc/self/status",
        cwd="/tmp",
    )  # fmt: skip

    lines = output.decode().splitlines()
    assert (code, lines[0]) == (0, "outer")
    assert lines[2:8] == lines[8:14]
    assert lines[14:] == ["CapInh:\t0000000000000000", "CapPrm:\t00000000a80425fb", "Seccomp:\t2"]
    await over(box, running)


async def test_it_is_in_the_containers_cgroup(box: Contained, running: ShimLink) -> None:
    if not box.plans[0].cgroup.join:
        pytest.skip("no cgroups can be made here")
    plan = box.exec_plan("sleep", "60")

    pid = await running.exec_start(plan.id, plan, None)

    for directory in box.plans[0].cgroup.join:
        assert str(pid) in Path(f"{directory}/cgroup.procs").read_text().split()
    await over(box, running)


async def test_it_has_nothing_of_ours_open(box: Contained, running: ShimLink) -> None:
    """CVE-2024-21626: `exec` was the second way in."""
    _, output = await box.execute(running, "sh", "-c", "cd /proc/self/fd; echo *")

    assert output in (b"0 1 2\n", b"0 1 2 3\n")
    await over(box, running)


@pytest.mark.parametrize("number", range(3, 12))
async def test_cve_2024_21626_no_descriptor_is_a_working_directory(box: Contained, number: int) -> None:
    link = await box.start(box.plan("sleep", "60"))
    plan = box.exec_plan("cat", "/etc/shadow", cwd=f"/proc/self/fd/{number}")

    with pytest.raises(LaunchFailed) as caught:
        await link.exec_start(plan.id, plan, None)

    assert caught.value.message.startswith(
        f'{EXEC}chdir to cwd ("/proc/self/fd/{number}") set in config.json failed: '
    )
    await over(box, link)


@pytest.mark.parametrize(
    ("argv", "given", "message", "code", "status"),
    [
        (("nope",), {}, 'exec: "nope": executable file not found in $PATH', 127, 400),
        (("/etc/passwd",), {}, 'exec: "/etc/passwd": permission denied', 126, 400),
        (
            ("true",),
            {"cwd": "/nope"},
            'chdir to cwd ("/nope") set in config.json failed: no such file or directory',
            127,
            400,
        ),
    ],
)
async def test_what_cannot_start(
    box: Contained,
    running: ShimLink,
    argv: tuple[str, ...],
    given: dict[str, str],
    message: str,
    code: int,
    status: int,
) -> None:
    plan = box.exec_plan(*argv, **given)
    client, stream = attached()

    with pytest.raises(LaunchFailed) as caught:
        await running.exec_start(plan.id, plan, stream)

    client.close()
    assert caught.value.message == f"{EXEC}{message}: unknown"
    assert (caught.value.exit_code, caught.value.status) == (code, status)
    assert box.exec_exits == []
    await over(box, running)


async def test_a_user_without_entry(box: Contained, running: ShimLink) -> None:
    plan = box.exec_plan("true", user="ghost")

    with pytest.raises(LaunchFailed, match="unable to find user ghost: no matching entries"):
        await running.exec_start(plan.id, plan, None)

    assert await box.execute(running, "id", "-u", user="user") == (0, b"1000\n")
    await over(box, running)


async def test_stdin_and_both_outputs(box: Contained, running: ShimLink) -> None:
    plan = box.exec_plan("sh", "-c", "cat; echo err >&2", open_stdin=True)
    client, stream = attached(stdin=True, initial=b"first ")
    await running.exec_start(plan.id, plan, stream)
    await asyncio.get_running_loop().sock_sendall(client, b"second")
    client.shutdown(socket.SHUT_WR)

    assert split_frames(await read_all(client)) == {1: b"first second", 2: b"err\n"}
    client.close()
    await over(box, running)


async def test_a_terminal(box: Contained, running: ShimLink) -> None:
    plan = box.exec_plan(
        "sh", "-c", "tty; stty size; read x; stty size", tty=True, open_stdin=True, console_size=(20, 70)
    )
    client, stream = attached(stdin=True, multiplexed=False)
    await running.exec_start(plan.id, plan, stream)
    await read_until(client, b"/dev/pts/0\r\n20 70\r\n")
    await running.exec_resize(plan.id, 30, 80)
    await asyncio.get_running_loop().sock_sendall(client, b"\n")

    assert b"30 80\r\n" in await read_all(client)
    client.close()
    await over(box, running)


async def test_signals(box: Contained, running: ShimLink) -> None:
    plan = box.exec_plan("sleep", "60")
    await running.exec_start(plan.id, plan, None)

    await running.exec_signal(plan.id, signal.SIGTERM)

    await until(lambda: box.exec_exits == [(running.container_id, plan.id, 143)])
    with pytest.raises(Conflict):
        await running.exec_resize(plan.id, 1, 1)
    await over(box, running)


async def test_it_ends_with_the_container(box: Contained, running: ShimLink) -> None:
    plan = box.exec_plan("sleep", "60")
    client, stream = attached()
    await running.exec_start(plan.id, plan, stream)

    await running.signal(signal.SIGKILL)

    assert await read_all(client) == b""
    await box.end(running)
    client.close()
    assert box.exec_exits == [(running.container_id, plan.id, 137)]


async def test_many_at_once(box: Contained, running: ShimLink) -> None:
    results = await asyncio.gather(
        *(box.execute(running, "sh", "-c", f"echo {n}; exit {n}") for n in range(20))
    )

    assert results == [(n, f"{n}\n".encode()) for n in range(20)]
    await over(box, running)


async def test_into_an_ended_container(box: Contained) -> None:
    link = await box.start(box.plan("true"))
    await box.end(link)
    plan = box.exec_plan("true")
    client, stream = attached()

    with pytest.raises(Conflict):
        await link.exec_start(plan.id, plan, stream)
    client.close()


async def test_a_hostile_terminal_multiplexer_is_refused(box: Contained) -> None:
    """The container may put what it likes at /dev/pts/ptmx by the time of an exec."""
    link = await box.start(box.plan("sh", "-c", "rm -f /dev/ptmx; sleep 60", capabilities=()))
    inside = Path(f"/proc/{link.pid}/root/dev")
    await until(lambda: not (inside / "ptmx").is_symlink())
    plan = box.exec_plan("tty", tty=True)
    client, stream = attached(multiplexed=False)

    await link.exec_start(plan.id, plan, stream)

    assert b"/dev/pts/0" in await read_all(client)
    client.close()
    await over(box, link)
