"""`--userns-remap` at start: the ids looked up on this host, and a trial of what the kernel must be able to do."""

from __future__ import annotations

import grp
import pwd
from pathlib import Path

from ketch_wire.faults import EngineFailure
from ketchd.containers import subids
from ketchd.containers.subids import IdMap
from ketchd.layers.workers import WorkerPool

SUBUID, SUBGID = Path("/etc/subuid"), Path("/etc/subgid")


def read_id_map(setting: str) -> IdMap | None:
    """The ids of `setting`, None for "". Raises EngineFailure (no such user or group, no file), InvalidInput (no range)."""
    if not setting:
        return None
    user, group = subids.split(setting)
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
