"""`logs`: what a container has written."""

from __future__ import annotations

import time

from ketch.attach import write_all
from ketch.faults import CommandFailed
from ketch.options import Command, Given
from ketch.quantities import parse_moment
from ketch.session import Session
from ketch_wire.stdcopy import STDERR, SYSTEM_ERROR, BadStream, StreamReader

LOGS = Command(
    "[OPTIONS] CONTAINER",
    """
--details  Show the extra attributes of every line
-f, --follow  Go on with what is written from now on
--since string  Show lines since a time (e.g. "2013-01-02T13:23:37Z") or a duration ago (e.g. "42m" for 42 minutes)
-n, --tail string  Number of lines to show from the end of the logs (default "all")
-t, --timestamps  Show timestamps
--until string  Show lines before a time (e.g. "2013-01-02T13:23:37Z") or a duration ago (e.g. "42m" for 42 minutes)
""",
    (1, 1),
)


def logs(session: Session, given: Given) -> int:
    """Write a container's two outputs to ours."""
    name = given.arguments[0]
    now = time.time()
    found = session.engine.get(f"/containers/{name}/json")
    query = {
        "stdout": True,
        "stderr": True,
        "follow": given.on("follow"),
        "tail": given.text("tail"),
        "timestamps": given.on("timestamps"),
        "details": given.on("details"),
    }
    for bound in ("since", "until"):
        if given.text(bound):
            try:
                query[bound] = parse_moment(given.text(bound), now)
            except ValueError as error:
                raise CommandFailed(f'invalid value for "{bound}": {error}') from error
    reader = None if (found.get("Config") or {}).get("Tty") else StreamReader()
    with session.engine.request("GET", f"/containers/{found['Id']}/logs", query) as answer:
        for part in answer.parts():
            if reader is None:
                write_all(1, part)
                continue
            try:
                frames = reader.feed(part)
            except BadStream as error:
                raise CommandFailed(str(error)) from error
            for stream, payload in frames:
                if stream == SYSTEM_ERROR:
                    raise CommandFailed(f"error from daemon in stream: {payload.decode('utf-8', 'replace')}")
                write_all(2 if stream == STDERR else 1, payload)
    return 0


COMMANDS = {"logs": (LOGS, logs)}
