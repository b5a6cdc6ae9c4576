"""Counters as the Engine API shows them, and ps's columns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ketch_wire.faults import InvalidInput
from ketchd.containers import proctable, stats
from ketchd.containers.stats import Sample
from ketchd.kernel.cgroupusage import Usage

NET_DEV = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     900      9    0    0    0     0          0         0      900       9    0    0    0     0       0          0
  eth0:    1000     10    1    2    0     0          0         0     2000      20    3    4    0     0       0          0
"""


def sample(total: int, **usage: object) -> Sample:
    return Sample(
        1_700_000_000_000_000_000 + total,
        Usage(2, cpu_total=total, **usage),
        {"eth0": {}},
        100 * total,
        2,
        1 << 30,
    )  # type: ignore[arg-type]


def test_interfaces_without_loopback() -> None:
    """Received and sent as the container sees them."""
    assert stats.read_interfaces(NET_DEV) == {
        "eth0": {
            "rx_bytes": 1000, "rx_packets": 10, "rx_errors": 1, "rx_dropped": 2,
            "tx_bytes": 2000, "tx_packets": 20, "tx_errors": 3, "tx_dropped": 4,
        }
    }  # fmt: skip


def test_system_cpu_counts_seven_fields() -> None:
    """Guest time is in user time already."""
    assert stats.read_system_cpu("cpu  1 2 3 4 5 6 7 100 200 300\ncpu0 1\ncpu1 1\nintr 5\n", 100) == (
        280_000_000,
        2,
    )
    assert stats.read_memory_total("MemTotal:  16 kB\n") == 16384


def test_precpu_is_the_sample_before() -> None:
    """What docker's CLI computes a percentage from."""
    shown = stats.running("id", "n", sample(500), sample(100))
    assert shown["name"] == "/n"
    assert shown["precpu_stats"]["cpu_usage"]["total_usage"] == 100
    assert shown["cpu_stats"]["system_cpu_usage"] - shown["precpu_stats"]["system_cpu_usage"] == 40000
    assert shown["preread"] != "0001-01-01T00:00:00Z"
    first = stats.running("id", "n", sample(500), None)
    assert first["preread"] == "0001-01-01T00:00:00Z"
    assert first["precpu_stats"]["cpu_usage"]["total_usage"] == 0
    assert "system_cpu_usage" not in first["precpu_stats"]


def test_memory_limit_is_at_most_the_hosts() -> None:
    """No limit shows what the machine has."""
    assert stats.running("id", "n", sample(1, memory=5), None)["memory_stats"]["limit"] == 1 << 30
    assert stats.running("id", "n", sample(1, memory=5, memory_limit=9), None)["memory_stats"]["limit"] == 9
    assert (
        stats.running("id", "n", sample(1, memory=5, memory_limit=1 << 40), None)["memory_stats"]["limit"]
        == 1 << 30
    )
    assert stats.running("id", "n", sample(1), None)["memory_stats"] == {}


def test_stopped_is_zero() -> None:
    """As dockerd goes on to send it."""
    shown = stats.stopped("id", "n")
    assert shown["read"] == "0001-01-01T00:00:00Z" and shown["memory_stats"] == {} and "networks" not in shown
    assert shown["blkio_stats"]["io_service_bytes_recursive"] is None


@given(st.text())
def test_any_text_of_proc(text: str) -> None:
    """A newer kernel's lines are left out."""
    stats.read_interfaces(text)


STAT = b"7 (a) b (c)) S 1 7 7 34817 7 4194560 1 2 3 4 150 50 0 0 20 0 3 0 1000 10485760 256 18446744073709551615 0"


def process() -> proctable.Process:
    return proctable.parse(7, STAT, b"sleep\x0010\0", (0, 0), 100, 4, uptime=30.0, booted=1_700_000_000.0)


HOST = proctable.Host(1_700_000_030.0, 102400, lambda uid: "root")


def test_process_from_proc() -> None:
    """A name may hold parentheses; times are clock ticks."""
    found = process()
    assert (found.name, found.state, found.parent, found.threads) == ("a) b (c)", "S", 1, 3)
    assert (found.tty, found.cpu_seconds, found.elapsed, found.resident, found.virtual) == (
        "pts/1",
        2.0,
        20.0,
        1024,
        10240,
    )


@pytest.mark.parametrize(
    ("arguments", "titles", "row"),
    [
        ("-ef", ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"], None),
        (
            "aux",
            ["USER", "PID", "%CPU", "%MEM", "VSZ", "RSS", "TTY", "STAT", "START", "TIME", "COMMAND"],
            None,
        ),
        ("-o pid,comm", ["PID", "COMMAND"], ["7", "a) b (c)"]),
        ("-eo pid,ppid,user,args", ["PID", "PPID", "USER", "COMMAND"], ["7", "1", "root", "sleep 10"]),
        (
            "-o pid -o etime,pcpu,pmem,nlwp",
            ["PID", "ELAPSED", "%CPU", "%MEM", "NLWP"],
            ["7", "00:20", "10.0", "1.0", "3"],
        ),
        ("axo pid,stat=X", ["PID", "X"], ["7", "Ssl+"]),
    ],
)
def test_columns(arguments: str, titles: list[str], row: list[str] | None) -> None:
    """The forms that everybody types."""
    wanted = proctable.columns(arguments)
    assert wanted is not None
    shown = proctable.table([process()], wanted, HOST)
    assert shown["Titles"] == titles
    assert len(shown["Processes"][0]) == len(titles)
    if row is not None:
        assert shown["Processes"][0] == row


def test_unknown_arguments_are_left_to_ps() -> None:
    """Only what we understand whole is answered by us."""
    for arguments in ("--forest", "-o pid,wchan", "-C sshd", "-ejH"):
        assert proctable.columns(arguments) is None


def test_pid_must_be_among_the_columns() -> None:
    """dockerd's words."""
    with pytest.raises(InvalidInput, match="Couldn't find PID field in ps output"):
        proctable.columns("-o comm")


def test_real_process() -> None:
    """This very one."""
    import os

    found = proctable.read([os.getpid(), 1 << 30])
    assert [one.pid for one in found] == [os.getpid()]
    assert found[0].elapsed >= 0 and "python" in found[0].arguments
