"""`volume create`, `ls` and `rm`."""

from __future__ import annotations

from typing import Any

from ketch.faults import CommandFailed, EngineAnswer
from ketch.filters import build_filters
from ketch.options import Command, Given
from ketch.quantities import human_size
from ketch.session import Session
from ketch.variables import check_label, pair_map
from ketch.views import (
    FORMAT_HELP,
    chosen_format,
    label_list,
    label_of,
    label_title,
    quiet_format,
    render_rows,
)

TITLES: dict[str, Any] = {
    "Name": "VOLUME NAME",
    "Driver": "DRIVER",
    "Scope": "SCOPE",
    "Mountpoint": "MOUNTPOINT",
    "Labels": "LABELS",
    "Links": "LINKS",
    "Size": "SIZE",
    "Availability": "AVAILABILITY",
    "Group": "GROUP",
    "Status": "STATUS",
    "Label": label_title,
}


def listing(session: Session, given: Given) -> int:
    """List volumes."""
    form = chosen_format(session, given, "volumesFormat")
    if given.on("quiet"):
        form = quiet_format(form, "{{.Name}}", "name: {{.Name}}")
    query = {"filters": build_filters(given.many("filter"))} if given.many("filter") else {}
    found = session.engine.get("/volumes", query).get("Volumes") or ()
    rows = [volume_row(one) for one in sorted(found, key=lambda one: one["Name"])]
    raw = "name: {{.Name}}\ndriver: {{.Driver}}\n"
    session.write(
        render_rows(form, rows, TITLES, "{{.Driver}}\t{{.Name}}", raw).encode("utf-8", "surrogateescape")
    )
    return 0


def volume_row(one: dict[str, Any]) -> dict[str, Any]:
    """A volume as `--format` sees it. Source: docker/cli formatter/volume.go."""
    usage = one.get("UsageData")
    return {
        "Name": one["Name"],
        "Driver": one.get("Driver", ""),
        "Scope": one.get("Scope", ""),
        "Mountpoint": one.get("Mountpoint", ""),
        "Labels": label_list(one.get("Labels")),
        "Links": str(usage["RefCount"]) if usage else "N/A",
        "Size": human_size(float(usage["Size"])) if usage else "N/A",
        "Availability": "N/A",
        "Group": "N/A",
        "Status": "N/A",
        "Label": label_of(one.get("Labels")),
    }


def create(session: Session, given: Given) -> int:
    """Make a volume; print its name."""
    name = given.text("name")
    if given.arguments:
        if name:
            raise CommandFailed(
                "conflicting options: cannot specify a volume-name through both --name and as a positional arg"
            )
        name = given.arguments[0]
    body = {
        "Name": name,
        "Driver": given.text("driver"),
        "DriverOpts": pair_map(given.many("opt")),
        "Labels": pair_map(given.many("label")),
    }
    session.say(session.engine.json("POST", "/volumes/create", send=body)["Name"])
    return 0


def remove(session: Session, given: Given) -> int:
    """Remove volumes."""
    failures = 0
    for name in given.arguments:
        try:
            session.engine.call("DELETE", f"/volumes/{name}", {"force": given.on("force")})
        except EngineAnswer as error:
            session.warn(error.message)
            failures += 1
        else:
            session.say(name)
    return 1 if failures else 0


COMMANDS = {
    "volume create": (
        Command(
            "[OPTIONS] [VOLUME]",
            """
-d, --driver string  Driver of the volume (default "local")
--label list  Set a label
--name string  Name of the volume
-o, --opt map  Options of the driver (default map[])
""",
            (0, 1),
            checks={"label": check_label},
        ),
        create,
    ),
    "volume ls": (
        Command(
            "[OPTIONS]",
            f"""
-f, --filter filter  Show only volumes that fulfil the conditions (e.g. "dangling=true")
--format string  Format output using a custom template:{FORMAT_HELP}
-q, --quiet  Show volume names alone
""",
        ),
        listing,
    ),
    "volume rm": (
        Command(
            "[OPTIONS] VOLUME [VOLUME...]",
            "-f, --force  What is not there is no fault",
            (1, None),
            note="A volume that a container uses cannot be removed.",
        ),
        remove,
    ),
}
