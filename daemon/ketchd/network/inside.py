"""A worker's job: rtnetlink messages in the network namespace of a container that already runs.

The worker enters the namespace for as long as it takes to open a socket there, and executes nothing in it.
"""

from __future__ import annotations

import os
import socket
from typing import Any

from ketch_wire.faults import Conflict, EngineFailure
from ketchd.kernel.namespaces import CLONE_NEWNET, setns
from ketchd.kernel.process import start_time
from ketchd.network import rtnetlink


def configure(arguments: dict[str, Any], port: Any) -> dict[str, Any]:
    """arguments: pid, start_time, messages. Raises Conflict when the process is gone, EngineFailure."""
    pid = arguments["pid"]
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            there = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise Conflict(f"container process {pid} is gone") from error
        try:
            if not _is(
                pid, arguments["start_time"]
            ):  # asked after the descriptor is ours: it was the right process's
                raise Conflict(f"container process {pid} is gone")
            setns(there, CLONE_NEWNET)
        finally:
            os.close(there)
        try:
            channel = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
            )
        finally:
            setns(home, CLONE_NEWNET)
    finally:
        os.close(home)
    with channel:
        for number, message in enumerate(arguments["messages"]):
            channel.send(message)
            for answer in rtnetlink.answers(channel.recv(65536)):
                if answer.error:
                    raise EngineFailure(f"network message {number} failed: {os.strerror(answer.error)}")
    return {}


def _is(pid: int, started: int) -> bool:
    try:
        return start_time(pid) == started
    except FileNotFoundError:
        return False
