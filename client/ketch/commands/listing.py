"""`ps`: the list of containers."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Sequence
from typing import Any

from ketch.faults import CommandFailed
from ketch.filters import build_filters
from ketch.options import Command, Given
from ketch.quantities import human_duration, human_size, local_time
from ketch.references import is_id, parse_name
from ketch.session import Session
from ketch.views import (
    FORMAT_HELP,
    check_template,
    chosen_format,
    label_list,
    label_of,
    label_title,
    render_rows,
    short_id,
    shortened,
)

PS = Command(
    "[OPTIONS]",
    f"""
-a, --all  Show all containers, not only those that run
-f, --filter filter  Show only containers that fulfil the conditions
--format string  Format output using a custom template:{FORMAT_HELP}
-n, --last int  Show the n containers made last, whatever their state (default -1)
-l, --latest  Show the container made last, whatever its state
--no-trunc  Don't truncate output
-q, --quiet  Show IDs alone
-s, --size  Show total file sizes
""",
)

TITLES = {
    "ID": "CONTAINER ID",
    "Names": "NAMES",
    "Image": "IMAGE",
    "Command": "COMMAND",
    "CreatedAt": "CREATED AT",
    "RunningFor": "CREATED",
    "Ports": "PORTS",
    "State": "STATE",
    "Status": "STATUS",
    "Size": "SIZE",
    "Labels": "LABELS",
    "Mounts": "MOUNTS",
    "LocalVolumes": "LOCAL VOLUMES",
    "Networks": "NETWORKS",
    "Platform": "PLATFORM",
    "Label": label_title,
}
TABLE = "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}"

RAW = """container_id: {{.ID}}
image: {{.Image}}
command: {{.Command}}
created_at: {{.CreatedAt}}
state: {{- pad .State 1 0}}
status: {{- pad .Status 1 0}}
names: {{.Names}}
labels: {{- pad .Labels 1 0}}
ports: {{- pad .Ports 1 0}}
"""


def ps(session: Session, given: Given) -> int:
    """List containers."""
    quiet = given.on("quiet")
    if quiet and given.text("format"):
        session.warn("WARNING: Ignoring custom format, because both --format and --quiet are set.")
    check_template(given.text("format"), "failed to parse template")
    form = chosen_format(session, given, "psFormat")
    limit = 1 if given.on("latest") and given.number("last") == -1 else given.number("last")
    query: dict[str, Any] = {"all": given.on("all"), "size": given.on("size") or _shows_size(form)}
    if limit > 0:
        query["limit"] = limit
    if given.many("filter"):
        query["filters"] = build_filters(given.many("filter"))
    found = session.engine.get("/containers/json", query)
    trunc = not given.on("no-trunc")
    rows = container_rows(found, trunc=trunc, now=time.time())
    if quiet:
        form = "container_id: {{.ID}}" if form == "raw" else "{{.ID}}"
    table = TABLE + ("\t{{.Size}}" if given.on("size") else "")
    raw = RAW + ("size: {{.Size}}\n" if given.on("size") else "")
    shown = render_rows(form, rows, TITLES, table, raw, fault="failed to execute template")
    session.write(shown.encode("utf-8", "surrogateescape"))
    return 0


def _shows_size(form: str) -> bool:
    return ".Size" in form or re.search(r"json \.\s*}}", form) is not None


def container_rows(found: Iterable[dict[str, Any]], *, trunc: bool, now: float) -> list[dict[str, Any]]:
    """The summaries of the API as `--format` sees them. Source: docker/cli formatter/container.go."""
    return [_row(one, trunc, now) for one in found]


def _row(one: dict[str, Any], trunc: bool, now: float) -> dict[str, Any]:
    command = str(one.get("Command") or "")
    mounts = [str(mount.get("Name") or mount.get("Source") or "") for mount in one.get("Mounts") or ()]
    networks = (one.get("NetworkSettings") or {}).get("Networks") or {}
    created = float(one.get("Created") or 0)
    names = [str(name).removeprefix("/") for name in one.get("Names") or ()]
    if trunc:
        # Other containers' links to this one are names, too.
        names = [name for name in names if "/" not in name]
    return {
        "ID": short_id(one["Id"]) if trunc else one["Id"],
        "Names": ",".join(names),
        "Image": _image(one, trunc),
        "Command": json.dumps(shortened(command, 20) if trunc else command, ensure_ascii=False),
        "CreatedAt": local_time(created),
        "RunningFor": human_duration(now - created) + " ago",
        "Ports": displayed_ports(one.get("Ports") or ()),
        "State": one.get("State", ""),
        "Status": one.get("Status", ""),
        "Size": _size(one),
        "Labels": label_list(one.get("Labels")),
        "Mounts": ",".join(shortened(name, 15) if trunc else name for name in mounts),
        "LocalVolumes": str(sum(mount.get("Driver") == "local" for mount in one.get("Mounts") or ())),
        "Networks": ",".join(sorted(networks)),
        "Platform": (one.get("ImageManifestDescriptor") or {}).get("platform"),
        "Label": label_of(one.get("Labels")),
    }


def _image(one: dict[str, Any], trunc: bool) -> str:
    image = str(one.get("Image") or "")
    if not image:
        return "<no image>"
    if not trunc:
        return image
    if short_id(image) == short_id(str(one.get("ImageID") or "")) or is_id(image):
        return short_id(image)
    try:
        return parse_name(image)._replace(digest="").familiar
    except CommandFailed:
        return image


def _size(one: dict[str, Any]) -> str:
    written = human_size(float(one.get("SizeRw") or 0), 3)
    whole = float(one.get("SizeRootFs") or 0)
    return f"{written} (virtual {human_size(whole, 3)})" if whole > 0 else written


def displayed_ports(ports: Sequence[dict[str, Any]]) -> str:
    """`0.0.0.0:80->80/tcp`, with ranges drawn together. Source: docker/cli formatter, DisplayablePorts."""
    ordered = sorted(
        ports,
        key=lambda one: (
            one["PrivatePort"],
            one.get("IP") or "",
            one.get("PublicPort") or 0,
            one.get("Type") or "",
        ),
    )
    groups: dict[tuple[str, str], tuple[int, int]] = {}
    shown: list[str] = []
    mapped: list[str] = []
    for one in ordered:
        private, kind, address = one["PrivatePort"], one.get("Type", ""), one.get("IP") or ""
        if address and one.get("PublicPort") != private:
            mapped.append(f"{_joined(address, one.get('PublicPort', 0))}->{private}/{kind}")
            continue
        first, last = groups.get((address, kind), (private, private - 1))
        if private != last + 1:
            shown.append(_group(address, kind, first, last))
            first = private
        groups[address, kind] = first, private
    shown += [_group(address, kind, *ends) for (address, kind), ends in groups.items()]
    return ", ".join([*shown, *mapped])


def _group(address: str, kind: str, first: int, last: int) -> str:
    ports = str(first) if first == last else f"{first}-{last}"
    return f"{_joined(address, ports)}->{ports}/{kind}" if address else f"{ports}/{kind}"


def _joined(address: str, port: object) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


COMMANDS = {"ps": (PS, ps)}
