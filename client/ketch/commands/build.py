"""`build`: send a context, show what the engine makes of it."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from ketch.contexts import open_context
from ketch.credentials import encode_header
from ketch.engine import Query
from ketch.faults import CommandFailed
from ketch.limits import parse_ulimit
from ketch.options import Command, Given
from ketch.progressview import show
from ketch.quantities import human_size
from ketch.references import parse_name
from ketch.runoptions import check_host
from ketch.session import Session
from ketch.terminal import is_terminal
from ketch.variables import check_label, check_variable, pair_map


def _check_tag(text: str) -> str:
    try:
        parse_name(text)
    except CommandFailed as error:
        raise ValueError(error.message) from None
    return text


BUILD = Command(
    "[OPTIONS] PATH | URL | -",
    """
--add-host list  Add a host name and its address for RUN ("host:ip")
--build-arg list  Set build-time variables
--cache-from strings  Images that steps may be taken from
--cgroup-parent string  Parent cgroup of the containers of RUN
--compress  Accepted; the engine is on this host, compressing would only cost time
--cpu-period int  Length of a CPU period in microseconds (CFS)
--cpu-quota int  CPU time within a period in microseconds (CFS)
-c, --cpu-shares int  CPU shares (relative weight)
--cpuset-cpus string  CPUs that may be used (0-3, 0,1)
--cpuset-mems string  Memory nodes that may be used (0-3, 0,1)
--disable-content-trust  Accepted; images are not verified by signature (default true)
-f, --file string  Name of the Dockerfile (Default is "PATH/Dockerfile")
--force-rm  Remove the containers of RUN even after a failure
--iidfile string  Write the image ID to this file
--isolation string  Accepted; there is one isolation technology on Linux
--label list  Set a label of the image
-m, --memory bytes  Memory limit
--memory-swap bytes  Limit of memory and swap together: -1 for unlimited swap
--network string  Network of the RUN instructions (default "default")
--no-cache  Take no step from the cache
--platform string  Platform, where the engine has several
--pull  Look for a newer version of the base image
-q, --quiet  Show nothing but the image ID
--rm  Remove the containers of RUN after a success (default true)
--security-opt strings  Security options
--shm-size bytes  Size of "/dev/shm"
--squash  Make one layer of the new ones
-t, --tag list  Name of the image, and optionally a tag, as "name:tag"
--target string  Build stage to stop at
--ulimit ulimit  Ulimits (default [])
""",
    (1, 1),
    checks={
        "add-host": check_host,
        "build-arg": check_variable,
        "label": check_label,
        "tag": _check_tag,
    },
)


def build(session: Session, given: Given) -> int:
    """Build an image; the exit code is that of the step that failed."""
    config = session.config
    engine = session.engine
    context = open_context(given.arguments[0], given.text("file"))
    quiet = given.on("quiet")
    query = {**build_query(given, config.proxies(engine.host, {})), "platform": session.platform(given)}
    query["dockerfile"] = context.dockerfile
    headers = {
        "Content-Type": "application/x-tar",
        "X-Registry-Config": encode_header(session.all_auths()),
    }
    told = io.StringIO()
    out: Any = told if quiet else sys.stdout
    ids: list[str] = []
    parts = context.parts if quiet else _announced(context.parts)
    try:
        answer = engine.request("POST", "/build", query, body=parts, headers=headers)
        show(engine.messages(answer), out, lambda aux: ids.append(str(aux.get("ID", ""))))
    except CommandFailed:
        if quiet:
            session.warn(told.getvalue().rstrip("\n"))
        raise
    finally:
        context.release()
    if quiet:
        session.say(told.getvalue().strip() or ids[-1])
    if given.text("iidfile"):
        image = ids[-1] if ids else told.getvalue().strip()
        if not image:
            raise CommandFailed(f"server did not provide an image ID. Cannot write {given.text('iidfile')}")
        with open(given.text("iidfile"), "w", encoding="ascii") as file:
            file.write(image)
    return 0


def _announced(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Says how much has been sent: on a terminal while it is sent."""
    size, shown = 0, time.monotonic()
    terminal = is_terminal(1)
    for part in parts:
        size += len(part)
        yield part
        if terminal and time.monotonic() - shown > 0.1:
            shown = time.monotonic()
            sys.stdout.write(f"\rSending build context to ketch daemon  {human_size(size)}")
            sys.stdout.flush()
    sys.stdout.write(
        f"{chr(13) if terminal else ''}Sending build context to ketch daemon  {human_size(size)}\n"
    )
    sys.stdout.flush()


def build_query(given: Given, proxies: dict[str, str | None]) -> dict[str, Any]:
    """The query of POST /build. `proxies`: variables that the client's configuration adds to the arguments."""
    arguments: dict[str, str | None] = dict(proxies)
    for text in given.many("build-arg"):
        name, assigned, value = text.partition("=")
        arguments[name] = value if assigned else None
    query: dict[str, Any] = {
        "t": given.many("tag"),
        "q": given.on("quiet"),
        "nocache": given.on("no-cache"),
        "pull": "1" if given.on("pull") else "",
        "forcerm": given.on("force-rm"),
        "squash": given.on("squash"),
        "networkmode": given.text("network") if given.has("network") else "",
        "extrahosts": given.many("add-host"),
        "target": given.text("target"),
        "cgroupparent": given.text("cgroup-parent"),
        "isolation": given.text("isolation"),
        "cpusetcpus": given.text("cpuset-cpus"),
        "cpusetmems": given.text("cpuset-mems"),
        "version": "1",
    }
    structures = {
        "buildargs": arguments,
        "labels": pair_map(given.many("label")),
        "cachefrom": given.many("cache-from"),
        "ulimits": [parse_ulimit(text) for text in given.many("ulimit")],
    }
    query |= {name: json.dumps(value, separators=(",", ":")) for name, value in structures.items() if value}
    if given.has("security-opt"):
        query["securityopt"] = json.dumps(given.many("security-opt"))
    if not given.on("rm"):
        query["rm"] = "0"
    numbers: Query = {
        "cpuperiod": given.number("cpu-period"),
        "cpuquota": given.number("cpu-quota"),
        "cpushares": given.number("cpu-shares"),
        "memory": given.number("memory"),
        "memswap": given.number("memory-swap"),
        "shmsize": given.number("shm-size"),
    }
    query |= {name: value for name, value in numbers.items() if value}
    return query


COMMANDS = {"build": (BUILD, build)}
