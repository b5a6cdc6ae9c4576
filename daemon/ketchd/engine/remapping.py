"""`--userns-remap` at start: the ids looked up on this host (made for `default`), and a trial of what the kernel must be able to do."""

from __future__ import annotations

import asyncio
import grp
import os
import pwd
import shutil
from pathlib import Path

from ketch_wire.faults import EngineFailure
from ketchd.containers import subids
from ketchd.containers.subids import IdMap
from ketchd.layers.workers import WorkerPool

SUBUID, SUBGID = Path("/etc/subuid"), Path("/etc/subgid")


async def read_id_map(setting: str) -> IdMap | None:
    """The ids of `setting`, None for "". `default` makes its user and gives it ids where they are missing.

    Raises EngineFailure (no such user or group, no file, it cannot be made), InvalidInput (no range).
    """
    if not setting:
        return None
    user, group = subids.split(setting)
    if setting == "default":
        await _make_default(user)
    try:
        found = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
    except KeyError:
        raise EngineFailure(
            f"cannot remap user namespaces: there is no user {user}: make it (useradd --system {user}) and give it ids in {SUBUID} and {SUBGID}"
        ) from None
    try:
        members = grp.getgrgid(int(group)) if group.isdigit() else grp.getgrnam(group)
    except KeyError:
        raise EngineFailure(f"cannot remap user namespaces: there is no group {group}") from None
    return IdMap(
        subids.extents(_text(SUBUID), str(SUBUID), found.pw_name, found.pw_uid),
        subids.extents(_text(SUBGID), str(SUBGID), members.gr_name, members.gr_gid),
    )


async def _make_default(name: str) -> None:
    """The system user `name` with a group of its name, and subordinate ids that nobody has. Nothing is done where all is there.

    Source: moby pkg/idtools/usergroupadd_linux.go, AddNamespaceRangesUser.
    """
    if not _exists(name):
        await _run("useradd", "--system", "--user-group", "--shell", "/bin/false", "--no-create-home", name)
    number = pwd.getpwnam(name).pw_uid
    asked: list[str] = []
    for path, option in ((SUBUID, "--add-subuids"), (SUBGID, "--add-subgids")):
        text = path.read_text() if path.exists() else ""
        if not subids.has_range(text, name, number):
            start = subids.free_start(text)
            asked += [option, f"{start}-{start + subids.DEFAULT_COUNT - 1}"]
            path.touch()  # shadow's tools take a missing file for a system without subordinate ids
    if asked:
        await _run("usermod", *asked, name)


def _exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


async def _run(tool: str, *words: str) -> None:
    """One of shadow's tools. Raises EngineFailure with its last line."""
    instead = f"make the user {words[-1]} and give it ids in {SUBUID} and {SUBGID}"
    program = shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        raise EngineFailure(
            f"cannot remap user namespaces: {tool} is not installed (package passwd): {instead}"
        )
    process = await asyncio.create_subprocess_exec(
        program, *words, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, said = await process.communicate()
    if process.returncode:
        lines = said.decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else f"{tool} ended with {process.returncode}"
        raise EngineFailure(f"cannot remap user namespaces: {reason}: {instead}")


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise EngineFailure(
            f"cannot remap user namespaces: {path}: {(error.strerror or '').lower()}"
        ) from error


async def probe_idmap(workers: WorkerPool, stage: Path, ids: IdMap) -> None:
    """Whether files can be made through an overlay of idmapped mounts below `stage`. Raises EngineFailure when they cannot."""
    await workers.run(
        "ketchd.containers.idmapjob:probe",
        {"stage": str(stage), "uids": list(ids.uids), "gids": list(ids.gids)},
    )
