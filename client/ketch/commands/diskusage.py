"""`system df`: what takes up the disk."""

from __future__ import annotations

import time
from typing import Any

from ketch.commands.images import image_rows
from ketch.commands.listing import container_rows
from ketch.commands.volumes import volume_row
from ketch.options import Command, Given
from ketch.quantities import human_duration, human_size, parse_time
from ketch.session import Session
from ketch.views import FORMAT_HELP, chosen_format, columns, render_one, render_rows, short_id

DF = Command(
    "[OPTIONS]",
    f"""
--format string  Format output using a custom template:{FORMAT_HELP}
-v, --verbose  Show everything that takes up space
""",
)
TITLES = {
    "Type": "TYPE",
    "TotalCount": "TOTAL",
    "Active": "ACTIVE",
    "Size": "SIZE",
    "Reclaimable": "RECLAIMABLE",
}
TABLE = "{{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}"
RAW = "type: {{.Type}}\ntotal: {{.TotalCount}}\nactive: {{.Active}}\nsize: {{.Size}}\nreclaimable: {{.Reclaimable}}\n"


def usage(session: Session, given: Given) -> int:
    """Show it in sum, or with -v one by one."""
    form = chosen_format(session, given, "")
    found = session.engine.get("/system/df")
    if given.on("verbose") and not form:
        session.write(verbose(found, time.time()).encode("utf-8", "surrogateescape"))
        return 0
    if given.on("verbose"):
        session.say(render_one(form, details(found, time.time())))
        return 0
    session.write(render_rows(form, summary(found), TITLES, TABLE, RAW).encode("utf-8", "surrogateescape"))
    return 0


def summary(found: dict[str, Any]) -> list[dict[str, str]]:
    """One row a kind. Source: docker/cli formatter/disk_usage.go."""
    images = found.get("Images") or []
    containers = found.get("Containers") or []
    volumes = found.get("Volumes") or []
    cache = found.get("BuildCache") or []
    layers = int(found.get("LayersSize") or 0)
    used = sum(
        int(one.get("Size") or 0) - max(0, int(one.get("SharedSize", -1)))
        for one in images
        if int(one.get("Containers") or 0) > 0 and int(one.get("Size", -1)) != -1
    )
    running = [one for one in containers if one.get("State") in ("running", "paused", "restarting")]
    written = sum(int(one.get("SizeRw") or 0) for one in containers)
    idle = written - sum(int(one.get("SizeRw") or 0) for one in running)
    usages = [one.get("UsageData") or {} for one in volumes]
    taken = sum(max(0, int(one.get("Size") or 0)) for one in usages)
    free = sum(max(0, int(one.get("Size") or 0)) for one in usages if int(one.get("RefCount") or 0) == 0)
    built = sum(int(one.get("Size") or 0) for one in cache if not one.get("Shared"))
    needed = sum(int(one.get("Size") or 0) for one in cache if one.get("InUse") and not one.get("Shared"))
    return [
        _row(
            "Images",
            len(images),
            sum(int(one.get("Containers") or 0) > 0 for one in images),
            layers,
            layers - used if images else 0,
        ),
        _row("Containers", len(containers), len(running), written, idle),
        _row(
            "Local Volumes",
            len(volumes),
            sum(int(one.get("RefCount") or 0) > 0 for one in usages),
            taken,
            free,
        ),
        _row(
            "Build Cache",
            len(cache),
            sum(bool(one.get("InUse")) for one in cache),
            built,
            built - needed,
            share=False,
        ),
    ]


def _row(kind: str, total: int, active: int, size: int, free: int, *, share: bool = True) -> dict[str, str]:
    percent = f" ({int(free * 100 / size)}%)" if share and size > 0 else ""
    return {
        "Type": kind,
        "TotalCount": str(total),
        "Active": str(active),
        "Size": human_size(size),
        "Reclaimable": human_size(free) + percent,
    }


def details(found: dict[str, Any], now: float) -> dict[str, list[dict[str, Any]]]:
    """What `-v` with a template sees: the rows of every kind. Source: docker/cli formatter/disk_usage.go, verboseWriteTemplate."""
    images = []
    for one in found.get("Images") or ():
        size, shared = float(one.get("Size") or 0), max(0.0, float(one.get("SharedSize", -1)))
        for row in image_rows([one], trunc=False, digests=True, now=now):
            sizes = {"SharedSize": human_size(shared), "UniqueSize": human_size(size - shared)}
            images.append({**row, **sizes, "Containers": str(max(0, int(one.get("Containers", 0))))})
    kinds = {
        "Images": images,
        "Containers": container_rows(found.get("Containers") or (), trunc=False, now=now),
        "Volumes": [volume_row(one) for one in found.get("Volumes") or ()],
        "BuildCache": [_cache_row(one, now) for one in found.get("BuildCache") or ()],
    }
    return {kind: [dict(sorted(row.items())) for row in rows] for kind, rows in kinds.items()}


def _cache_row(one: dict[str, Any], now: float) -> dict[str, Any]:
    return {
        "ID": str(one.get("ID", "")),
        "Parent": str(one.get("Parent", "")),
        "CacheType": str(one.get("Type", "")),
        "Description": str(one.get("Description", "")),
        "InUse": str(bool(one.get("InUse"))).lower(),
        "Shared": str(bool(one.get("Shared"))).lower(),
        "Size": human_size(float(one.get("Size") or 0), 3),
        "CreatedAt": str(one.get("CreatedAt") or ""),
        "CreatedSince": _ago(one.get("CreatedAt"), now),
        "LastUsedAt": str(one.get("LastUsedAt") or ""),
        "LastUsedSince": _ago(one.get("LastUsedAt"), now),
        "UsageCount": str(one.get("UsageCount") or 0),
    }


def verbose(found: dict[str, Any], now: float) -> str:
    """Every image, container, volume and build step with its size."""
    parts = ["Images space usage:\n\n"]
    rows = [["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE", "SHARED SIZE", "UNIQUE SIZE", "CONTAINERS"]]
    for one in found.get("Images") or ():
        size, shared = float(one.get("Size") or 0), max(0.0, float(one.get("SharedSize", -1)))
        for name in one.get("RepoTags") or ["<none>:<none>"]:
            repository, _, tag = name.rpartition(":")
            rows.append(
                [
                    repository,
                    tag,
                    short_id(one["Id"]),
                    human_duration(now - float(one.get("Created") or 0)) + " ago",
                    human_size(size, 3),
                    human_size(shared),
                    human_size(size - shared),
                    str(max(0, int(one.get("Containers", 0)))),
                ]
            )
    parts.append(columns(rows))
    parts.append("\nContainers space usage:\n\n")
    rows = [["CONTAINER ID", "IMAGE", "COMMAND", "LOCAL VOLUMES", "SIZE", "CREATED", "STATUS", "NAMES"]]
    found_containers = [{**one, "SizeRootFs": 0} for one in found.get("Containers") or ()]
    for row in container_rows(found_containers, trunc=True, now=now):
        keys = ("ID", "Image", "Command", "LocalVolumes", "Size", "RunningFor", "Status", "Names")
        rows.append([str(row[key]) for key in keys])
    parts.append(columns(rows))
    parts.append("\nLocal Volumes space usage:\n\n")
    rows = [["VOLUME NAME", "LINKS", "SIZE"]]
    for one in found.get("Volumes") or ():
        made = volume_row(one)
        rows.append([made["Name"], made["Links"], made["Size"]])
    parts.append(columns(rows))
    cache = found.get("BuildCache") or []
    total = sum(int(one.get("Size") or 0) for one in cache if not one.get("Shared"))
    parts.append(f"\nBuild cache usage: {human_size(total)}\n\n")
    rows = [["CACHE ID", "CACHE TYPE", "SIZE", "CREATED", "LAST USED", "USAGE", "SHARED"]]
    for one in cache:
        identity = str(one.get("ID", ""))[:12] + ("" if one.get("InUse") is False else "*")
        rows.append(
            [
                identity,
                str(one.get("Type", "")),
                human_size(float(one.get("Size") or 0), 3),
                _ago(one.get("CreatedAt"), now),
                _ago(one.get("LastUsedAt"), now),
                str(one.get("UsageCount") or 0),
                str(bool(one.get("Shared"))).lower(),
            ]
        )
    parts.append(columns(rows))
    return "".join(parts)


def _ago(text: object, now: float) -> str:
    if not text:
        return ""
    try:
        return human_duration(now - parse_time(str(text)).timestamp()) + " ago"
    except ValueError:
        return ""


COMMANDS = {"system df": (DF, usage)}
