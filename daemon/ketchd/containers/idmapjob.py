"""A layer worker's trial of idmapped mounts: a file made in a user namespace's overlay must be root's on the disk."""

from __future__ import annotations

import os
import signal
import tempfile
from typing import Any

from ketch_wire.faults import EngineFailure
from ketch_wire.launch import LayerMount
from ketchd.kernel.clone import fork_into_cgroup
from ketchd.kernel.namespaces import CLONE_NEWUSER
from ketchd.layers.worker import JobPort
from ketchd.sandbox import remapped


def probe(arguments: dict[str, Any], port: JobPort) -> dict[str, Any]:
    """Raises EngineFailure with what the kernel refused."""
    with tempfile.TemporaryDirectory(dir=arguments["stage"], prefix="idmap-") as base:
        for name in ("lower", "upper", "work"):
            os.mkdir(os.path.join(base, name))
        failure = _try(base, port.scratch(), arguments["uids"], arguments["gids"])
        made = os.path.join(base, "upper", "made")
        if not failure and (not os.path.exists(made) or os.stat(made).st_uid != 0):
            failure = "a file that was made there is not root's on the disk"
    if failure:
        raise EngineFailure(
            f"cannot remap user namespaces: the kernel shows no idmapped layers here: {failure}"
        )
    return {}


def _try(base: str, place: str, uids: list[list[int]], gids: list[list[int]]) -> str:
    """What failed, or ""."""
    holder = 0
    try:
        holder = fork_into_cgroup(-1, CLONE_NEWUSER)
        if holder == 0:
            signal.pause()
            os._exit(0)
        for name, extents in (("uid_map", uids), ("gid_map", gids)):
            fd = os.open(f"/proc/{holder}/{name}", os.O_WRONLY | os.O_CLOEXEC)
            os.write(fd, "".join(f"{a} {b} {count}\n" for a, b, count in extents).encode())
            os.close(fd)
        user = os.open(f"/proc/{holder}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return _make_a_file(base, place, user, (uids[0][1], gids[0][1]))
        finally:
            os.close(user)
    except OSError as error:
        return _said(error)
    finally:
        if holder:
            os.kill(holder, signal.SIGKILL)
            os.waitpid(holder, 0)


def _make_a_file(base: str, place: str, user: int, owner: tuple[int, int]) -> str:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()  # it changes its user
    if child == 0:
        try:
            layers = [LayerMount("directory", os.path.join(base, "lower"))]
            root = remapped.overlay(
                layers,
                place,
                os.path.join(base, "upper"),
                os.path.join(base, "work"),
                mounted={},
                user=user,
                owner=owner,
            )
            os.close(os.open("made", os.O_CREAT | os.O_WRONLY, dir_fd=root))
        except OSError as error:
            os.write(writer, _said(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as told:
        text = told.read().decode()
    os.waitpid(child, 0)
    return text


def _said(error: OSError) -> str:
    return f"{error.filename}: {(error.strerror or str(error)).lower()}"
