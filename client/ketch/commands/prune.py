"""`container prune`, `image prune`, `network prune`, `volume prune`, `builder prune`, `system prune`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from ketch.faults import CommandFailed
from ketch.filters import Filters, build_filters
from ketch.options import Command, Given
from ketch.quantities import human_size
from ketch.session import Session
from ketch.terminal import confirm

FILTER = '--filter filter  Provide filter values (e.g. "until=<timestamp>")'
FORCE = "-f, --force  Do not ask"

WARNINGS = {
    "container": "WARNING! This will remove all stopped containers.",
    "image": "WARNING! This will remove all dangling images.",
    "image all": "WARNING! This will remove all images without at least one container associated to them.",
    "network": "WARNING! This will remove all custom networks not used by at least one container.",
    "volume": "WARNING! This will remove anonymous local volumes not used by at least one container.",
    "volume all": "WARNING! This will remove all local volumes not used by at least one container.",
    "builder": "WARNING! This will remove all dangling build cache.",
    "builder all": "WARNING! This will remove all build cache.",
}


class Pruned(NamedTuple):
    """What went: lines to show, and bytes."""

    lines: list[str]
    size: int


def _agreed(given: Given, warning: str, gap: str = "\n") -> bool:
    return given.on("force") or confirm(f"{warning}{gap}Are you sure you want to continue?")


def _filters(session: Session, given: Given, **fixed: str) -> Filters:
    """The typed filters, and those of the configuration's `pruneFilters`, which typed ones of a label override."""
    typed = given.many("filter") if given.knows("filter") else []
    configured = session.config.values.get("pruneFilters") or []
    kept = [text for text in configured if isinstance(text, str) and text not in typed]
    return build_filters([*typed, *kept], **fixed)


def prune_containers(session: Session, filters: Filters) -> Pruned:
    """Remove the containers that have stopped."""
    told = session.engine.json("POST", "/containers/prune", _query(filters))
    return _pruned("Deleted Containers:", told.get("ContainersDeleted"), told)


def prune_networks(session: Session, filters: Filters) -> Pruned:
    """Remove the networks without a container."""
    told = session.engine.json("POST", "/networks/prune", _query(filters))
    return _pruned("Deleted Networks:", told.get("NetworksDeleted"), told)


def prune_volumes(session: Session, filters: Filters) -> Pruned:
    """Remove the volumes without a container."""
    told = session.engine.json("POST", "/volumes/prune", _query(filters))
    return _pruned("Deleted Volumes:", told.get("VolumesDeleted"), told)


def prune_images(session: Session, filters: Filters) -> Pruned:
    """Remove the images that nothing needs."""
    told = session.engine.json("POST", "/images/prune", _query(filters))
    lines = [
        f"untagged: {one['Untagged']}" if one.get("Untagged") else f"deleted: {one['Deleted']}"
        for one in told.get("ImagesDeleted") or ()
    ]
    return _pruned("Deleted Images:", lines, told)


def prune_builder(session: Session, query: dict[str, Any], filters: Filters) -> Pruned:
    """Remove the results of build steps."""
    told = session.engine.json("POST", "/build/prune", {**query, **_query(filters)})
    return _pruned("Deleted build cache objects:", told.get("CachesDeleted"), told)


def _query(filters: Filters) -> dict[str, Any]:
    return {"filters": filters} if filters else {}


def _pruned(title: str, lines: Iterable[str] | None, told: dict[str, Any]) -> Pruned:
    found = list(lines or ())
    return Pruned([title, *found, ""] if found else [], int(told.get("SpaceReclaimed") or 0))


def _show(session: Session, pruned: Pruned, label: str = "Total reclaimed space") -> None:
    for line in pruned.lines:
        session.say(line)
    if label:
        session.say(f"{label}: {human_size(pruned.size)}")


def containers(session: Session, given: Given) -> int:
    """Stopped containers."""
    if not _agreed(given, WARNINGS["container"]):
        return 0
    _show(session, prune_containers(session, _filters(session, given)))
    return 0


def images(session: Session, given: Given) -> int:
    """Images without a name, or with -a all that no container uses."""
    every = given.on("all")
    if not _agreed(given, WARNINGS["image all" if every else "image"]):
        return 0
    filters = _filters(session, given, dangling="false" if every else "true")
    _show(session, prune_images(session, filters))
    return 0


def networks(session: Session, given: Given) -> int:
    """Networks without a container."""
    if not _agreed(given, WARNINGS["network"]):
        return 0
    _show(session, prune_networks(session, _filters(session, given)), "")
    return 0


def volumes(session: Session, given: Given) -> int:
    """Anonymous volumes without a container, or with -a all of them."""
    every = given.on("all")
    if not _agreed(given, WARNINGS["volume all" if every else "volume"]):
        return 0
    filters = _filters(session, given)
    if every:
        if "all" in filters:
            raise CommandFailed("conflicting options: cannot specify both --all and --filter all=1")
        filters["all"] = {"true": True}
    _show(session, prune_volumes(session, filters))
    return 0


def builder(session: Session, given: Given) -> int:
    """The build cache."""
    every = given.on("all")
    if not _agreed(given, WARNINGS["builder all" if every else "builder"], " "):
        return 0
    query: dict[str, Any] = {"all": every}
    if given.number("keep-storage"):
        query["keep-storage"] = given.number("keep-storage")
        query["reserved-space"] = given.number("keep-storage")
    _show(session, prune_builder(session, query, _filters(session, given)))
    return 0


def system(session: Session, given: Given) -> int:
    """All that is not used."""
    every, with_volumes = given.on("all"), given.on("volumes")
    filters = _filters(session, given)
    if with_volumes and "until" in filters:
        raise CommandFailed('ERROR: The "until" filter is not supported with "--volumes"')
    if not _agreed(given, system_warning(every, with_volumes, given.many("filter"))):
        return 0
    cache = {key: value for key, value in filters.items() if key == "until"}
    done = [prune_containers(session, filters), prune_networks(session, filters)]
    if with_volumes:
        done.append(prune_volumes(session, filters))
    dangling = {**filters, "dangling": {"false" if every else "true": True}}
    done.append(prune_images(session, dangling))
    done.append(prune_builder(session, {"all": every}, cache))
    lines = [line for one in done for line in one.lines]
    _show(session, Pruned(lines, sum(one.size for one in done)))
    return 0


def system_warning(every: bool, with_volumes: bool, filters: list[str]) -> str:
    """What `system prune` is about to do."""
    lines = [
        "WARNING! This will remove:",
        "  - all stopped containers",
        "  - all networks not used by at least one container",
    ]
    if with_volumes:
        lines.append("  - all anonymous volumes not used by at least one container")
    if every:
        lines += [
            "  - all images without at least one container associated to them",
            "  - all build cache",
        ]
    else:
        lines += ["  - all dangling images", "  - unused build cache"]
    if filters:
        lines += [
            "",
            "  Items to be pruned will be filtered with:",
            *(f"  - {text}" for text in sorted(filters)),
        ]
    return "\n".join([*lines, ""])


COMMANDS = {
    "container prune": (Command("[OPTIONS]", f"{FILTER}\n{FORCE}"), containers),
    "image prune": (
        Command(
            "[OPTIONS]", f"-a, --all  Remove all unused images, those with a name as well\n{FILTER}\n{FORCE}"
        ),
        images,
    ),
    "network prune": (Command("[OPTIONS]", f"{FILTER}\n{FORCE}"), networks),
    "volume prune": (
        Command(
            "[OPTIONS]",
            f'-a, --all  Remove all unused volumes, not only anonymous ones\n--filter filter  Provide filter values (e.g. "label=<label>")\n{FORCE}',
        ),
        volumes,
    ),
    "builder prune": (
        Command(
            "[OPTIONS]",
            f"""
-a, --all  Remove all unused build cache, not only what nothing refers to
{FILTER}
{FORCE}
--keep-storage bytes  Amount of disk space to keep for the cache
""",
        ),
        builder,
    ),
    "system prune": (
        Command(
            "[OPTIONS]",
            f"""
-a, --all  Remove all unused images, not only dangling ones
--filter filter  Provide filter values (e.g. "label=<key>=<value>")
{FORCE}
--volumes  Remove anonymous volumes as well
""",
        ),
        system,
    ),
}
