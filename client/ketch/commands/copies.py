"""`cp`: files between a container and here."""

from __future__ import annotations

import base64
import json
import os
import posixpath
import sys
from collections.abc import Iterator
from typing import Any

from ketch.copying import (
    Place,
    absolute,
    extract,
    local_source,
    local_tar,
    local_target,
    means_content,
    place_archive,
)
from ketch.engine import Engine
from ketch.faults import CommandFailed, EngineAnswer
from ketch.http import Answer
from ketch.options import Command, Given
from ketch.quantities import human_size
from ketch.session import Session
from ketch.terminal import is_terminal

CP = Command(
    "[OPTIONS] CONTAINER:SRC_PATH DEST_PATH|-\n\tketch cp [OPTIONS] SRC_PATH|- CONTAINER:DEST_PATH",
    """
-a, --archive  Keep users and groups
-L, --follow-link  Follow a link in SRC_PATH
-q, --quiet  Do not say what was copied. That is so without a terminal anyway
""",
    (2, 2),
    note="\nA source of '-' is a tar on standard input, unpacked into a directory of the container;\n"
    "a destination of '-' is a tar of the container's files on standard output.",
)

# Go's FileMode, as the engine tells it.
GO_DIRECTORY, GO_SYMLINK = 1 << 31, 1 << 27
GO_SPECIAL = 1 << 26 | 1 << 25 | 1 << 24


def copy(session: Session, given: Given) -> int:
    """Copy one way or the other."""
    source_container, source = split_argument(given.arguments[0])
    target_container, target = split_argument(given.arguments[1])
    if source_container and target_container:
        raise CommandFailed("copying between containers is not supported")
    if not source_container and not target_container:
        raise CommandFailed("must specify at least one container source")
    if not source or not target:
        which = "source" if not source else "destination"
        raise CommandFailed(f"{which} can not be empty")
    if source_container:
        size = _from_container(session, given, source_container, source, target)
        shown = target if target != "-" else ""
    else:
        size = _to_container(session, given, source, target_container, target)
        shown = f"{target_container}:{target}"
    if shown and not given.on("quiet") and is_terminal(2):
        session.warn(f"Successfully copied {human_size(size)} to {shown}")
    return 0


def split_argument(text: str) -> tuple[str, str]:
    """(container, path); no container for a local path. Source: docker/cli, splitCpArg."""
    if text.startswith("/"):
        return "", text
    container, colon, path = text.partition(":")
    if not colon or container.startswith("."):
        return "", text
    return container, path


def _stat(engine: Engine, container: str, path: str) -> dict[str, Any]:
    """What is at a container's path. Raises EngineAnswer."""
    target = f"/containers/{container}/archive"
    try:
        with engine.request("HEAD", target, {"path": path}) as answer:
            return _decoded(answer)
    except EngineAnswer as error:
        if error.status == 404:
            # A HEAD has no room for the reason.
            engine.get(f"/containers/{container}/json")
            raise EngineAnswer(404, f"Could not find the file {path} in container {container}") from error
        raise


def _decoded(answer: Answer) -> dict[str, Any]:
    told = answer.headers.get("x-docker-container-path-stat", "")
    try:
        found = json.loads(base64.b64decode(told + "=" * (-len(told) % 4)))
    except ValueError as error:
        raise CommandFailed(f"unable to decode container path stat header: {error}") from error
    return dict(found)


def _from_container(session: Session, given: Given, container: str, path: str, target: str) -> int:
    engine = session.engine
    place = None if target == "-" else local_target(absolute(target))
    rebase = ""
    if given.on("follow-link"):
        try:
            found = _stat(engine, container, path)
        except EngineAnswer:
            found = {}
        if int(found.get("mode") or 0) & GO_SYMLINK:
            link = str(found.get("linkTarget") or "")
            if not link.startswith("/"):
                link = posixpath.join(posixpath.dirname(path), link)
            rebase = "" if means_content(path) else posixpath.basename(posixpath.normpath(path))
            path = link + ("/." if means_content(path) else "")
    answer = engine.request("GET", f"/containers/{container}/archive", {"path": path})
    with answer:
        if place is None:
            for part in answer.parts():
                sys.stdout.buffer.write(part)
            sys.stdout.buffer.flush()
            return 0
        found = _decoded(answer)
        source = Place(path, True, bool(int(found.get("mode") or 0) & GO_DIRECTORY), rebase)
        goal = place_archive(source, place)
        if rebase:
            # Entries carry the name of what the link points to.
            goal = goal._replace(old=posixpath.basename(posixpath.normpath(path)))
        return extract(answer.parts(), goal, keep_owner=given.on("archive"))


def _to_container(session: Session, given: Given, path: str, container: str, target: str) -> int:
    engine = session.engine
    try:
        found = _stat(engine, container, target)
        if int(found.get("mode") or 0) & GO_SYMLINK:
            link = str(found.get("linkTarget") or "")
            target = link if link.startswith("/") else posixpath.join(posixpath.dirname(target), link)
            found = _stat(engine, container, target)
        mode = int(found.get("mode") or 0)
        if mode & GO_SPECIAL:
            raise CommandFailed(f'destination "{container}:{target}" must be a directory or a regular file')
        place = Place(target, True, bool(mode & GO_DIRECTORY))
    except EngineAnswer as error:
        if error.status == 404 and "o such container" in error.message:
            raise
        # Its directory may be there; if not, the engine says so. An answer to HEAD has no room for a reason.
        place = Place(target, False, False)
    query: dict[str, Any] = {"noOverwriteDirNonDir": "true"}
    if given.on("archive"):
        query["copyUIDGID"] = "true"
    sent = [0]
    if path == "-":
        if not place.is_directory:
            raise CommandFailed(f'destination "{container}:{target}" must be a directory')
        query["path"] = target
        body = _counted(_standard_input(), sent)
    else:
        source = local_source(absolute(path), given.on("follow-link"))
        goal = place_archive(source, place)
        query["path"] = goal.directory
        body = _counted(local_tar(source, goal), sent)
    with engine.request(
        "PUT",
        f"/containers/{container}/archive",
        query,
        body=body,
        headers={"Content-Type": "application/x-tar"},
    ) as answer:
        answer.read()
    return sent[0]


def _standard_input() -> Iterator[bytes]:
    while part := os.read(0, 256 * 1024):
        yield part


def _counted(parts: Iterator[bytes], sent: list[int]) -> Iterator[bytes]:
    for part in parts:
        sent[0] += len(part)
        yield part


COMMANDS = {"cp": (CP, copy)}
