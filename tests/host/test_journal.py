"""--log-driver journald with a real journal: Docker's fields, both streams, long lines, and `logs`."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from typing import Any

import pytest

from ketch_testing.clients import Client


def entries(count: int, *match: str) -> list[dict[str, Any]]:
    """The journal's entries that match, oldest first, as soon as there are `count`."""
    if shutil.which("journalctl") is None:
        pytest.skip("this needs journalctl")
    deadline = time.monotonic() + 60
    while True:
        subprocess.run(["journalctl", "--sync"], check=False, capture_output=True)
        got = subprocess.run(
            ["journalctl", "--all", "-o", "json", *match], capture_output=True, text=True, check=False
        ).stdout
        found = [json.loads(line) for line in got.splitlines()]
        if len(found) >= count or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def test_entries_have_dockers_fields(ketch: Client) -> None:
    """One entry a line, with what docker's driver gives it; `logs` shows the same lines."""
    ketch("run", "--name", "jrnl", "--log-driver", "journald", "--log-opt", "tag={{.Name}}/x", "--label", "team=red",
          "-e", "MODE=fast", "--log-opt", "labels=team", "--log-opt", "env=MODE", "busybox", "sh", "-c",
          "echo out; sleep 0.5; echo err >&2; sleep 0.5; printf last")  # fmt: skip
    identity = ketch.inspect("jrnl")["Id"]

    found = entries(3, f"CONTAINER_ID_FULL={identity}")

    assert [(one["MESSAGE"], one["PRIORITY"]) for one in found] == [("out", "6"), ("err", "3"), ("last", "6")]
    wanted = {
        "CONTAINER_ID": identity[:12], "CONTAINER_ID_FULL": identity, "CONTAINER_NAME": "jrnl", "CONTAINER_TAG": "jrnl/x",
        "IMAGE_NAME": "busybox", "SYSLOG_IDENTIFIER": "jrnl/x", "TEAM": "red", "MODE": "fast", "_TRANSPORT": "journal",
    }  # fmt: skip
    for one in found:
        assert {key: one.get(key) for key in wanted} == wanted
    assert ketch("logs", "jrnl") == "out\nlast"
    assert ketch.warned("logs", "jrnl") == "err\n"
    assert [one["MESSAGE"] for one in entries(3, "CONTAINER_NAME=jrnl")][-3:] == ["out", "err", "last"]


def test_a_long_line_comes_in_pieces(ketch: Client) -> None:
    """Pieces of 16 KiB under one name, in order, the last marked; bytes that are no text are kept."""
    ketch("run", "--name", "long", "--log-driver", "journald", "busybox", "sh", "-c",
          "head -c 40000 /dev/zero | tr '\\0' x; echo; printf '\\377\\376\\n'")  # fmt: skip
    identity = ketch.inspect("long")["Id"]

    *pieces, raw = entries(4, f"CONTAINER_ID_FULL={identity}")

    assert [len(one["MESSAGE"]) for one in pieces] == [16384, 16384, 40000 - 2 * 16384]
    assert len({one["CONTAINER_PARTIAL_ID"] for one in pieces}) == 1
    assert [one["CONTAINER_PARTIAL_ORDINAL"] for one in pieces] == ["1", "2", "3"]
    assert [one["CONTAINER_PARTIAL_LAST"] for one in pieces] == ["false", "false", "true"]
    assert raw["MESSAGE"] == [0xFF, 0xFE]
    assert len(ketch.machine.request("GET", "/containers/long/logs?stdout=1")[1]) > 40000


def test_the_daemons_own_words_are_there_too(ketch: Client) -> None:
    """Messages of systemd about the service, by unit."""
    assert entries(1, "UNIT=ketchd.service", "_PID=1")
