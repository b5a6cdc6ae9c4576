"""Streams and logs: nothing is lost, nobody who is slow holds a container up, the log is whole and rotated."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from ketch_testing.contained import Contained, attached, read_all, read_until, split_frames, until
from ketch_wire.launch import LogPlan
from ketchd.containers.logformat import parse_line


async def test_attached_before_the_start_gets_the_first_byte(box: Contained) -> None:
    first, one = attached()
    second, two = attached(stderr=False)
    link = await box.start(box.plan("sh", "-c", "echo out; echo err >&2; exit 4"), one, two)

    everything, only_out = await asyncio.gather(read_all(first), read_all(second))

    ended = await box.end(link)
    first.close()
    second.close()
    assert split_frames(everything) == {1: b"out\n", 2: b"err\n"}
    assert split_frames(only_out) == {1: b"out\n"}
    assert ended is not None and ended.code == 4


async def test_stdin_reaches_the_process_and_half_close_is_its_end(box: Contained) -> None:
    client, stream = attached(stdin=True, initial=b"early ")
    link = await box.start(box.plan("cat", open_stdin=True, stdin_once=True), stream)
    loop = asyncio.get_running_loop()

    await loop.sock_sendall(client, b"typed")
    client.shutdown(socket.SHUT_WR)

    assert split_frames(await read_all(client)) == {1: b"early typed"}
    ended = await box.end(link)
    client.close()
    assert ended is not None and ended.code == 0


async def test_without_stdin_once_the_input_stays_open(box: Contained) -> None:
    """compose's `stdin_open`: the next to attach goes on typing."""
    first, one = attached(stdin=True)
    link = await box.start(box.plan("sh", "-c", "read a; read b; echo $a-$b", open_stdin=True), one)
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(first, b"x\n")
    first.close()
    second, two = attached(stdin=True)
    await link.attach(two)
    await loop.sock_sendall(second, b"y\n")

    assert split_frames(await read_all(second)) == {1: b"x-y\n"}
    await box.end(link)
    second.close()


async def test_a_client_that_goes_away_takes_its_input_along(box: Contained) -> None:
    """StdinOnce: the process sees the end."""
    client, stream = attached(stdin=True)
    plan = box.plan("cat", open_stdin=True, stdin_once=True)
    link = await box.start(plan, stream)
    await asyncio.get_running_loop().sock_sendall(client, b"last words")
    client.close()

    ended = await box.end(link)

    assert ended is not None and ended.code == 0
    assert box.logged(plan) == "last words"


async def test_much_input_into_a_slow_reader_arrives_whole(box: Contained) -> None:
    client, stream = attached(stdin=True)
    plan = box.plan("sh", "-c", "sleep 0.2; sha256sum", open_stdin=True, stdin_once=True)
    link = await box.start(plan, stream)
    data = os.urandom(3 << 20)
    await asyncio.get_running_loop().sock_sendall(client, data)
    client.close()  # all the way: what lies in the socket must still arrive

    await box.end(link)

    assert box.logged(plan) == f"{hashlib.sha256(data).hexdigest()}  -\n"


async def test_a_process_without_stdin_reads_the_end(box: Contained) -> None:
    code, output = await box.run("sh", "-c", "cat; echo done; readlink /proc/self/fd/0")

    assert (code, output) == (0, "done\n/dev/null\n")


async def test_a_client_that_hangs_up_changes_nothing(box: Contained) -> None:
    client, stream = attached()
    plan = box.plan("sh", "-c", "echo one; sleep 0.2; echo two; exit 5")
    link = await box.start(plan, stream)
    await read_until(client, b"one")
    client.close()

    ended = await box.end(link)

    assert ended is not None and ended.code == 5
    assert box.logged(plan) == "one\ntwo\n"


async def test_a_stuck_reader_neither_stops_the_container_nor_the_others(box: Contained) -> None:
    size = 24 << 20
    stuck, one = attached()
    lively, two = attached(multiplexed=False)
    plan = box.plan("sh", "-c", f"yes 0123456789abcdef | head -c {size}")
    link = await box.start(plan, one, two)

    digest = hashlib.sha256(await read_all(lively)).hexdigest()
    ended = await asyncio.wait_for(link.wait(), 30)

    assert ended is not None and ended.code == 0
    expected = (b"0123456789abcdef\n" * (size // 17 + 1))[:size]
    assert digest == hashlib.sha256(expected).hexdigest()
    late = split_frames(await read_all(stuck))  # it was kept for the slow one
    assert late == {1: expected}
    stuck.close()
    lively.close()
    await link.gone()


async def test_the_log_has_every_line_of_both_streams(box: Contained) -> None:
    plan = box.plan("sh", "-c", "for i in $(seq 500); do echo out$i; echo err$i >&2; done; printf end")
    link = await box.start(plan)
    await box.end(link)

    assert box.logged(plan, "stdout") == "".join(f"out{n}\n" for n in range(1, 501)) + "end"
    assert box.logged(plan, "stderr") == "".join(f"err{n}\n" for n in range(1, 501))


async def test_long_lines_are_cut_as_dockerd_cuts_them(box: Contained) -> None:
    plan = box.plan("sh", "-c", "head -c 40000 /dev/zero | tr '\\0' a; echo; echo short")
    link = await box.start(plan)
    await box.end(link)

    assert [len(entry["log"]) for entry in box.entries(plan)] == [16384, 16384, 40000 - 2 * 16384 + 1, 6]


async def test_bytes_that_are_no_text_come_back_as_they_were(box: Contained) -> None:
    data = os.urandom(50000)
    (box.layer / "noise").write_bytes(data)
    plan = box.plan("cat", "/noise")
    link = await box.start(plan)
    await box.end(link)

    stored = [parse_line(line) for line in Path(plan.log.path).read_bytes().splitlines()]
    assert b"".join(one.text for one in stored if one is not None) == data


@pytest.mark.parametrize("files", [1, 2, 3])
async def test_the_log_is_rotated(box: Contained, files: int) -> None:
    limit = 20000
    plan = box.plan("sh", "-c", "for i in $(seq 2000); do echo line $i; done")
    plan = replace(plan, log=LogPlan(path=plan.log.path, max_size=limit, max_files=files))
    link = await box.start(plan)
    await box.end(link)

    path = Path(plan.log.path)
    kept = sorted(name for name in os.listdir(path.parent) if name.startswith(path.name))
    assert kept == [path.name, *(f"{path.name}.{number}" for number in range(1, files))]
    assert all((path.parent / name).stat().st_size <= limit + 200 for name in kept)
    text = box.logged(plan)
    assert text.endswith("line 1999\nline 2000\n")
    numbers = [int(line.split()[1]) for line in text.splitlines()]
    assert numbers == list(range(numbers[0], 2001))


async def test_no_log_is_written_for_the_driver_none(box: Contained) -> None:
    plan = box.plan("echo", "x")
    plan = replace(plan, log=LogPlan(driver="none"))
    client, stream = attached()
    link = await box.start(plan, stream)

    assert split_frames(await read_all(client)) == {1: b"x\n"}
    await box.end(link)
    client.close()
    assert not [name for name in os.listdir(plan.state_dir) if "log" in name]


async def test_a_terminal(box: Contained) -> None:
    client, stream = attached(stdin=True, multiplexed=False)
    plan = box.plan(
        "sh", "-c", "tty; stty size; cat /proc/self/stat | cut -d' ' -f7; ls -l /dev/console; read x; echo got $x",
        tty=True, open_stdin=True, stdin_once=True, console_size=(33, 101),
    )  # fmt: skip
    link = await box.start(plan, stream)
    await read_until(client, b"/dev/console")
    await asyncio.get_running_loop().sock_sendall(client, b"typed\n")
    output = await read_until(client, b"got typed\r\n")

    await box.end(link)
    client.close()
    logged = box.logged(plan)
    assert logged.startswith("/dev/pts/0\r\n33 101\r\n34816\r\n")
    assert "crw--w----    1 root     tty" in logged or "crw--w----    1 root     5 " in logged
    assert output.endswith(b"got typed\r\n")


async def test_a_terminal_is_resized(box: Contained) -> None:
    client, stream = attached(stdin=True, multiplexed=False)
    plan = box.plan(
        "sh",
        "-c",
        "trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.01; done",
        tty=True,
        open_stdin=True,
    )
    link = await box.start(plan, stream)
    await read_until(client, b"ready")

    await link.resize(50, 132)

    await read_until(client, b"50 132")
    await box.end(link)
    client.close()


async def test_detach_keys_leave_the_container_alone(box: Contained) -> None:
    client, stream = attached(stdin=True, multiplexed=False, detach_keys=b"\x10\x11")
    plan = box.plan("cat", tty=True, open_stdin=True)
    link = await box.start(plan, stream)
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(client, b"a\x10b\n")
    await read_until(client, b"a\x10b\r\n")

    await loop.sock_sendall(client, b"\x10")
    await loop.sock_sendall(client, b"\x11")

    await read_all(client)
    await until(lambda: box.detached == [(plan.id, "")])
    assert Path(f"/proc/{link.pid}").exists()
    client.close()
    await link.signal(signal.SIGKILL)
    await box.end(link)


async def test_detach_keys_that_come_with_the_request_count(box: Contained) -> None:
    """Typed ahead: what a client sends before it has its answer."""
    plan = box.plan("cat", open_stdin=True)
    link = await box.start(plan)
    client, stream = attached(
        stdin=True, multiplexed=False, detach_keys=b"\x10\x11", initial=b"before\n\x10\x11after\n"
    )
    await link.attach(stream)

    await read_all(client)
    await until(lambda: box.logged(plan) == "before\n")

    assert box.detached == [(plan.id, "")]
    await link.signal(signal.SIGKILL)
    await box.end(link)
    client.close()


async def test_output_that_somebody_else_holds_is_not_waited_for_without_end(box: Contained) -> None:
    """In the host's pid namespace a child may live on, with our pipe in its hand, outside of every cgroup of ours."""
    plan = box.plan(
        "sh",
        "-c",
        "sleep 300 & echo $!; exit 3",
        namespaces={**box_namespaces(), "pid": "host"},
        cgroup=False,
    )
    link = await box.start(plan)

    ended = await box.end(link)

    child = int(box.logged(plan))
    os.kill(child, signal.SIGKILL)
    await until(lambda: not Path(f"/proc/{child}").exists())
    assert ended is not None and ended.code == 3


def box_namespaces() -> dict[str, str]:
    """All but pid."""
    return {kind: "new" for kind in ("mount", "network", "uts", "ipc", "cgroup")}


async def test_an_execs_output_outlives_the_container(box: Contained) -> None:
    link = await box.start(box.plan("sleep", "60"))
    plan = box.exec_plan("sh", "-c", "yes | head -c 3000000; echo done >&2; touch /done; sleep 60")
    client, stream = attached()
    await link.exec_start(plan.id, plan, stream)
    await read_until(client, b"y\n")
    await until(lambda: Path(f"/proc/{link.pid}/root/done").exists())
    await link.signal(signal.SIGKILL)
    await asyncio.wait_for(link.wait(), 30)

    rest = await read_all(client)

    await link.gone()
    client.close()
    assert len(rest) > 2_000_000 and rest.endswith(b"done\n")
