"""`images`, `history`, `rmi` and `tag`."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from ketch.commands.registry import platform_object
from ketch.engine import Engine
from ketch.faults import CommandFailed, EngineAnswer
from ketch.filters import build_filters
from ketch.options import Command, Given
from ketch.quantities import human_duration, human_size, local_time
from ketch.references import ImageName, parse_name
from ketch.session import Session
from ketch.views import FORMAT_HELP, chosen_format, quiet_format, render_rows, short_id, shortened

NONE = "<none>"
IMAGES = Command(
    "[OPTIONS] [REPOSITORY[:TAG]]",
    f"""
-a, --all  Show all images, intermediate ones as well
--digests  Show digests
-f, --filter filter  Show only images that fulfil the conditions
--format string  Format output using a custom template:{FORMAT_HELP}
--no-trunc  Don't truncate output
-q, --quiet  Show image IDs alone
--tree  Show every image with the names and platforms below it
""",
    (0, 1),
)
TITLES = {
    "ID": "IMAGE ID",
    "Repository": "REPOSITORY",
    "Tag": "TAG",
    "Digest": "DIGEST",
    "CreatedSince": "CREATED",
    "CreatedAt": "CREATED AT",
    "Size": "SIZE",
    "Containers": "CONTAINERS",
    "VirtualSize": "SIZE",
    "SharedSize": "SHARED SIZE",
    "UniqueSize": "UNIQUE SIZE",
}
TABLE = "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
DIGEST_TABLE = "{{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"

RAW = (
    "repository: {{{{.Repository}}}}\ntag: {{{{.Tag}}}}\n{}image_id: {{{{.ID}}}}\ncreated_at: {{{{.CreatedAt}}}}\n"
    "virtual_size: {{{{.Size}}}}\n"
)


def images(session: Session, given: Given) -> int:
    """List images."""
    form = chosen_format(session, given, "imagesFormat")
    if given.on("quiet"):
        form = quiet_format(form, "{{.ID}}", "image_id: {{.ID}}")
    query: dict[str, Any] = {"all": given.on("all")}
    filters = build_filters(given.many("filter"))
    if given.arguments:
        filters.setdefault("reference", {})[given.arguments[0]] = True
    if filters:
        query["filters"] = filters
    if given.on("tree"):
        from ketch.imagetree import tree

        for option in ("no-trunc", "quiet", "digests", "format"):
            if given.has(option):
                raise CommandFailed(f"--{option} is not yet supported with --tree")
        query["manifests"] = True
        session.write(tree(session.engine.get("/images/json", query)).encode("utf-8", "surrogateescape"))
        return 0
    found = session.engine.get("/images/json", query)
    digests = given.on("digests") or ".Digest" in form
    rows = image_rows(found, trunc=not given.on("no-trunc"), digests=digests, now=time.time())
    table = DIGEST_TABLE if given.on("digests") else TABLE
    raw = RAW.format("digest: {{.Digest}}\n" if given.on("digests") else "")
    session.write(render_rows(form, rows, TITLES, table, raw).encode("utf-8", "surrogateescape"))
    return 0


def image_rows(
    found: Iterable[dict[str, Any]], *, trunc: bool, digests: bool, now: float
) -> list[dict[str, str]]:
    """A row for every name of every image. Source: docker/cli formatter/image.go."""
    return [
        _row(one, repository, tag, digest, trunc, now)
        for one in found
        for repository, tag, digest in names_of(one, digests)
    ]


def names_of(one: dict[str, Any], digests: bool) -> list[tuple[str, str, str]]:
    """(repository, tag, digest) of an image: its tags; digests where there is no tag, or when they are asked for."""
    tags: dict[str, list[str]] = {}
    hashes: dict[str, list[str]] = {}
    for text in one.get("RepoTags") or ():
        name = _parsed(text)
        if name is not None and name.tag:
            tags.setdefault(name.familiar_repository, []).append(name.tag)
    for text in one.get("RepoDigests") or ():
        name = _parsed(text)
        if name is not None and name.digest:
            hashes.setdefault(name.familiar_repository, []).append(name.digest)
    found: list[tuple[str, str, str]] = []
    for repository, names in tags.items():
        known = hashes.pop(repository, []) if digests else []
        hashes.pop(repository, None)
        found += [(repository, tag, digest) for tag in names for digest in known or [NONE]]
    for repository, known in hashes.items():
        found += [(repository, NONE, digest) for digest in (known if digests else [NONE])]
    return found or [(NONE, NONE, NONE)]


def _parsed(text: str) -> ImageName | None:
    try:
        return parse_name(text)
    except CommandFailed:
        return None


def _row(
    one: dict[str, Any], repository: str, tag: str, digest: str, trunc: bool, now: float
) -> dict[str, str]:
    created = float(one.get("Created") or 0)
    size, shared = float(one.get("Size") or 0), float(one.get("SharedSize", -1))
    containers = int(one.get("Containers", -1))
    return {
        "ID": short_id(one["Id"]) if trunc else one["Id"],
        "Repository": repository,
        "Tag": tag,
        "Digest": digest,
        "CreatedSince": human_duration(now - created) + " ago" if created > 0 else "N/A",
        "CreatedAt": local_time(created) if created > 0 else "N/A",
        "Size": human_size(size, 3),
        "Containers": "N/A" if containers < 0 else str(containers),
        "VirtualSize": human_size(size),
        "SharedSize": "N/A" if shared < 0 else human_size(shared, 3),
        "UniqueSize": "N/A" if shared < 0 else human_size(size - shared, 3),
    }


HISTORY = Command(
    "[OPTIONS] IMAGE",
    f"""
--format string  Format output using a custom template:{FORMAT_HELP}
-H, --human  Print sizes and dates for people (default true)
--no-trunc  Don't truncate output
--platform string  Show the history of this platform, as "os[/arch[/variant]]"
-q, --quiet  Show image IDs alone
""",
    (1, 1),
)
HISTORY_TITLES = {
    "ID": "IMAGE",
    "CreatedSince": "CREATED",
    "CreatedAt": "CREATED AT",
    "CreatedBy": "CREATED BY",
    "Size": "SIZE",
    "Comment": "COMMENT",
}


def history(session: Session, given: Given) -> int:
    """Show how an image was made."""
    form = chosen_format(session, given, "")
    query: dict[str, Any] = {}
    if given.text("platform"):
        query["platform"] = platform_object(given.text("platform"))
    found = session.engine.get(f"/images/{given.arguments[0]}/history", query)
    human, trunc, now = given.on("human"), not given.on("no-trunc"), time.time()
    rows = []
    for one in found:
        created, size = float(one.get("Created") or 0), one.get("Size") or 0
        by = str(one.get("CreatedBy") or "").replace("\t", " ")
        known = created > -62135596800
        since = human_duration(now - created) + " ago" if known else "N/A"
        rows.append(
            {
                "ID": short_id(one["Id"]) if trunc else one["Id"],
                "CreatedSince": since if human else _moment(created),
                "CreatedAt": _moment(created),
                "CreatedBy": shortened(by, 45) if trunc else by,
                "Size": human_size(size, 3) if human else str(size),
                "Comment": str(one.get("Comment") or ""),
            }
        )
    table = "{{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}"
    if given.on("quiet"):
        form = quiet_format(form, "{{.ID}}")
    titles = HISTORY_TITLES if human else {**HISTORY_TITLES, "CreatedSince": "CREATED AT"}
    session.write(render_rows(form, rows, titles, table).encode("utf-8", "surrogateescape"))
    return 0


def _moment(created: float) -> str:
    from datetime import datetime

    return datetime.fromtimestamp(int(created)).astimezone().isoformat().replace("+00:00", "Z")


def remove(session: Session, given: Given) -> int:
    """Remove images: names first, what no name is left for afterwards."""
    query: dict[str, Any] = {"force": given.on("force"), "noprune": given.on("no-prune")}
    if given.many("platform"):
        import json

        query["platforms"] = [json.dumps(platform_object(text)) for text in given.many("platform")]
    faults: list[EngineAnswer] = []
    for name in given.arguments:
        try:
            _remove(session, session.engine, name, query)
        except EngineAnswer as error:
            faults.append(error)
    if not faults:
        return 0
    told = "\n".join(error.message for error in faults)
    # What is not there is removed, says --force.
    if given.on("force") and all(error.status == 404 for error in faults):
        session.warn(told)
        return 0
    raise CommandFailed(told)


def _remove(session: Session, engine: Engine, name: str, query: dict[str, Any]) -> None:
    for one in engine.json("DELETE", f"/images/{name}", query) or ():
        if one.get("Deleted"):
            session.say(f"Deleted: {one['Deleted']}")
        else:
            session.say(f"Untagged: {one['Untagged']}")


def tag(session: Session, given: Given) -> int:
    """Give an image one more name."""
    source, target = given.arguments
    try:
        name = parse_name(target)
    except CommandFailed as error:
        raise CommandFailed(
            f'Error parsing reference: "{target}" is not a valid repository/tag: {error.message}'
        ) from error
    if name.digest:
        raise CommandFailed("refusing to create a tag with a digest reference")
    name = name.with_default_tag()
    session.engine.call("POST", f"/images/{source}/tag", {"repo": name.repository, "tag": name.tag})
    return 0


COMMANDS = {
    "images": (IMAGES, images),
    "history": (HISTORY, history),
    "rmi": (
        Command(
            "[OPTIONS] IMAGE [IMAGE...]",
            """
-f, --force  Remove the image even if containers were made from it
--no-prune  Leave untagged parents
--platform strings  Remove this platform's part alone, as "os[/arch[/variant]]"
""",
            (1, None),
        ),
        remove,
    ),
    "tag": (Command("SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]", "", (2, 2)), tag),
}
